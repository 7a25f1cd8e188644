"""EDGE end to end, as a user runs it: the command, SIGKILL, the same command again, and what they find."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = """
    --data.uri shapes:120?seed=1 --data.rows_per_shard 50
    --finetune.steps 6 --finetune.checkpoint_steps 2 --finetune.batch_pairs 8
    --synthesis.pairs 12 --synthesis.candidates_per_image 2 --synthesis.batch_images 6 --synthesis.inference_steps 4
    --evaluation.seeds 1 --evaluation.max_pairs 40 --students.steps 4 --run.num_cpus 2
""".split()  # noqa: SIM905
STAGES = ("features", "finetune", "synthesize", "choose", "recaption", "export", "evaluate")


def command(run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "jobs/edge_cc3m.py", "local", "--run.dir", str(run_dir), *SMALL, *more]


def run(run_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(run_dir, *more), cwd=ROOT, capture_output=True, text=True, timeout=900)


def checksum(run_dir: Path) -> str:
    return json.loads((run_dir / "distilled" / "manifest.json").read_text())["checksum"]


def kill_during(run_dir: Path, reached: Path) -> None:
    """Starts the run, and sends SIGKILL to it and all its children once the file `reached` is there."""
    process = subprocess.Popen(
        command(run_dir),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not list(reached.parent.glob(reached.name)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{reached} never came"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    run_dir = tmp_path_factory.mktemp("edge") / "run"
    result = run(run_dir)
    assert result.returncode == 0, result.stderr[-3000:]
    return run_dir, result


@pytest.mark.timeout(1200)
def test_a_run_leaves_everything_it_promises(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, result = finished
    report = json.loads((run_dir / "report.json").read_text())
    assert {"edge", "random", "herding", "k-center", "full"} <= set(report["recall"])
    for recall in report["recall"].values():
        for metric in ("ir@1", "ir@5", "ir@10", "tr@1", "tr@5", "tr@10", "mean_recall"):
            assert set(recall[metric]) == {"mean", "std", "runs"}
    assert list(report["stages"]) == list(STAGES)
    assert report["stages"]["features"]["rows_in"] == 120
    assert report["distilled"]["images"] == 6
    assert report["distilled"]["pairs"] == 12
    for name in ("settings.json", "rejects.parquet", "report.html", "distilled/README.md"):
        assert (run_dir / name).stat().st_size > 0
    assert (run_dir / "distilled" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "mean recall" in result.stdout
    for stage in STAGES:
        assert stage in result.stdout + result.stderr

    from mmdd_ray.data.distilled import read_distilled

    samples = read_distilled(str(run_dir / "distilled"))
    assert all(len(sample.captions) == 2 for sample in samples)


@pytest.mark.timeout(1800)  # four starts of the whole pipeline
def test_killed_twice_and_started_again_it_makes_the_same_set(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    kill_during(run_dir, run_dir / "features" / "shards" / "*.json")
    kill_during(run_dir, run_dir / "finetune" / "checkpoints" / "checkpoint_*")
    result = run(run_dir)
    assert result.returncode == 0, result.stderr[-3000:]
    assert checksum(run_dir) == checksum(finished[0])

    # And once more: nothing is left to do, and a deleted set is written again from what is there.
    shards = {path: path.read_bytes() for path in (run_dir / "distilled").glob("*.tar")}
    for path in (run_dir / "distilled").iterdir():
        path.unlink()
    again = run(run_dir)
    assert again.returncode == 0, again.stderr[-3000:]
    output = again.stdout + again.stderr
    assert all(
        f"{stage:<12} done already" in output for stage in STAGES if stage not in ("export", "evaluate")
    )
    assert all(path.read_bytes() == content for path, content in shards.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--synthesis.pairs", "13"], r"synthesis.pairs=13 is not a multiple of captions.per_image=2"),
        (["--data.uri", "no/such/*.tar"], "no/such/*.tar"),
        (["--finetune.generator", "./nowhere"], "'./nowhere' does not exist"),
        (["--features.clip", "tiny-clop"], "no model 'tiny-clop' in the zoo"),
        (["--evaluation.test", "shapes:0?seed=1"], "evaluation.test"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence_before_any_work(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run(tmp_path / "run", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_changed_settings_are_refused_with_the_difference(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    result = run(finished[0], "--finetune.steps", "7")
    assert result.returncode == 2
    assert "finetune.steps: 6 -> 7" in result.stderr
