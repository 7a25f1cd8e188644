"""Sends what a run finds to trackers, from a thread of its own: a tracker that is slow or fails holds up no run.

`tracking.json` in the run directory keeps by which key a tracker knows the run, and which stages it has seen, so that a
run that is resumed goes on in the same place. Without it a tracker is told everything again.
"""

import math
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import LOSSES, RunDir, StageDir
from mmdd_ray.engine.trackers import TENSORBOARD, open_tracker
from mmdd_ray.engine.trackers.tensorboard_files import TensorBoardFiles
from mmdd_ray.engine.trackers.tracker import About, Point, Tracker
from mmdd_ray.storage.redact import redact

TRACKING = "tracking.json"
STAGES, STEP = "stages", "step"
GIB = 2**30
NOT_SENT = (STEP, "peak_bytes")  # of the record of a step
LAST_S, INTERRUPTED_S = 60.0, 1.0  # for what is still to be sent at the end

Task = Callable[[Tracker], None]


class Sender:
    """A thread that hands everything to one tracker, until that fails."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._waiting: queue.SimpleQueue[Point | Task] = queue.SimpleQueue()
        self.took_everything = False
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def send(self, what: Point | Task) -> None:
        """Takes a point, or something to do with the tracker; does not wait."""
        self._waiting.put(what)

    def close(self, finished: bool, wait_s: float) -> None:
        """Ends the tracker when it has everything, or leaves it alone after so many seconds."""
        self._waiting.put(lambda tracker: tracker.close(finished))
        self._waiting.put(_stop)
        self._thread.join(wait_s)
        if self._thread.is_alive() and finished:
            _warn(f"{self._name} did not take everything within {wait_s:.0f} s")

    def _work(self) -> None:
        try:
            while True:
                self._take()
        except _Stop:
            self.took_everything = True
        except Exception as error:  # whatever a tracker raises, the run goes on
            says = redact(str(error).strip().partition("\n")[0])
            _warn(f"{self._name} failed and gets nothing more: {type(error).__name__} {says}".rstrip())

    def _take(self) -> None:
        """Hands on what comes next; points that wait together are one request."""
        points: list[Point] = []
        what = self._waiting.get()
        while isinstance(what, Point):
            points.append(what)
            if self._waiting.empty():
                self._tracker.log(points)
                return
            what = self._waiting.get()
        if points:
            self._tracker.log(points)
        what(self._tracker)


class _Stop(Exception):
    """Ends the thread of a `Sender`."""


def _stop(tracker: Tracker) -> None:
    raise _Stop


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr, flush=True)


class Tracking:
    """Follows a run: a `Watcher` of its run directory, from the start to the end of a ``with``.

    Losses are sent as they come, and when a stage is done those that did not.
    """

    def __init__(self, run: RunDir, name: str | None, about: About) -> None:
        """
        Args:
            name: Name of the tracker beside TensorBoard's files, if there is to be one.

        Raises:
            UserError: It cannot begin.
        """
        self._run, self._saved = run, _saved(run)
        self._stage, self._sent = "", set[int]()
        trackers: dict[str, Tracker] = {TENSORBOARD: TensorBoardFiles(run.store)}
        if name is not None and name != TENSORBOARD:
            trackers[name] = open_tracker(name, about, self._saved.get(name, {}).get("key"))
        for one, tracker in trackers.items():
            saved = self._saved.get(one, {})
            is_same = saved.get("key") == tracker.key  # it was not deleted on the tracker's server since
            self._saved[one] = {"key": tracker.key, "seen": saved.get("seen", {}) if is_same else {}}
        self._senders = {one: Sender(one, tracker) for one, tracker in trackers.items()}

    def begins(self, path: str, resumed: bool) -> None:
        """Notes which stage the next records belong to."""
        self._stage, self._sent = path, set()

    def record(self, record: Mapping[str, float]) -> None:
        """Sends the record of a step."""
        step = int(record[STEP])
        self._sent.add(step)
        for sender in self._senders.values():
            sender.send(Point(self._stage, step, _values(record)))

    def ends(self, stage: StageDir) -> None:
        """Sends the losses that did not come before, and what the stage took."""
        self.tell(stage.path, stage.fingerprint, self._of_stage(stage))

    def _of_stage(self, stage: StageDir) -> Iterator[Point | Task]:
        sent = self._sent if stage.path == self._stage else set[int]()
        if any(output["path"] == LOSSES for output in stage.manifest["outputs"]):
            for record in stage.store.read_parquet(LOSSES).to_pylist():
                if (step := int(record[STEP])) not in sent:
                    yield Point(stage.path, step, _values(record))
        taken = {name: stage.manifest[name] for name in ("seconds", "rows_in", "rows_out")}
        if peak := stage.manifest["peak_bytes"]:
            taken["peak_gib"] = peak / GIB
        yield Point(f"{STAGES}/{stage.path}", 0, _values(taken))

    def tell(self, what: str, fingerprint: str, found: Iterable[Point | Task]) -> None:
        """Sends this to each tracker that has not seen it in this state.

        Args:
            what: Its name.
            fingerprint: Fingerprint of its state.
            found: Asked for only if there is such a tracker. If it cannot be read, the user is told.
        """
        new = [name for name in self._senders if self._saved[name]["seen"].get(what) != fingerprint]
        try:
            sent = [*found] if new else []
        except Exception as error:  # of the storage, most likely; the run does not need it
            _warn(f"{what} was not tracked: {type(error).__name__} {redact(str(error))}")
            return
        for one in [*sent, lambda tracker: tracker.flush()]:
            for name in new:
                self._senders[name].send(one)
        for name in new:
            self._saved[name]["seen"][what] = fingerprint
        with suppress(Exception):  # else they are told again
            self._run.store.write_json(TRACKING, self._saved)

    def __enter__(self) -> "Tracking":
        self._run.watchers.append(self)
        progress.on_record = self.record
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        progress.on_record = None
        for name, sender in self._senders.items():
            sender.close(kind is None, LAST_S if kind is None else INTERRUPTED_S)
            if not sender.took_everything:  # what it has is not known, so the next attempt tells it all again
                self._saved[name]["seen"] = {}
        with suppress(Exception):
            self._run.store.write_json(TRACKING, self._saved)


def picture(name: str, png: bytes) -> Task:
    """Sends a picture under this name."""
    return lambda tracker: tracker.picture(name, png)


def _values(record: Mapping[str, float | None]) -> dict[str, float]:
    """The figures of a record that are finite numbers: no tracker has another place for a gap."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in NOT_SENT and isinstance(value, int | float) and math.isfinite(value)
    }


def _saved(run: RunDir) -> dict[str, Any]:
    """What `tracking.json` says; nothing, where it is not there or not whole."""
    try:
        saved = run.store.read_json(TRACKING)
        return {name: dict(one) for name, one in saved.items()}
    except Exception:
        return {}
