"""VLCP end to end, as a user runs it: the command, SIGKILL, the same command again, and what they find."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mmdd_ray.config import Data
from mmdd_ray.data import shapes
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.read import read_distilled
from mmdd_ray.models.generators.stable_diffusion import load_pipeline
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
SMALL = """
    --data.uri shapes:200?seed=1&labelled=1&world=clean --run.num_cpus 2
    --finetune.steps 3 --finetune.checkpoint_steps 1
    --prototypes.images_per_class 2 --prototypes.chunk_images 64 --synthesis.inference_steps 3
    --synthesis.batch_images 24 --classifiers.steps 6 --evaluation.seeds 1 --evaluation.max_pairs 60
    --classifiers.width 16
""".split()  # noqa: SIM905
STAGES = (
    "features",
    "describe",
    "finetune",
    "latents",
    "prototypes",
    "synthesize",
    "export",
    "prompts",
    "evaluate",
)


def command(run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/vlcp_imagenette.py", "local", "--run.dir", str(run_dir), *SMALL, *more]


def run(run_dir: Path, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    whole = [*before, *command(run_dir)]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=900)


def report_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, offline: list[str]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An unbroken run without a network, and what its command printed."""
    run_dir = tmp_path_factory.mktemp("vlcp") / "run"
    result = run(run_dir, before=offline)
    assert result.returncode == 0, result.stderr[-3000:]
    return run_dir, result


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_a_run_leaves_everything_it_promises(finished):
    run_dir, result = finished
    report = report_of(run_dir)
    real = {"random", "herding", "k-center", "clip-score", "full"}
    assert set(report["scores"]) == {"vlcp", "prompts", "chance"} | real
    assert "Warning" not in result.stderr
    assert "Top-1" in result.stdout
    assert tuple(report["stages"]) == STAGES
    assert len(report["losses"]["noise"]) == 3
    assert "Accuracy on the test images" in (run_dir / "report.html").read_text()

    samples = read_distilled(str(run_dir / "distilled"))
    drawn = list(shapes.pairs(0, 200, seed=1, labelled=True))
    classes = sorted({pair["label"] for pair in drawn})
    assert [sample.label for sample in samples] == [label for label in classes for _ in range(2)]
    by_key = {f"shapes-00000/{pair['key']}": pair for pair in drawn}
    for sample in samples:
        assert sample.extra["class_name"] == shapes.CLASS_NAMES[sample.label]
        members = sample.extra["cluster"]
        assert {by_key[key]["label"] for key in members} == {sample.label}
        assert sample.source_key in members
        name, caption = sample.extra["class_name"], by_key[sample.source_key]["captions"][0]
        assert sample.captions == (f"a picture of a {name}, {caption}",)


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_fine_tuning_leaves_a_pipeline_and_nothing_else(finished):
    from diffusers import StableDiffusionPipeline

    store = Store(str(finished[0] / "finetune"))
    outputs = [output["path"] for output in store.read_json("manifest.json")["outputs"]]
    assert sorted([*outputs, "manifest.json"]) == [name for name in store.files() if name != "started.json"]
    tuned = StableDiffusionPipeline.from_pretrained(finished[0] / "finetune/generator", use_safetensors=True)
    before = load_pipeline("tiny-sd").unet.state_dict()
    assert any(not torch.equal(before[name], weight) for name, weight in tuned.unet.state_dict().items())


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_the_image_folder_is_a_source_with_the_same_classes(finished):
    folder = finished[0] / "distilled" / "images"
    manifest = json.loads((finished[0] / "distilled" / "manifest.json").read_text())
    assert sorted(path.name[:4] for path in folder.iterdir()) == sorted(
        f"{int(n):04d}" for n in manifest["classes"]
    )
    (shard, *_) = list_shards(Data(uri=str(folder)))
    samples = read_distilled(str(finished[0] / "distilled"))
    assert isinstance(shard, Shard)
    written = {path.stem: path.read_bytes() for path in folder.rglob("*.png")}
    assert written == {sample.key: sample.image for sample in samples}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_run_ends_with_the_same_bytes(finished, kill_at, tmp_path):
    """Killed while it draws; what came before is done already, what follows, too, if the bytes are the same."""
    run_dir = tmp_path / "run"
    again = shutil.ignore_patterns("synthesize", "export", "distilled", "report.*")
    shutil.copytree(finished[0], run_dir, ignore=again)
    kill_at(command(run_dir), run_dir, "synthesize/batches/*.parquet")
    assert not (run_dir / "synthesize/manifest.json").exists()

    resumed = run(run_dir)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "synthesize   continues" in resumed.stdout
    assert "evaluate     done already" in resumed.stdout
    checksum = [report_of(folder)["distilled"]["checksum"] for folder in (run_dir, finished[0])]
    assert checksum[0] == checksum[1]
    assert report_of(run_dir)["scores"] == report_of(finished[0])["scores"]
