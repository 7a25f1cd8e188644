"""The run directory: the whole truth of a run, resumable after a kill at any moment.

::

    settings.json            job, preset and resolved settings, credentials redacted; written once, and again
                             where a setting extends the run
    <stage>/started.json     written first: when, and which outputs of other stages it works from
    <stage>/…                outputs of the stage
    <stage>/manifest.json    written last: a stage with a manifest is done, one without is computed again
    distilled/ rejects.parquet report.json report.html
    status.json tensorboard/ for those who look on; a run never reads them, and they may be deleted
    draws/<k>/               stages and distilled/ of a further draw, where evaluation.draws is above 1

A stage may leave finished outputs named by their input, so that its next attempt skips them. One process at a
time writes to a run directory: on a local disk a lock sees to that, and the kernel drops it with the process;
object stores have no lock, so there the user must not start the same run twice.
"""

import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

from mmdd_ray.engine.progress import duration, progress
from mmdd_ray.engine.settings_changes import differences, extended, resolved
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

SETTINGS = "settings.json"
LAYOUT = 6
"""Version of the layout of run directories; those of another version are refused."""
MANIFEST = "manifest.json"
STARTED = "started.json"
RECORDS = (MANIFEST, STARTED)
DRAWS = "draws"
LOSSES = "losses.parquet"  # of a stage that trains: a row for each step
LOCK = ".lock"
STATUS = "status.json"
"""How far a run is, for other shells and machines."""
LIBRARIES = ("ray", "torch", "numpy", "pyarrow", "diffusers", "transformers", "open_clip_torch", "timm")


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage's body, for its manifest."""

    rows_in: int
    rows_out: int
    outputs: list[str] | None = None
    """Files that later stages read, relative to the stage's folder. Default: every file in it."""
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Rows that were dropped, by reason."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further figures for the report, as JSON."""


@dataclass(frozen=True)
class StageDir:
    """The folder of a stage, and its manifest once it is done (empty before)."""

    name: str
    store: Store
    path: str
    """Relative to the run directory."""
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """A hash of its outputs: other outputs have another one."""
        return hashlib.sha256(json.dumps(self.manifest["outputs"]).encode()).hexdigest()


class Watcher(Protocol):
    """Somebody who follows the stages of a run; must not raise."""

    def begins(self, path: str, resumed: bool) -> None:
        """A stage is about to be computed."""

    def ends(self, stage: StageDir) -> None:
        """A stage is done, perhaps since an earlier attempt."""


class RunDir:
    """A run directory that this process writes to, from ``open`` to ``close`` or the end of a ``with``."""

    def __init__(self, store: Store, lock: IO[str] | None) -> None:
        self.store = store
        self.devices: dict[str, Any] = {}
        """Hardware that the manifests record; set it to ``cluster.devices()`` once Ray is up."""
        self.numbers: Mapping[str, str] = {}
        """Which of how many stages a stage is, e.g. "[3/7] ", by its folder."""
        self.watchers: list[Watcher] = []
        self.has_new_settings = False
        """Whether settings have changed that no stage had read yet."""
        self._lock = lock

    @classmethod
    def open(
        cls,
        uri: str | None,
        job: str,
        preset: str,
        settings: Any,
        reads: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> "RunDir":
        """Creates the run directory ``uri`` or reopens it to resume.

        The default is ``runs/<job>-<preset>``; in a job that was submitted to a Ray cluster, whose working folder
        is deleted with it, below ``mmdd-ray`` in the home folder of the machine it runs on.

        ``reads`` has the sections of the settings that a stage depends on, by its name; a stage that is not there
        depends on all. A setting may change until a stage has begun that depends on it.

        Raises ``UserError`` when another live process writes to it, when it holds another job, a run with
        other settings or foreign files, or when it cannot be written.
        """
        folder = Path.home() / "mmdd-ray" if _is_deleted_with_its_job(Path.cwd()) else Path()
        store = Store(uri or str(folder / "runs" / f"{job}-{preset}"))
        if store.is_local and _is_deleted_with_its_job(Path(store.uri)):
            raise UserError(
                f"run.dir={store.uri} lies in the working folder of a Ray job, which is deleted with it; set "
                "run.dir to an s3:// URI or to an absolute path that all nodes share"
            )
        if store.is_local and Path(store.uri).is_file():
            raise UserError(f"run.dir={store.uri} is a file; name a folder")
        lock = None
        try:
            lock = _lock(store) if store.is_local else None
            run = cls(store, lock)
            run._enter(job, preset, settings, reads)
        except (OSError, StorageError, ValueError) as error:
            if lock:
                if not store.exists(SETTINGS):  # leaves a foreign folder as it was
                    store.remove(LOCK)
                _unlock(lock)
            if isinstance(error, UserError):
                raise
            raise UserError(f"run.dir={redact(store.uri)} cannot be used: {error}") from error
        return run

    def _enter(self, job: str, preset: str, settings: Any, reads: Mapping[str, Sequence[str]]) -> None:
        """Writes the settings of a new run, or checks that they are those of the run that is here."""
        wanted = json.loads(json.dumps(resolved(settings)))  # tuples become lists, as in the file
        where = f"run.dir={redact(self.store.uri)}"
        if self.store.exists(SETTINGS):
            saved = self._saved(where)
            if saved.get("layout") != LAYOUT:
                raise UserError(
                    f"{where} holds a run of another version of mmdd-ray, whose stages this one cannot read; set "
                    "run.dir to another folder"
                )
            if saved["job"] != job:
                raise UserError(
                    f"{where} holds a run of the job {saved['job']}; set run.dir to another folder"
                )
            changes = differences(saved["settings"], wanted, settings)
            if changes and self._is_unread(changes, reads):
                print(f"run          settings that nothing has read yet: {'; '.join(changes)}", flush=True)
                self.has_new_settings = True
                self.store.write_json(SETTINGS, saved | {"preset": preset, "settings": wanted})
            elif changes:
                raise UserError(
                    f"{where} holds a run with other settings:\n  "
                    + "\n  ".join(changes)
                    + "\nset run.dir to another folder, delete this one, or restore the settings above"
                )
            elif (now := extended(saved["settings"], wanted, settings)) != saved["settings"]:
                self.store.write_json(SETTINGS, saved | {"settings": now})
        else:
            if foreign := [name for name in self.store.entries() if name not in (LOCK, STATUS)]:
                raise UserError(
                    f"{where} holds {foreign[0]} but no run; set run.dir to an empty or new folder"
                )
            self.store.write_json(
                SETTINGS, {"layout": LAYOUT, "job": job, "preset": preset, "settings": wanted}
            )
        self.store.remove_temporaries()

    def _is_unread(self, changes: Sequence[str], reads: Mapping[str, Sequence[str]]) -> bool:
        """Whether no stage has begun that depends on a setting of these changes."""
        entries = self.store.entries()
        begun = [name for name in entries if self.store.exists(f"{name}/{STARTED}")]
        sections = {change.partition(":")[0].partition(".")[0] for change in changes}
        return DRAWS not in entries and all(
            name in reads and sections.isdisjoint(reads[name]) for name in begun
        )

    def _saved(self, where: str) -> dict[str, Any]:
        """The settings of the run that is here."""
        try:
            saved = self.store.read_json(SETTINGS)
            if saved.keys() >= {"job", "preset", "settings"}:
                return saved
        except (ValueError, AttributeError):  # no JSON, or no object
            pass
        raise UserError(f"{where} holds a {SETTINGS} that is no run's; set run.dir to an empty or new folder")

    def reopen(self, path: str) -> None:
        """Lets a done stage go on with what its folder holds."""
        self.store.remove(f"{path}/{MANIFEST}")

    def close(self) -> None:
        """Lets other processes write to this run directory."""
        if self._lock:
            _unlock(self._lock)
            self._lock = None

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stage(
        self,
        name: str,
        body: Callable[[StageDir], StageResult],
        needs: Sequence[StageDir] = (),
        within: str = "",
    ) -> StageDir:
        """Runs ``body`` on the stage's folder and commits its result; gives a done stage as it is.

        When one of the stages that it needs has other outputs now, the stage is computed again, from an empty folder.
        When it needs more stages than it was done with, or fewer, it goes on with what its folder holds.

        Args:
            needs: the stages whose outputs it reads; all of them done.
            within: folder of the run directory in which the stage's own lies, ending in a slash.

        Raises:
            UserError: an output of a done stage is missing or has another size than in its manifest.
        """
        path, inputs = f"{within}{name}", {one.path: one.fingerprint for one in needs}
        stage = StageDir(name, self.store.child(path), path)
        progress.number = self.numbers.get(path, "")
        saved = _record(stage, inputs)
        if saved and "outputs" in saved and inputs.keys() != saved["inputs"].keys():
            self.reopen(path)
            saved = stage.store.read_json(STARTED)
        if saved and "outputs" in saved:
            _check_outputs(stage, saved)
            return self._ended(replace(stage, manifest=saved), f"done already ({saved['seconds']:,.1f} s)")
        resumed = saved is not None
        if not resumed:
            stage.store.write_json(STARTED, {"started": _now(), "inputs": inputs})
        for watcher in self.watchers:
            watcher.begins(path, resumed)
        _say(path, "continues" if resumed else "starts")
        started, clock_s = _now(), time.monotonic()
        progress.paces.clear()
        progress.peak_bytes = 0
        progress.within = within
        result = body(stage)
        seconds = time.monotonic() - clock_s
        manifest = {
            "stage": path,
            "rows_in": result.rows_in,
            "rows_out": result.rows_out,
            "rejects": dict(result.rejects),
            "seconds": round(seconds, 3),
            "startup_seconds": _startup(seconds),
            "peak_bytes": progress.peak_bytes or None,  # of the largest process
            "resumed": resumed,  # then the seconds are those of the last attempt only
            "started": started,
            "finished": _now(),
            "outputs": _outputs(stage.store, result.outputs),
            "inputs": inputs,
            "devices": self.devices,
            "versions": versions(),
            "extra": dict(result.extra),
        }
        stage.store.write_json(MANIFEST, manifest)
        done = replace(stage, manifest=stage.store.read_json(MANIFEST))
        return self._ended(done, f"{_rows(result)}   {manifest['seconds']:,.1f} s")

    def _ended(self, stage: StageDir, what: str) -> StageDir:
        """Tells the watchers and the user that a stage is done."""
        for watcher in self.watchers:
            watcher.ends(stage)
        left = progress.whole_seconds_left()
        _say(stage.path, f"{what}   {duration(left)} left" if left else what)
        return stage


def _record(stage: StageDir, inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of a stage that is begun or done; one that was made with other inputs is deleted."""
    store = stage.store
    saved = next((store.read_json(file) for file in RECORDS if store.exists(file)), None)
    if saved and (changed := _changed(saved["inputs"], inputs)):
        _say(stage.path, f"starts afresh, because {changed} changed")
        # outputs first: a kill leaves a record
        for file in [*(set(store.files()) - {*RECORDS}), *RECORDS]:
            store.remove(file)
        return None
    return saved


def _changed(saved: Mapping[str, str], inputs: Mapping[str, str]) -> str | None:
    """Name of a stage whose outputs are not those that the record of another was made with."""
    return next((name for name, value in saved.items() if inputs.get(name, value) != value), None)


def _is_deleted_with_its_job(folder: Path) -> bool:
    return "working_dir_files" in folder.parts  # where Ray unpacks the --working-dir of a job


def _lock(store: Store) -> IO[str]:
    """The lock file of a local run directory, held by this process; it tells others who that is."""
    path = Path(store.path(LOCK))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise UserError(
            f"run.dir={store.uri} is in use by the process {holder}; wait for it, or set another run.dir"
        ) from None
    lock.truncate(0)
    print(f"{os.getpid()} on {platform.node()}", file=lock, flush=True)
    return lock


def _unlock(lock: IO[str]) -> None:
    lock.truncate(0)  # this process may live on
    lock.close()


def _outputs(store: Store, names: list[str] | None) -> list[dict[str, Any]]:
    """Name, bytes and checksum of each output; on an object store its ETag, which costs no download."""
    sizes = store.sizes()
    chosen = sorted(names if names is not None else sizes.keys() - {*RECORDS})
    if missing := [name for name in chosen if name not in sizes]:
        raise FileNotFoundError(
            f"the stage names {missing[0]} as output, but {store.path(missing[0])} does not exist"
        )
    return [{"path": name, "bytes": sizes[name], "checksum": store.checksum(name)} for name in chosen]


def _check_outputs(stage: StageDir, manifest: Mapping[str, Any]) -> None:
    sizes = stage.store.sizes()
    for output in manifest["outputs"]:
        name, found = output["path"], sizes.get(output["path"])
        if found != output["bytes"]:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise UserError(
                f"{redact(stage.store.path(name))} {state}, but the manifest of the stage {stage.name} says "
                f"{output['bytes']:,} bytes; delete the folder {redact(stage.store.uri)} to compute it again"
            )


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for library in ("mmdd-ray", *LIBRARIES):
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # mmdd-ray run from a checkout, or an optional library
            continue
    return found


def _startup(seconds: float) -> float | None:
    """Seconds of a stage beside its work at a steady pace, where it had one: the starts of processes, mostly."""
    if not progress.paces:
        return None
    return round(max(seconds - sum(pace.units / pace.per_second for pace in progress.paces), 0.0), 3)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _rows(result: StageResult) -> str:
    rejected = f" ({sum(result.rejects.values()):,} rejected)" if result.rejects else ""
    return f"{result.rows_in:,} rows -> {result.rows_out:,} rows{rejected}"


def _say(stage: str, what: str) -> None:
    print(f"{progress.number}{stage:<12} {what}", file=sys.stdout, flush=True)
