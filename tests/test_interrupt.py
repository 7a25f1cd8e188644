"""Ctrl-C leaves within seconds, says how to go on, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from event_files import Events

from mmdd_ray.engine.interrupt import HOW_TO_GO_ON, leaving_within
from mmdd_ray.engine.run_dir import MANIFEST
from mmdd_ray.methods.status import status
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
LEAVES_S = 8.0  # at most 5 on an idle machine; tests share theirs
SAID = f"{HOW_TO_GO_ON}\n"

DEAF = """
import itertools, signal, sys, time
from mmdd_ray.cli import main
def job():
    for attempt in itertools.count():
        try:
            if not attempt:
                print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
sys.exit(main(job))
"""
SLOW_HOOK = f"import atexit, time; atexit.register(time.sleep, 60){DEAF}".replace(
    "            pass", "            raise"
)
UNWINDS = DEAF.replace("            pass", "            time.sleep(0.1); raise")
TURNS = DEAF.replace("            pass", "            return 0")


@pytest.fixture(autouse=True)
def hears() -> Iterator[None]:
    """Lets children hear Ctrl-C: a shell has its background jobs ignore it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(script: str, times: int = 1) -> tuple[int, str, float]:
    """Exit status, what it said, and the seconds that it took to leave."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said, time.monotonic() - began


def test_a_process_that_does_not_unwind_is_ended() -> None:
    code, said, seconds = interrupted(DEAF)
    assert (code, said) == (130, SAID)
    assert 2 < seconds < LEAVES_S


def test_a_second_ctrl_c_does_not_wait() -> None:
    code, said, seconds = interrupted(DEAF, times=2)
    assert (code, said) == (130, SAID)
    assert seconds < 2.5


def test_a_process_that_unwinds_says_the_same_once() -> None:
    assert interrupted(UNWINDS)[:2] == (130, SAID)


def test_hooks_of_libraries_hold_nothing_up() -> None:
    code, said, seconds = interrupted(SLOW_HOOK)
    assert (code, said) == (130, SAID)
    assert seconds < LEAVES_S


def test_a_job_that_ends_by_itself_after_ctrl_c_keeps_its_status() -> None:
    assert interrupted(TURNS)[:2] == (0, "")


def test_nothing_is_left_behind_by_a_block_that_ends() -> None:
    before, handler = signal.set_wakeup_fd(-1), signal.getsignal(signal.SIGINT)
    signal.set_wakeup_fd(before)
    with leaving_within(0.1):
        assert signal.getsignal(signal.SIGINT) != handler
    with pytest.raises(KeyboardInterrupt), leaving_within(0.1):
        raise KeyboardInterrupt  # without a signal
    assert signal.getsignal(signal.SIGINT) == handler
    after = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    assert after == before


SMALL = """
    --data.uri shapes:120?seed=1&world=clean --run.num_cpus 2
    --match.pairs 12 --match.iterations 60 --match.real_batch 50 --match.checkpoint_iterations 1
    --evaluation.seeds 1 --evaluation.max_pairs 40 --evaluation.baselines random
    --students.steps 4 --students.learning_rates 0.1
""".split()  # noqa: SIM905


@pytest.mark.long
@pytest.mark.job
@pytest.mark.timeout(900)
def test_a_run_that_is_interrupted_in_a_training_leaves_and_goes_on(tmp_path: Path) -> None:
    """SIGINT goes to the driver and all processes of Ray, as a terminal sends it."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "jobs/covmatch_flickr30k.py", "local", "--run.dir", str(run_dir), *SMALL]
    with log.open("w") as lines:
        process = subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines, start_new_session=True)
        while not list(run_dir.glob("match/checkpoints/checkpoint_*")):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        others = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    assert time.monotonic() - began < LEAVES_S
    assert code == 130
    assert log.read_text().endswith(SAID)
    assert "Traceback" not in log.read_text()
    _, left = psutil.wait_procs(others, timeout=20)
    assert left == []  # of Ray
    seen = status(str(run_dir))
    assert (seen.state, seen.reason) == ("stopped", "interrupted")
    assert [stage.stage for stage in seen.stages if stage.state == "begun"] == ["match"]
    assert " ".join(command[1:5]) in seen.command

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "match        continues" in again.stdout
    assert Store(str(run_dir)).read_json(f"match/{MANIFEST}")["resumed"]
    seen = status(str(run_dir))
    assert (seen.state, seen.report) == ("finished", f"{run_dir}/report.html")
    # the steps of both attempts, those after the last checkpoint perhaps twice
    tracked = Events(run_dir / "tensorboard")
    assert {step for step, _ in tracked.scalars["match/total"]} == set(range(1, 61))
    assert set(tracked.pictures) >= {"pictures/distilled_set", "pictures/scores", "pictures/losses"}
    assert tracked.scalars["scores/covmatch/mean_recall"]
