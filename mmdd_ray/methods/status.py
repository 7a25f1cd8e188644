"""How far a run is, from its run directory alone: for another shell or another machine.

Read are `settings.json`, `plan.json`, the records of the stages, and `status.json`, which the running process writes
every few seconds. Without that file the stages are known all the same, but not whether somebody works on them.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mmdd_ray.engine.forecast import Current, Forecast
from mmdd_ray.engine.run_dir import LOCK, MANIFEST, STARTED, STATUS
from mmdd_ray.engine.run_status import FINISHED, RUNNING, STOPPED, process_started
from mmdd_ray.engine.saved_run import saved_run
from mmdd_ray.errors import StorageError
from mmdd_ray.evaluation.report.words import REPORT_HTML
from mmdd_ray.methods.saved import method_of_run, settings_of_run
from mmdd_ray.methods.schedule import stage_paths
from mmdd_ray.planning.planned_times import planned_times
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

SILENT_AFTER_S = 60.0
RECORD = {
    "state", "reason", "command", "pid", "pid_started", "host", "every_seconds", "updated", "stage", "elapsed_seconds",
    "resumed", "line",
}  # fmt: skip
SAME_START_S = 2.0  # two readings of when a process began differ by less

StageState = Literal["done", "running", "begun", "to come"]
RunState = Literal["running", "silent", "finished", "stopped", "not known"]


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A stage of the run."""

    stage: str
    """Its folder in the run directory."""
    state: StageState
    """"begun": an attempt began it, and nobody works on it now."""
    rows_in: int | None = None
    rows_out: int | None = None
    seconds: float | None = None
    """Seconds that it took; None unless it is done."""
    planned_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """The progress line of the stage that runs."""

    name: str
    done: float
    total: float | None
    unit: str
    per_second: float
    """Units a second; 0 while there is no rate."""
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run as its directory shows it."""

    uri: str
    """Without credentials."""
    job: str
    preset: str
    state: RunState
    """"silent": the process cannot be looked for from here, and wrote nothing for a minute."""
    reason: str
    """Why it stopped, as far as that is known."""
    process: str
    """The process that worked on it last, e.g. "4711 on node-3"; empty if it is not known."""
    heard_seconds: float | None
    """Seconds since that process last wrote; None if it never did."""
    stages: tuple[StageStatus, ...]
    line: Line | None
    seconds_left: float | None
    """Seconds until the end of the run by its plan; None where it is finished or the plan does not know."""
    command: str
    """The command that started it; empty if it is not known."""
    report: str | None
    """Where the report is, once there is one."""

    @property
    def running(self) -> StageStatus | None:
        """The stage that is being computed."""
        return next((stage for stage in self.stages if stage.state == "running"), None)


def status(uri: str) -> Status:
    """How far the run in a folder or below a URI is.

    Raises:
        UserError: There is no run, or it is one of another version of mmdd-ray.
    """
    store, where = Store(uri), redact(Store(uri).uri)
    saved = saved_run(store)
    paths = stage_paths(method_of_run(saved, where).steps(), settings_of_run(saved, where))
    record = _record(store)
    heard_s = _seconds_since(record.get("updated"))
    state, current = _state(record, heard_s), record.get("stage")
    planned = planned_times(store, paths)
    forecast, stages = Forecast(paths, planned), []
    for path in paths:
        manifest = _json(store, f"{path}/{MANIFEST}")
        if manifest:
            forecast.end(path, manifest["seconds"], manifest["resumed"])
        stages.append(_stage(store, path, manifest, path == current and state == RUNNING, planned.get(path)))
    reason = record.get("reason", "") if state == STOPPED else ""
    starting = None if state == RUNNING else _holder(store)
    if starting:  # it has written nothing yet: Ray starts
        state, record = RUNNING, {}
    elif all(stage.state == "done" for stage in stages) and state in (FINISHED, "not known"):
        state = FINISHED
    elif state == FINISHED:
        state, reason = STOPPED, "it was finished, but a stage is missing now"
    line = Line(**record["line"]) if state == RUNNING and record.get("line") else None
    return Status(
        uri=where,
        job=saved["job"],
        preset=saved["preset"],
        state=state,
        reason=reason,
        process=starting or (f"{record['pid']} on {record['host']}" if record else ""),
        heard_seconds=None if starting else heard_s,
        stages=tuple(stages),
        line=line,
        seconds_left=None
        if state == FINISHED
        else forecast.seconds_left(_current(record, line, state, heard_s)),
        command=record.get("command", ""),
        report=redact(store.path(REPORT_HTML)) if store.exists(REPORT_HTML) else None,
    )


def _stage(
    store: Store, path: str, manifest: Mapping[str, Any], runs: bool, planned: float | None
) -> StageStatus:
    if manifest:
        rows = {name: manifest[name] for name in ("rows_in", "rows_out", "seconds")}
        return StageStatus(stage=path, state="done", planned_seconds=planned, **rows)
    begun: StageState = "begun" if store.exists(f"{path}/{STARTED}") else "to come"
    return StageStatus(stage=path, state="running" if runs else begun, planned_seconds=planned)


def _state(record: Mapping[str, Any], heard_s: float | None) -> RunState:
    """Whether somebody works on the run: by its process, if that is one of this machine, or else by its last word."""
    if heard_s is None:
        return "not known"
    if record["state"] != RUNNING:
        return FINISHED if record["state"] == FINISHED else STOPPED
    if record["host"] == platform.node():
        now, then = process_started(record["pid"]), record["pid_started"]
        return RUNNING if now and then and abs(now - then) < SAME_START_S else STOPPED
    return RUNNING if heard_s < max(SILENT_AFTER_S, 6 * record["every_seconds"]) else "silent"


def _holder(store: Store) -> str | None:
    """The process of this machine that has the run directory, as its lock names it; None where none is known."""
    if not store.is_local or not store.exists(LOCK):
        return None
    file = Path(store.path(LOCK))
    pid, _, host = file.read_text().strip().partition(" on ")
    if host != platform.node() or not pid.isdecimal():
        return None
    began = process_started(int(pid))
    # a later process may have the number of one that is gone
    return f"{pid} on {host}" if began and began < file.stat().st_mtime + SAME_START_S else None


def _current(
    record: Mapping[str, Any], line: Line | None, state: RunState, heard_s: float | None
) -> Current | None:
    """The stage that runs, as it is now and not when its process last wrote."""
    if state != RUNNING or not record.get("stage"):
        return None
    age_s = heard_s or 0.0
    counted = None if line is None or line.seconds_left is None else max(line.seconds_left - age_s, 0.0)
    return Current(
        stage=record["stage"],
        elapsed_s=record["elapsed_seconds"] + age_s,
        resumed=record["resumed"],
        counted_s=counted,
    )


def _seconds_since(moment: str | None) -> float | None:
    if moment is None:
        return None
    return max((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds(), 0.0)


def _record(store: Store) -> dict[str, Any]:
    """What `status.json` says; nothing where it is not there, damaged, or of another version."""
    for last in (False, False, True):
        try:
            found = _json(store, STATUS)
        except StorageError:  # an object that is replaced while it is read
            if last:
                raise
        except ValueError:
            break
        else:
            return found if isinstance(found, dict) and found.keys() >= RECORD else {}
    return {}


def _json(store: Store, name: str) -> dict[str, Any]:
    """The content of a file; empty where it is not there."""
    try:
        found: dict[str, Any] = store.read_json(name)
    except FileNotFoundError:
        return {}
    return found
