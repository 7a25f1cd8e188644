"""A rehearsal runs every stage of a preset for two steps, whatever the preset, and reads none of the user's data."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS, rehearsal
from mmdd_ray.methods.execute import check
from mmdd_ray.methods.rehearsal import Limits, rehearsed
from mmdd_ray.models import published, zoo
from mmdd_ray.models.contents import Folder, inspect_model

ROOT = Path(__file__).parents[1]
OF_ROLE = {
    "CLIP model": "tiny-clip",
    "generator": "tiny-sd",
    "captioner": "tiny-captioner",
    "image encoder": "tiny-nf",
    "text encoder": "tiny-bert",
}
PRESETS = [
    pytest.param(method, name, id=f"{job}-{name}")
    for job, method in METHODS.items()
    for name in method.presets
]
ON_A_CLUSTER = [preset for preset in PRESETS if preset.values[1] != "local"]


@pytest.mark.parametrize("limits", [Limits(4, 2), Limits(None, None)], ids=["small", "whole"])
@pytest.mark.parametrize(("method", "name"), PRESETS)
def test_the_rehearsal_of_every_preset_could_run(
    method: Any, name: str, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "build", lambda role, name, folder, layers: OF_ROLE[role])
    settings = method.presets[name]()
    short = rehearsed(settings, method, tmp_path, limits)
    check(short)
    assert short.run.dir == str(tmp_path / "run")
    for part in fields(short):
        section, own = getattr(short, part.name), getattr(settings, part.name)
        for name in ("steps", "iterations"):
            assert getattr(section, name, 0) <= 2
        for name in ("workers", "max_actors", "seeds", "draws"):
            assert getattr(section, name, 1) == 1
        if limits.batch and is_dataclass(section):
            batches = [getattr(section, one) for one in vars(section) if one in ("batch_pairs", "real_batch")]
            assert all(batch <= limits.batch for batch in batches)
        elif hasattr(own, "batch_pairs") and part.name in ("students", "experts"):
            assert section.batch_pairs == own.batch_pairs


def test_models_of_the_zoo_and_folders_are_rehearsed_as_they_are(tmp_path: Path) -> None:
    assert published.build("generator", "tiny-sd", tmp_path) == "tiny-sd"
    assert published.build("text encoder", str(zoo.FOLDER / "tiny-bert"), tmp_path) == str(
        zoo.FOLDER / "tiny-bert"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("role", ["generator", "captioner", "text encoder", "image encoder", "CLIP model"])
def test_an_architecture_that_is_not_known_is_one_sentence(role: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody/nothing"):
        published.build(role, "nobody/nothing", tmp_path)


@pytest.mark.parametrize(
    ("role", "name", "weights"),
    [("image encoder", "test_nfnet", 0.4e6), ("image encoder", "timm/test_nfnet.r160_in1k", 0.4e6)],
)
def test_published_models_are_built_once(role: Any, name: str, weights: float, tmp_path: Path) -> None:
    built = published.build(role, name, tmp_path)
    found = inspect_model(role, Folder(Path(built)))
    file = Path(built) / found.weights[0]
    assert 0.5 * weights < file.stat().st_size / 4 < 2 * weights
    written = file.stat().st_mtime_ns
    assert published.build(role, name, tmp_path) == built
    assert file.stat().st_mtime_ns == written


@pytest.mark.long
@pytest.mark.parametrize("job", ["edge_cc3m", "vlcp_imagenette"])
def test_a_rehearsal_says_what_every_stage_took_and_leaves_nothing(job: str, tmp_path: Path) -> None:
    options = ["--rehearse", "--rehearse.batch", "4", "--run.num_cpus", "2", "--plan.gpu_gib", "0.53"]
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "local", *options]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    lines = found.stdout.splitlines()
    table = lines[next(row for row, line in enumerate(lines) if line.startswith("stage ")) :]
    stages = [line.split()[0] for line in table]
    assert {"features", "finetune", "synthesize", "export", "evaluate"} <= set(stages)
    assert "batches had at most 4 samples" in found.stdout
    features, finetune = (line for line in table if line.startswith(("features", "finetune")))
    assert features.count(" GiB") == finetune.count(" GiB") == 2  # measured here, and counted for the run
    assert "on a GPU of 0.53 GiB will not fit: finetune" in found.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("method", "name"), ON_A_CLUSTER)
def test_every_preset_of_a_cluster_is_rehearsed_here(
    method: Any, name: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the published architectures, but for a U-Net of half the width, and two layers of a language model."""
    half = partial(published.stable_diffusion, unet={"block_out_channels": (160, 320, 640, 640)})
    monkeypatch.setitem(published.BUILDERS, published.STABLE_DIFFUSION, half)
    told = rehearsal.rehearse(method.presets[name](), name)
    lines = told.splitlines()
    assert lines[0].split()[:3] == ["stage", "time", "memory"]
    assert any(line.startswith("features") for line in lines)
    if method.job != "precompute":
        assert any(line.startswith("evaluate") for line in lines)
    assert "/tmp" not in told
