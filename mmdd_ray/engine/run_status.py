"""How far a run is: numbers and times on its own lines, and `status.json` for other shells and machines.

The file is written by a thread of its own every few seconds. It is a sign of life as well: where its time stands still,
the process was killed or cannot write. A run reads it at no time, and goes on where it cannot be written.
"""

import os
import platform
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from types import TracebackType
from typing import Any, Final

from mmdd_ray.engine.forecast import Current, Forecast
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import STATUS, RunDir, StageDir
from mmdd_ray.errors import ClusterError, StorageError, UserError
from mmdd_ray.storage.redact import redact

LOCAL_EVERY_S, REMOTE_EVERY_S = 3.0, 10.0
LAST_WRITE_S = 2.0
RUNNING: Final = "running"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"


def numbers_of(stages: Sequence[str]) -> dict[str, str]:
    """ "[3/7] " for the third of seven stages; all are equally wide."""
    count = len(stages)
    return {stage: f"[{at:>{len(str(count))}}/{count}] " for at, stage in enumerate(stages, start=1)}


class RunStatus:
    """Follows a run, from the start to the end of a ``with``: a `Watcher` of its run directory."""

    def __init__(self, run: RunDir, forecast: Forecast, command: str = "") -> None:
        """``command`` is what the user typed."""
        self._run, self._forecast, self._command = run, forecast, redact(command)
        self._every_s = LOCAL_EVERY_S if run.store.is_local else REMOTE_EVERY_S
        self._stage: tuple[str, bool, float] | None = None  # folder, resumed, when it began
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="run-status")

    def begins(self, path: str, resumed: bool) -> None:
        """Notes the stage that is computed now."""
        self._stage = (path, resumed, monotonic())

    def ends(self, stage: StageDir) -> None:
        """Notes what the stage took."""
        self._stage = None
        self._forecast.end(stage.path, stage.manifest["seconds"], stage.manifest["resumed"])

    def seconds_left(self, counted_s: float | None) -> float | None:
        """Seconds until the end of the run, from those that the progress line of the stage still needs."""
        return self._forecast.seconds_left(self._current(counted_s))

    def _current(self, counted_s: float | None) -> Current | None:
        if self._stage is None:
            return None
        path, resumed, began = self._stage
        return Current(stage=path, elapsed_s=monotonic() - began, resumed=resumed, counted_s=counted_s)

    def __enter__(self) -> "RunStatus":
        self._run.numbers = numbers_of(self._forecast.stages)
        self._run.watchers.append(self)
        progress.run_seconds_left = self.seconds_left
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        progress.run_seconds_left = None
        self._over.set()
        self._thread.join(LAST_WRITE_S)
        self._write(STOPPED if error else FINISHED, _reason(error))

    def _keep_writing(self) -> None:
        while True:
            self._write(RUNNING)
            if self._over.wait(self._every_s):
                return

    def _write(self, state: str, reason: str = "") -> None:
        # a run does not need it, and its stages will say what is wrong with the storage
        with self._writing, suppress(Exception):
            if state != RUNNING or not self._over.is_set():
                self._run.store.write_json(STATUS, self._record(state, reason))

    def _record(self, state: str, reason: str) -> dict[str, Any]:
        line = progress.shown
        current = self._current(None)
        return {
            "state": state,
            "reason": reason,
            "command": self._command,
            "pid": os.getpid(),
            "pid_started": process_started(os.getpid()),
            "host": platform.node(),
            "every_seconds": self._every_s,
            "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stage": current.stage if current else None,
            "elapsed_seconds": round(current.elapsed_s, 1) if current else None,
            "resumed": current.resumed if current else None,
            "line": None if line is None or state != RUNNING else _of_line(line),
        }


def _of_line(line: progress) -> dict[str, Any]:
    """The figures of a progress line."""
    return {
        "name": line.name,
        "done": line.n,
        "total": line.total,
        "unit": line.unit,
        "per_second": line.rate(),
        "seconds_left": line.seconds_left(),
    }


def _reason(error: BaseException | None) -> str:
    """Why a run stopped, in a sentence; of a bug its kind alone, as its text may say anything."""
    if error is None:
        return ""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(error, UserError | StorageError | ClusterError):
        return redact(str(error).partition("\n")[0])
    return type(error).__name__


def process_started(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None if there is none that still works."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
