"""CovMatch end to end, as a user runs it: the command, SIGKILL, the same command again, and what they find."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmdd_ray.data import shapes
from mmdd_ray.data.images import decode_image
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.seeds import draw_seed
from mmdd_ray.errors import UserError
from mmdd_ray.features.agreement import pair_numbers, score_table
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.covmatch.settings import Match
from mmdd_ray.methods.covmatch.stages import check_size
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.edge.stages import check_size as check_edge_size
from mmdd_ray.methods.student_export import export_student, find_student
from mmdd_ray.methods.verify import verify
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
DATA = ("--data.uri", "shapes:120?seed=1&world=clean", "--run.num_cpus", "2")
STUDENTS = """
    --evaluation.seeds 1 --evaluation.max_pairs 40 --evaluation.baselines random
    --students.steps 4 --students.learning_rates 0.1
""".split()  # noqa: SIM905
SMALL = """
    --match.pairs 12 --match.iterations 6 --match.real_batch 50 --match.restart_iterations 4
    --match.checkpoint_iterations 1 --match.real_moments whole --match.encoder_updates --match.cache_mib 0
""".split()  # noqa: SIM905  # real images are streamed, in three epochs of two batches
STAGES = ("features", "moments", "match", "export", "evaluate")


def command(job: str, run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, f"jobs/{job}.py", "local", "--run.dir", str(run_dir), *DATA, *STUDENTS, *more]


def run(job: str, run_dir: Path, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    whole = [*before, *command(job, run_dir, *more)]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=900)


def report_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "report.json").read_text())


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, offline: list[str]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An unbroken run without a network, and what its command printed."""
    run_dir = tmp_path_factory.mktemp("covmatch") / "run"
    result = run("covmatch_flickr30k", run_dir, *SMALL, "--evaluation.audit", before=offline)
    assert result.returncode == 0, result.stderr[-3000:]
    return run_dir, result


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_a_run_leaves_everything_it_promises(finished, tmp_path):
    run_dir, result = finished
    report = report_of(run_dir)
    assert set(report["scores"]) == {"covmatch", "random", "chance"}
    assert list(report["stages"]) == [*STAGES[:-1], "audit", STAGES[-1]]
    assert report["distilled"]["pairs"] == 12
    assert set(report["losses"]) == {"step", "covariance", "mean", "contrastive", "total"}
    # one restart: batches were compared with all pairs in iterations 1 and 5
    assert set(report["quality"]) == {"error of C_vl of a real batch", "error of the means of a real batch"}
    assert list(report["quality"]["error of C_vl of a real batch"]) == ["mean over 2 batches of 50 pairs"]
    assert "Traceback" not in result.stderr
    known = (*STAGES, "audit", "students")
    strange = [line for line in result.stderr.splitlines() if not line.partition("] ")[2].startswith(known)]
    assert strange == []

    student = find_student(str(run_dir))
    assert student.set == "covmatch"
    assert export_student(student, tmp_path / "student") == 0

    samples, learnt = read_distilled(str(run_dir / "distilled")), read_learnt(str(run_dir / "distilled"))
    assert learnt is not None
    assert [sample.captions for sample in samples] == [tuple(own) for own in learnt.captions]
    seen = np.stack([decode_image(sample.image, max_pixels=10**6) for sample in samples])
    assert np.array_equal(seen, learnt.images())
    card = (run_dir / "distilled" / "README.md").read_text()
    assert "learnt_pairs.safetensors" in card
    audit = report["audit"]
    assert audit["copies"]["images"] == 12
    own = {sample.source_key for sample in samples}
    assert {one["real"] for one in audit["copies"]["closest"]} <= own  # in six steps they have hardly moved
    assert audit["copies"]["rate"] == 100
    assert audit["learnt"]["bytes"] == learnt.n_bytes > audit["learnt"]["shown_bytes"]
    assert [one["began_as"] for one in audit["learnt"]["texts"]] == learnt.flat_captions
    beside = zip(audit["learnt"]["texts"], samples, strict=True)
    assert sum(text["real"] == sample.source_key for text, sample in beside) >= 6  # others share their words
    assert samples[0].extra["nearest_words"] == learnt.nearest[0]
    assert list(verify(str(run_dir / "distilled"), regenerate=3).differences.values()) == [0, 0, 0]


@pytest.mark.job
@pytest.mark.long
@pytest.mark.timeout(900)
def test_more_draws_add_to_a_finished_run(finished, tmp_path):
    """One further draw, and then nothing: what was made once stays as it is."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    before = report_of(finished[0])
    result = run("covmatch_flickr30k", run_dir, *SMALL, "--evaluation.draws", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    for stage in ("features", "moments", "match", "export"):
        assert f"{stage:<12} done already" in result.stdout
    assert [line for line in result.stdout.splitlines() if line.endswith("starts")] == [
        "[5/7] draws/1/match starts",
        "[6/7] draws/1/export starts",
    ]
    shown = {line.partition("] ")[2].split()[0] for line in result.stderr.splitlines()}
    assert shown <= {"draws/1/match", "draws/1/coresets", "students"}

    kept = [path for folder in ("match", "distilled") for path in (finished[0] / folder).rglob("*.*")]
    assert len(kept) > 5
    assert all((run_dir / path.relative_to(finished[0])).read_bytes() == path.read_bytes() for path in kept)
    students = [path.name for path in (finished[0] / "evaluate" / "students").iterdir()]
    added = [path.name for path in (run_dir / "evaluate" / "students").iterdir() if path.name not in students]
    assert sorted(added) == ["covmatch-draw1-lr0.1-seed1.json", "random-draw1-lr0.1-seed1.json"]
    after = report_of(run_dir)
    (first, second), again = after["draws"], before["distilled"]["checksum"]
    assert first == before["draws"][0]
    assert second["set"] == "draws/1/distilled"
    assert (first["checksum"], first["seed"]) == (again, 0)
    assert second["checksum"] != first["checksum"]
    assert read_distilled(str(run_dir / "draws/1/distilled"))[0].seed == second["seed"] == draw_seed(0, 1)
    for name in ("covmatch", "random"):
        score, single = (report["scores"][name]["mean_recall"] for report in (after, before))
        assert score["runs"][:1] == single["runs"]
        assert score["draw_means"] == score["runs"]
        assert score["std_between_draws"] == pytest.approx(float(np.std(score["runs"], ddof=1)))
    assert after["settings"]["evaluation"]["draws"] == 2
    assert list(verify(str(run_dir / "draws/1/distilled"), regenerate=2).differences.values()) == [0, 0]

    manifests = {path: path.stat().st_mtime_ns for path in run_dir.rglob("manifest.json")}
    result = run("covmatch_flickr30k", run_dir, *SMALL, "--evaluation.draws", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "starts" not in result.stdout
    assert "continues" not in result.stdout
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("manifest.json")} == manifests
    assert report_of(run_dir)["scores"] == after["scores"]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_killed_and_started_again_it_makes_the_same_set(finished, kill_at, tmp_path):
    """Killed while it learns; what came before is done already."""
    run_dir = tmp_path / "run"
    again = shutil.ignore_patterns("match", "export", "distilled", "report.*")
    shutil.copytree(finished[0], run_dir, ignore=again)
    kill_at(command("covmatch_flickr30k", run_dir, *SMALL), run_dir, "match/checkpoints/checkpoint_*")
    assert not (run_dir / "match" / "learnt_pairs.safetensors").exists()
    result = run("covmatch_flickr30k", run_dir, *SMALL)
    assert result.returncode == 0, result.stderr[-3000:]
    assert report_of(run_dir)["distilled"]["checksum"] == report_of(finished[0])["distilled"]["checksum"]
    assert "match        continues" in result.stdout + result.stderr
    assert report_of(run_dir)["scores"] == report_of(finished[0])["scores"]


@pytest.mark.long
@pytest.mark.job
@pytest.mark.timeout(900)
def test_the_set_is_evaluated_as_what_was_learnt(finished, tmp_path):
    trained = ("--students.trained", "both-encoders")
    result = run("evaluate", tmp_path / "run", "--set", str(finished[0] / "distilled"), *trained)
    assert result.returncode == 0, result.stderr[-3000:]
    assert report_of(tmp_path / "run")["scores"]["covmatch"] == report_of(finished[0])["scores"]["covmatch"]


@pytest.mark.job
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_set_of_another_method_is_learnt_on_and_another_in_its_place_from_the_start(tmp_path):
    """Of six images with two captions, while batches and moments are those of the pairs that agree best by CLIP."""
    first = drawn_set(tmp_path / "set", seed=5)
    given = ("--match.init", "file://" + first, "--features.clip_score_fraction", "0.3")
    run_dir = tmp_path / "run"
    result = run("covmatch_flickr30k", run_dir, *SMALL, *given)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"match        starts from the images and captions of {first}\n" in result.stdout
    assert list(report_of(run_dir)["stages"]) == ["features", "moments", "set", *STAGES[2:]]
    manifest, about = (
        json.loads(Path(folder, "manifest.json").read_text()) for folder in (run_dir / "distilled", first)
    )
    assert manifest["inputs"]["start"] == {
        "uri": first,
        "checksum": about["checksum"],
        "method": "EDGE",
        "pairs": 12,
        "as": "images and captions",
    }
    assert "| Began as | images and captions of the EDGE set" in (run_dir / "distilled/README.md").read_text()
    began, made = read_distilled(first), read_distilled(str(run_dir / "distilled"))
    assert [sample.captions for sample in made] == [(text,) for one in began for text in one.captions]
    assert [sample.source_key for sample in made] == [one.source_key for one in began for _ in one.captions]
    agreement = json.loads((run_dir / "features" / "agreement.json").read_text())
    assert agreement["pairs"] == 180  # of 600
    moments = Store(str(run_dir)).child("moments")
    assert FeatureStore(moments).moments().count == 180
    assert len(report_of(run_dir)["losses"]["total"]) == 6

    drawn_set(tmp_path / "set", seed=6)
    result = run("covmatch_flickr30k", run_dir, *SMALL, *given)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "match        starts afresh, because set changed" in result.stdout
    assert "moments      done already" in result.stdout
    again = json.loads((run_dir / "distilled" / "manifest.json").read_text())
    assert again["inputs"]["start"]["checksum"] != about["checksum"]
    assert again["checksum"] != manifest["checksum"]


def drawn_set(folder: Path, seed: int) -> str:
    """A set as EDGE leaves it: six images with two captions each."""
    samples = [
        Sample(
            key=f"{index:06d}",
            image=pair["image"],
            captions=tuple(pair["captions"][:2]),
            seed=index,
            source_key=f"real-{index}",
        )
        for index, pair in enumerate(shapes.pairs(0, 6, seed=seed))
    ]
    write_distilled(samples, Store(str(folder)), method="EDGE", settings={}, seed=0, inputs={})
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--match.init", "no/such/set"],
            "no/such/set holds no distilled set: it has no manifest.json; write random,",
        ),
        (
            ["--features.clip_score_fraction", "1.5"],
            "features.clip_score_fraction=1.5: input should be less than",
        ),
        (["--match.real_batch", "17", "--match.workers", "2"], "cannot be shared by match.workers=2"),
        (["--match.workers", "25"], "match.workers=25 is above match.pairs=12"),
        (["--match.image_model", "tiny-nfx"], "no model 'tiny-nfx' in the zoo"),
        (["--match.pixel_rate", "0"], "match.pixel_rate=0.0: input should be greater than 0"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence_before_any_work(tmp_path, job, arguments, message):
    where = ("--run.dir", str(tmp_path / "run"), *DATA)
    status, shown = job("covmatch_flickr30k", "local", *where, *SMALL, *arguments)
    assert status == 2
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("setting", "needed"), [("pairs", 121), ("real_batch", 128)])
def test_fewer_real_pairs_than_are_needed_are_one_sentence(tmp_path, setting, needed):
    features = FeatureStore(Store(str(tmp_path)))
    features.addresses = [("shapes", row) for row in range(120)]
    few = replace(covmatch_local(), match=replace(Match(real_batch=100, pairs=100), **{setting: needed}))
    with pytest.raises(
        UserError, match=rf"^match.{setting}={needed}, but shapes:2000.* has 120 usable pairs; lower"
    ):
        check_size(features, few)


def agreeing_half(folder):
    """The features of 120 pairs, of which the moments are those of 59."""
    store = Store(str(folder))
    pairs = pair_numbers(np.arange(120), np.ones(120, np.int64))
    store.write_parquet("scores/shapes.parquet", score_table(pairs, np.arange(120, dtype=np.float32)))
    store.write_parquet("duplicates.parquet", pa.table({"shard": ["shapes"], "index": [119]}))
    store.write_json("agreement.json", {"threshold": 60.0})
    features = FeatureStore(store)
    features.addresses = [("shapes", row) for row in range(120)]
    return features


def test_fewer_pairs_that_agree_than_in_a_batch_are_one_sentence(tmp_path):
    features, preset = agreeing_half(tmp_path), covmatch_local()
    half = replace(
        preset,
        features=replace(preset.features, clip_score_fraction=0.5),
        evaluation=replace(preset.evaluation, baselines=("random",)),
    )
    message = r"^match.real_batch=60, but features.clip_score_fraction=0.5 leaves 59 images of shapes:2000"
    for batch in (59, 60):
        few = replace(half, match=Match(real_batch=batch, pairs=100))
        with nullcontext() if batch == 59 else pytest.raises(UserError, match=message):
            check_size(features, few)


def test_fewer_pairs_that_agree_than_are_drawn_are_one_sentence_where_drawings_are_selected(tmp_path):
    features, preset = agreeing_half(tmp_path), edge_local()
    message = (
        r"^features.clip_score_fraction=0.5 leaves 59 images of shapes:2000.*say nothing of 60 drawn ones"
    )
    for pairs, candidates in ((59, 2), (60, 1), (60, 2)):
        few = replace(
            preset,
            features=replace(preset.features, clip_score_fraction=0.5),
            synthesis=replace(preset.synthesis, pairs=pairs, candidates_per_image=candidates),
            evaluation=replace(preset.evaluation, baselines=("random",)),
        )
        with pytest.raises(UserError, match=message) if (pairs, candidates) == (60, 2) else nullcontext():
            check_edge_size(features, few)


@pytest.mark.job
def test_changed_settings_are_refused_with_the_difference(finished, job):
    where = ("--run.dir", str(finished[0]), *DATA)
    status, shown = job("covmatch_flickr30k", "local", *where, *STUDENTS, *SMALL, "--match.rho", "3")
    assert status == 2
    assert "match.rho: 1.0 -> 3.0" in shown
