"""How far a run is, told on its own lines and, from files alone, to other shells and machines."""

import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mmdd_ray.engine import run_status
from mmdd_ray.engine.forecast import Forecast
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import LOCK, STATUS, RunDir, StageDir, StageResult
from mmdd_ray.engine.run_status import RunStatus, numbers_of, process_started
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.methods.edge import METHOD
from mmdd_ray.methods.edge.presets import local
from mmdd_ray.methods.schedule import stage_paths
from mmdd_ray.methods.status import Status, status
from mmdd_ray.methods.status_text import show, status_text
from mmdd_ray.planning.plan import PLAN
from mmdd_ray.planning.planned_times import planned_times
from mmdd_ray.storage.store import Store

STAGES = [
    "features", "finetune", "synthesize", "choose", "recaption", "export", "coresets", "evaluate",
]  # fmt: skip
PLANNED = {"features": 600.0, "finetune": 1200.0, "synthesize": 300.0, "coresets": 60.0, "evaluate": 240.0}
COMMAND = "python jobs/edge_cc3m.py local --run.dir x"


def body(stage: StageDir) -> StageResult:
    stage.store.write_bytes("part", b"x")
    return StageResult(rows_in=2000, rows_out=1990)


def write_plan(store: Store) -> None:
    stages = {name: {"seconds": seconds, "times": 1} for name, seconds in PLANNED.items()}
    store.write_json(PLAN, {"stages": stages})


@contextmanager
def begun(uri: str, command: str = COMMAND) -> Iterator[RunDir]:
    """A run of EDGE that is followed as a job follows it."""
    with RunDir.open(uri, "edge_cc3m", "local", local()) as run:
        write_plan(run.store)
        with RunStatus(run, Forecast(STAGES, planned_times(run.store, STAGES)), command):
            yield run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_status, "LOCAL_EVERY_S", 0.05)
    monkeypatch.setattr(run_status, "REMOTE_EVERY_S", 0.05)


def when(uri: str, holds: Callable[[Status], bool]) -> Status:
    """The status, once it is so."""
    deadline = time.monotonic() + 20
    while not holds(found := status(uri)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_all_stages_are_known_before_a_run_starts() -> None:
    settings = local()
    steps = METHOD.steps()
    assert stage_paths(steps, settings) == STAGES
    twice = replace(settings, evaluation=replace(settings.evaluation, draws=2))
    again = ["draws/1/" + name for name in STAGES if name not in ("features", "evaluate")]
    assert stage_paths(steps, twice) == [*STAGES[:-1], *again, "evaluate"]
    assert numbers_of(STAGES)["synthesize"] == "[3/8] "
    assert list(numbers_of(stage_paths(steps, twice)).values())[8:10] == ["[ 9/14] ", "[10/14] "]


def test_planned_times_are_of_one_repetition_and_cover_draws_that_were_added(tmp_path: Path) -> None:
    store, stages = (
        Store(str(tmp_path)),
        ["features", "choose", "finetune", "draws/1/finetune", "draws/1/coresets"],
    )
    assert planned_times(store, stages) == dict.fromkeys(stages)
    plan = {
        "features": {"seconds": 10.0, "times": 1},
        "finetune": {"seconds": None, "times": 1},
        "coresets": {"seconds": 5.0, "times": 1},
        "draws/*/finetune": {"seconds": 60.0, "times": 3},
    }
    store.write_json(PLAN, {"stages": plan})
    times = {"features": 10.0, "finetune": None, "draws/1/finetune": 20.0, "draws/1/coresets": 5.0}
    assert planned_times(store, stages) == times


def test_lines_of_a_run_have_numbers_and_the_time_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []

    def slow(stage: StageDir) -> StageResult:
        with progress(stage.name, total=100) as bar:
            for _ in range(3):
                time.sleep(0.05)
                bar.update(25)
            shown.append(str(bar))
        return body(stage)

    with begun(str(tmp_path / "run")) as run:
        run.stage("features", body)
        run.stage("finetune", slow)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/8] features     starts"
    # features took no time of its ten minutes, but one minute counts as planned: 1,800 s * 60 / 660
    assert re.fullmatch(r"\[1/8\] features     2,000 rows -> 1,990 rows   0\.\d s   3 min left", lines[1])
    assert lines[2] == "[2/8] finetune     starts"
    assert re.fullmatch(r"\[2/8\] finetune     75/100 rows   [\d.,]+ rows/s   eta 0 s, run 3 min", shown[0])
    with RunDir.open(str(tmp_path / "other"), "edge_cc3m", "local", local()) as run:
        run.stage("features", body)
    assert capsys.readouterr().out.splitlines()[0] == "features     starts"  # a run that nobody follows


@pytest.mark.parametrize("columns", [200, 60, 30])
def test_a_line_stays_within_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(progress, "number", "[12/14] ")
        monkeypatch.setattr(progress, "run_seconds_left", lambda seconds: 7200.0)
        with progress("draws/1/finetune", total=60_000, unit="steps") as bar:
            bar.note(loss=0.25)
            bar.update(1)
            time.sleep(0.02)
            bar.update(1)
            line = str(bar)
    os.close(ours)
    assert len(line) <= columns
    assert line.startswith("[12/14] draws/1/finetune 2/60,"[: columns - 1])
    assert ("steps/s" in line) == (columns == 200)
    if columns == 200:
        assert re.search(r"eta [\w ]+, run 2 h 00 min   loss 0\.25$", line)


def test_a_running_run_is_seen_from_another_shell(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    found = []

    def slow(stage: StageDir) -> StageResult:
        with progress(stage.name, total=120, unit="steps") as bar:
            for _ in range(10):
                bar.update(2)
                time.sleep(0.02)
            found.append(when(uri, lambda now: bool(now.line and now.line.done == 20)))
        return body(stage)

    with begun(uri) as run:
        run.stage("features", body)
        run.stage("finetune", slow)
    (seen,) = found
    assert (seen.state, seen.job, seen.preset, seen.command) == ("running", "edge_cc3m", "local", COMMAND)
    assert seen.process == f"{os.getpid()} on {platform.node()}"
    assert [stage.state for stage in seen.stages] == ["done", "running", *["to come"] * 6]
    assert seen.stages[0].rows_out == 1990
    assert seen.running is seen.stages[1]
    line = seen.line
    assert line is not None
    assert (line.name, line.total, line.unit) == ("finetune", 120, "steps")
    assert line.seconds_left == pytest.approx(100 / line.per_second, rel=0.01)
    assert seen.seconds_left == pytest.approx((1200 + 300 + 60 + 240) * 60 / 660, rel=0.05)
    text = status_text(seen).splitlines()
    assert text[0] == f"{uri}   edge_cc3m local"
    assert text[1] == "[1/8] features    done      2,000 rows -> 1,990 rows   0 s"
    assert re.fullmatch(r"\[2/8\] finetune    running   20/120 steps   [\d,.]+ steps/s   \d+ s left", text[2])
    assert text[3] == "[3/8] synthesize  to come   5 min by the plan"
    assert re.fullmatch(
        r"running      process \d+ on .*, last heard of 0 s ago   3 min left by the plan", text[-1]
    )


def test_a_finished_run_names_its_report(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with begun(uri) as run:
        for name in STAGES:
            run.stage(name, body)
        run.store.write_bytes("report.html", b"<html>")
    assert show(uri).splitlines()[-1] == f"finished     {uri}/report.html"
    assert status(uri).seconds_left is None
    (tmp_path / "run" / STATUS).unlink()
    assert status(uri).state == "finished"  # the file is not needed to know that
    (tmp_path / "run" / "choose" / "manifest.json").unlink()
    assert status(uri).state == "not known"
    assert [stage.stage for stage in status(uri).stages if stage.state == "begun"] == ["choose"]


def test_a_process_that_has_not_begun_a_stage_is_told_from_one_that_is_gone(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with begun(uri) as run:
        run.stage("features", body)
    run = RunDir.open(uri, "edge_cc3m", "local", local())
    found = status(uri)
    assert (found.state, found.reason, found.heard_seconds) == ("running", "", None)
    assert f"running      process {os.getpid()} on {platform.node()}, which starts" in show(uri)
    run.close()
    assert status(uri).state == "stopped"
    lock = tmp_path / "run" / LOCK
    gone = subprocess.Popen(["true"])
    gone.wait()
    lock.write_text(f"{gone.pid} on {platform.node()}\n")
    assert status(uri).state == "stopped"
    lock.write_text(f"{os.getpid()} on another machine\n")
    assert status(uri).state == "stopped"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (UserError("data.uri=s3://me:pw@b holds no shards"), "data.uri=s3://[redacted]@b holds no shards"),
        (RuntimeError("at s3://me:pw@b/x"), "RuntimeError"),
    ],
)
def test_a_run_that_stopped_says_why_and_how_to_go_on(tmp_path: Path, error: BaseException, why: str) -> None:
    def failing(stage: StageDir) -> StageResult:
        raise error

    uri = str(tmp_path / "run")
    with pytest.raises(type(error)), begun(uri) as run:
        run.stage("features", failing)
    found = status(uri)
    assert (found.state, found.reason, found.stages[0].state) == ("stopped", why, "begun")
    says, go_on = show(uri).splitlines()[-2:]
    assert says.startswith(f"stopped      {why}, last heard of 0 s ago")
    assert go_on == f"go on        {COMMAND}"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_status import begun, run_status, when
run_status.LOCAL_EVERY_S = 0.05
def body(stage):
    when(sys.argv[1], lambda now: now.state == "running" and now.stages[0].state == "running")
    os.kill(os.getpid(), signal.SIGKILL)
with begun(sys.argv[1], "") as run:
    run.stage("features", body)
"""


def test_a_killed_run_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    killed = subprocess.run([sys.executable, "-c", KILLED, uri, str(Path(__file__).parent)], check=False)
    assert killed.returncode == -signal.SIGKILL
    record = json.loads((tmp_path / "run" / STATUS).read_text())
    assert record["state"] == "running"
    found = status(uri)
    assert (found.state, found.stages[0].state) == ("stopped", "begun")
    says, go_on = status_text(found).splitlines()[-2:]
    assert says.startswith(
        f"stopped      the process {record['pid']} on {platform.node()} is gone, last heard of"
    )
    assert go_on == "go on        start the same command again to go on"
    # a number that is given to another process is no sign of life
    record |= {"pid": os.getpid(), "pid_started": process_started(os.getpid()) - 3600}
    (tmp_path / "run" / STATUS).write_text(json.dumps(record))
    assert status(uri).state == "stopped"


@pytest.mark.parametrize(("silent_s", "state"), [(0, "running"), (50, "running"), (70, "silent")])
def test_a_run_on_another_machine_is_alive_while_it_writes(
    tmp_path: Path, silent_s: float, state: str
) -> None:
    uri = str(tmp_path / "run")
    with begun(uri) as run:
        when(uri, lambda now: now.state == "running")
        run.stage("features", body)
    file = tmp_path / "run" / STATUS
    then = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat()
    elsewhere = {"host": "node-3", "state": "running", "updated": then, "stage": "finetune"}
    elsewhere |= {"elapsed_seconds": 100.0, "resumed": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | elsewhere))
    found = status(uri)
    assert found.state == state
    assert found.process.endswith(" on node-3")
    assert ("killed, or cannot write" in status_text(found)) == (state == "silent")
    assert (found.running is not None) == (state == "running")
    if state == "running":  # what has passed since it wrote has passed for the stage, too
        left = (1200 + 300 + 60 + 240) * 60 / 660
        assert found.seconds_left == pytest.approx(left - min(100 + silent_s, 1200 * 60 / 660), abs=2)


def test_a_run_in_an_object_store_is_seen_from_anywhere(s3_server: str) -> None:
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("status-bucket")
    uri = "s3://status-bucket/run"
    with begun(uri) as run:
        run.stage("features", body)
        assert when(uri, lambda now: now.state == "running").stages[0].state == "done"
    assert status(uri).state == "stopped"  # it ended before its last stage
    assert status(uri).reason == "it was finished, but a stage is missing now"


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is no run directory, as it has no settings\.json"):
        status(str(tmp_path / "nothing"))
    with begun(str(tmp_path / "run")):
        pass
    file = tmp_path / "run" / "settings.json"
    saved = json.loads(file.read_text())
    for change, says in (
        ({"job": "later"}, "the job later"),
        ({"settings": {"run": 3}}, "run=3, but run is a section"),
    ):
        file.write_text(json.dumps(saved | change))
        with pytest.raises(UserError, match=says):
            status(str(tmp_path / "run"))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"state": "running"}'])
def test_a_status_file_of_something_else_is_left_aside(tmp_path: Path, content: str) -> None:
    with begun(str(tmp_path / "run")) as run:
        run.stage("features", body)
    (tmp_path / "run" / STATUS).write_text(content)
    found = status(str(tmp_path / "run"))
    assert (found.state, found.stages[0].state) == ("not known", "done")
    assert "no process has written here" in status_text(found)


def test_a_status_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_json

    def failing(store: Store, name: str, value: Any) -> None:
        if name == STATUS:
            raise StorageError("slow down")
        write(store, name, value)

    monkeypatch.setattr(Store, "write_json", failing)
    with begun(str(tmp_path / "run")) as run:
        time.sleep(0.2)
        done = run.stage("features", body)
    assert done.manifest["rows_out"] == 1990
    assert not (tmp_path / "run" / STATUS).exists()


def test_the_status_is_no_part_of_a_run(tmp_path: Path) -> None:
    """Its stages are the same, it is resumed with or without the file, and the file alone is no foreign one."""
    with begun(str(tmp_path / "followed")) as run:
        followed = run.stage("features", body)
    with RunDir.open(str(tmp_path / "alone"), "edge_cc3m", "local", local()) as run:
        alone = run.stage("features", body)
    assert followed.fingerprint == alone.fingerprint
    (tmp_path / "new").mkdir()
    (tmp_path / "followed" / STATUS).rename(tmp_path / "new" / STATUS)
    for folder in ("followed", "new"):
        with begun(str(tmp_path / folder)) as run:
            run.stage("features", body)
