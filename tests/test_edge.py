"""EDGE end to end, as a user runs it: the command, SIGKILL, the same command again, and what they find.

The unbroken run lives in an object store, the killed one on disk, so their equal checksums say that neither the
kill nor the storage change the distilled set.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest

import mmdd_ray
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.report.notebook import notebook_html
from mmdd_ray.evaluation.report.table import summary_table
from mmdd_ray.methods.verify import verify
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
STUDENTS = """
    --evaluation.seeds 1 --evaluation.max_pairs 40 --students.steps 4 --students.learning_rates 0.1
    --evaluation.val shapes:300?seed=2&captions=5 --evaluation.test shapes:500?seed=3&captions=5
""".split()  # noqa: SIM905
SMALL = """
    --finetune.steps 6 --finetune.checkpoint_steps 2 --finetune.batch_pairs 8
    --synthesis.pairs 12 --synthesis.candidates_per_image 2 --synthesis.clip_score_fraction 0.75
    --synthesis.batch_images 6 --synthesis.inference_steps 4
    --captions.per_image 2
""".split()  # noqa: SIM905
STAGES = (
    "features",
    "finetune",
    "synthesize",
    "choose",
    "recaption",
    "export",
    "coresets",
    "evaluate",
)
SETS = {"edge", "random", "herding", "k-center", "clip-score", "full"}
METRICS = ("ir@1", "ir@5", "ir@10", "tr@1", "tr@5", "tr@10", "mean_recall")

Finished = tuple[str, subprocess.CompletedProcess[str]]
Job = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 scenes in three WebDataset shards."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(Store(str(folder)), 120, seed=1, layout="webdataset", rows_per_shard=50)
    return f"{folder}/*.tar"


def command(job: str, run_dir: str, data: str, *more: str) -> list[str]:
    where = ("--run.dir", run_dir, "--run.num_cpus", "2", "--data.uri", data)
    return [sys.executable, f"jobs/{job}.py", "local", *where, *more]


def run(
    job: str, run_dir: str, data: str, *more: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    whole = [*before, *command(job, run_dir, data, *more)]
    return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=900)


def run_edge(
    run_dir: str, data: str, *more: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return run("edge_cc3m", run_dir, data, *SMALL, *STUDENTS, *more, before=before)


def checksum(run_dir: str) -> str:
    return Store(run_dir).read_json("distilled/manifest.json")["checksum"]


@pytest.fixture(scope="module")
def finished(s3_server: str, tars: str) -> Finished:
    """An unbroken run on an object store, and what its command printed."""
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("edge-bucket")
    result = run_edge("s3://edge-bucket/run", tars)
    assert result.returncode == 0, result.stderr[-3000:]
    return "s3://edge-bucket/run", result


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_a_finished_run_is_opened_from_python(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    run = mmdd_ray.load_run(finished[0])
    assert (len(run.pairs), len(run.pairs.samples), run.preset) == (12, 6, "local")
    assert run.settings.synthesis.pairs == 12
    assert set(run.stages) == set(STAGES)
    run.show()
    assert capsys.readouterr().out == f"{summary_table(run.report)}\n"
    shown = notebook_html(run.report, run.store)
    assert shown.count("<svg") >= 3
    assert "data:image/png;base64," in shown
    with pytest.raises(UserError, match="holds a run with other settings"):
        run.resume({"synthesis.pairs": 14})


@pytest.mark.job
@pytest.mark.timeout(1200)
def test_a_run_leaves_everything_it_promises(finished: Finished) -> None:
    store = Store(finished[0])
    report = store.read_json("report.json")
    assert set(report["scores"]) >= SETS
    for recall in report["scores"].values():
        for metric in METRICS:
            assert set(recall[metric]) == {"mean", "std", "runs"}
    assert list(report["stages"]) == list(STAGES)
    assert report["stages"]["features"]["rows_in"] == 120
    for stage in ("features", "finetune", "synthesize", "recaption", "evaluate"):
        assert 10**8 < store.read_json(f"{stage}/manifest.json")["peak_bytes"] < 10**10
    assert report["distilled"]["images"] == 6
    assert report["distilled"]["pairs"] == 12
    agreement = report["agreement"]
    assert agreement["prompts"] == 6
    assert agreement["drawn"] == pytest.approx(report["quality"]["alignment"]["distilled set"])
    assert -1 <= agreement["real"] <= 1
    page = store.read_bytes("report.html").decode()
    assert page.count('alt="Real image"') == page.count('alt="Drawn image"') == 6
    assert page.count("<strong>EDGE is ") == 1
    for name in ("settings.json", "rejects.parquet", "report.html", "distilled/README.md"):
        assert store.read_bytes(name)
    assert store.read_bytes("distilled/contact_sheet.png").startswith(b"\x89PNG")
    samples = read_distilled(store.child("distilled"))
    assert [len(sample.captions) for sample in samples] == [2] * 6
    manifest = store.read_json("distilled/manifest.json")
    assert manifest["versions"].keys() >= {"python", "ray", "torch"}
    assert all(model["version"].startswith("sha256:") for model in manifest["models"].values())


@pytest.mark.job
def test_a_run_says_what_it_does_in_few_lines(finished: Finished) -> None:
    _, result = finished
    assert "mean recall" in result.stdout
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/8] {stage:<12} starts\n" in result.stdout
    assert "Traceback" not in result.stderr
    known = (*STAGES, "students")
    strange = [line for line in result.stderr.splitlines() if not line.partition("] ")[2].startswith(known)]
    assert strange == []


def kill_and_resume(
    kill_at: Callable[..., None],
    pattern: str,
    unbroken: Store,
    run_dir: Path,
    tars: str,
    *,
    done: Sequence[str] = (),
    before: Sequence[str] = (),
) -> None:
    """Kills a run once it has a file of the pattern, and compares what it becomes with the unbroken one.

    Stages that are `done` are taken over from that.
    """
    begun = Store(str(run_dir))
    for name in ("settings.json", *(file for stage in done for file in unbroken.files(stage))):
        begun.write_bytes(name, unbroken.read_bytes(name))
    kill_at(command("edge_cc3m", str(run_dir), tars, *SMALL, *STUDENTS), run_dir, pattern)
    stage = pattern.split("/")[0]
    assert not begun.exists(f"{stage}/manifest.json")
    result = run_edge(str(run_dir), tars, before=before)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"{stage:<12} continues" in result.stdout
    assert checksum(str(run_dir)) == checksum(unbroken.uri)
    assert begun.read_json("report.json")["scores"] == unbroken.read_json("report.json")["scores"]


@pytest.mark.chaos  # VLCP is killed in every test run
@pytest.mark.timeout(900)
def test_killed_while_it_draws_it_makes_the_same_set(
    finished: Finished, tars: str, tmp_path: Path, offline: list[str], kill_at: Callable[..., None]
) -> None:
    """Its second start is without a network."""
    done = ("features", "finetune")
    pattern = "synthesize/batches/*.parquet"
    kill_and_resume(kill_at, pattern, Store(finished[0]), tmp_path / "run", tars, done=done, before=offline)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_killed_while_it_trains_it_makes_the_same_set(
    finished: Finished, tars: str, tmp_path: Path, offline: list[str], kill_at: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    kill_and_resume(kill_at, "finetune/checkpoints/checkpoint_*", Store(finished[0]), run_dir, tars)

    # And once more: nothing is left to do, and a deleted set is written again from what is there.
    shards = {path: path.read_bytes() for path in (run_dir / "distilled").glob("*.tar")}
    for path in (run_dir / "distilled").iterdir():
        path.unlink()
    again = run_edge(str(run_dir), tars, before=offline)
    assert again.returncode == 0, again.stderr[-3000:]
    assert all(
        f"{stage:<12} done already" in again.stdout for stage in STAGES if stage not in ("export", "evaluate")
    )
    assert all(path.read_bytes() == content for path, content in shards.items())


@pytest.mark.chaos  # CovMatch's is evaluated in every test run
@pytest.mark.timeout(900)
def test_any_distilled_set_can_be_evaluated(finished: Finished, tars: str, tmp_path: Path) -> None:
    given = ("--set", f"{finished[0]}/distilled", *STUDENTS, "--evaluation.baselines", "random")
    result = run("evaluate", str(tmp_path / "run"), tars, *given)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["scores"]) == {"edge", "random", "chance"}
    # the same set, students and seeds as in the run that made it, so the same figures
    made = Store(finished[0]).read_json("report.json")
    assert report["scores"]["edge"] == made["scores"]["edge"]


@pytest.mark.job
@pytest.mark.timeout(600)
def test_any_image_of_the_set_can_be_made_again(finished: Finished) -> None:
    verify = [sys.executable, "jobs/verify.py", f"{finished[0]}/distilled", "--regenerate", "2"]
    result = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"6 images, whole; checksum {checksum(finished[0])}" in result.stdout
    assert "2 of 2 images made again alike" in result.stdout


REFINEMENT = {
    "refine": {
        "iterations": 3,
        "real_batch": 40,
        "restart_iterations": 2,
        "checkpoint_iterations": 1,
        "real_moments": "batches",
        "encoder_updates": True,
    },
    "evaluation": {"baselines": ["random"]},
}
REFINE = """
    --refine.iterations 3 --refine.real_batch 40 --refine.restart_iterations 2 --refine.checkpoint_iterations 1
    --refine.real_moments batches --refine.encoder_updates --evaluation.baselines random
""".split()  # noqa: SIM905


def to_refine(finished: Finished, run_dir: Path, tars: str) -> list[str]:
    """A run that is to refine what the finished one has drawn and captioned; gives its command."""
    done, begun = Store(finished[0]), Store(str(run_dir))
    held = done.read_json("settings.json")
    for section, own in REFINEMENT.items():
        held["settings"][section] |= own
    begun.write_json("settings.json", held)
    for stage in STAGES[: STAGES.index("export")]:
        for file in done.files(stage):
            begun.write_bytes(file, done.read_bytes(file))
    return command("edge_cc3m", str(run_dir), tars, *SMALL, *STUDENTS, *REFINE)


@pytest.fixture(scope="module")
def refined(finished: Finished, tars: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    run_dir = tmp_path_factory.mktemp("refined") / "run"
    asked = to_refine(finished, run_dir, tars)
    result = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "recaption    done already" in result.stdout
    return Store(str(run_dir))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_drawn_pairs_can_be_refined_and_keep_where_they_are_from(finished: Finished, refined: Store) -> None:
    report = refined.read_json("report.json")
    before_export = STAGES[: STAGES.index("export")]
    assert list(report["stages"]) == [*before_export, "refine", "export", "evaluate"]
    assert report["method"] == "EDGE refined by CovMatch"
    assert report["refinement"]["step"] == [1, 2, 3]
    assert len(report["losses"]["step"]) == 6
    assert b"Refinement: matching, and InfoNCE of encoders that are trained" in refined.read_bytes(
        "report.html"
    )
    ours = next(iter(report["scores"]))
    assert report["labels"][ours] == report["method"]

    drawn, made = read_distilled(f"{finished[0]}/distilled"), read_distilled(f"{refined.uri}/distilled")
    kept = [(one.source_key, one.seed, (text,)) for one in drawn for text in one.captions]
    assert [(one.source_key, one.seed, one.captions) for one in made] == kept
    learnt = read_learnt(f"{refined.uri}/distilled")
    assert learnt is not None
    assert np.abs(learnt.offsets).max() > 0
    manifest = refined.read_json("distilled/manifest.json")
    assert manifest["models"].keys() == {"clip", "generator", "captioner", "image encoder", "text encoder"}
    assert list(verify(f"{refined.uri}/distilled", regenerate=2).differences.values()) == [0, 0]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_killed_while_it_refines_it_makes_the_same_set(
    finished: Finished, refined: Store, tars: str, tmp_path: Path, kill_at: Callable[..., None]
) -> None:
    run_dir = tmp_path / "run"
    asked = to_refine(finished, run_dir, tars)
    kill_at(asked, run_dir, "refine/checkpoints/checkpoint_*")
    assert not (run_dir / "refine" / "learnt_pairs.safetensors").exists()
    result = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "refine       continues" in result.stdout
    assert checksum(str(run_dir)) == checksum(refined.uri)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--refine.iterations", "5", "--refine.workers", "3", "--refine.real_batch", "10"],
            "refine.real_batch=10 cannot be shared by refine.workers=3",
        ),
        (
            ["--refine.iterations", "5", "--refine.workers", "16"],
            "refine.workers=16 is above synthesis.pairs=12",
        ),
        (["--refine.iterations", "5", "--refine.text_model", "tiny-bart"], "no model 'tiny-bart' in the zoo"),
        (
            ["--synthesis.candidates_per_image", "2", "--synthesis.clip_score_fraction", "0.4"],
            "synthesis.clip_score_fraction=0.4 leaves 5 of 12 drawn images, but 6 are kept; raise it, or synthesis.ca",
        ),
        (
            ["--synthesis.pairs", "13", "--captions.per_image", "2"],
            r"synthesis.pairs=13 is not a multiple of captions.per_image=2",
        ),
        (["--data.uri", "no/such/*.tar"], "no/such/*.tar"),
        (["--captions.per_image", "0"], "captions.per_image=0: input should be greater than or equal to 1"),
        (
            ["--finetune.batch_pairs", "9", "--finetune.workers", "2"],
            "cannot be shared by finetune.workers=2",
        ),
        (["--students.learning_rates", "-1"], "students.learning_rates.0=-1.0"),
        (["--finetune.generator", "./nowhere"], "'./nowhere' does not exist"),
        (["--features.clip", "tiny-clop"], "no model 'tiny-clop' in the zoo"),
        (["--evaluation.test", "shapes:0?seed=1"], "evaluation.test"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence_before_any_work(
    tmp_path: Path, job: Job, arguments: list[str], message: str
) -> None:
    where = [] if "--data.uri" in arguments else ["--data.uri", "shapes:120?seed=1"]
    students = [] if arguments[0] in STUDENTS else STUDENTS
    run = ("--run.dir", str(tmp_path / "run"))
    status, shown = job("edge_cc3m", "local", *run, *where, *SMALL, *students, *arguments)
    assert status == 2
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.job
def test_changed_settings_are_refused_with_the_difference(finished: Finished, tars: str, job: Job) -> None:
    where = ("--run.dir", finished[0], "--data.uri", tars)
    status, shown = job("edge_cc3m", "local", *where, *SMALL, *STUDENTS, "--finetune.steps", "7")
    assert status == 2
    assert "finetune.steps: 6 -> 7" in shown
