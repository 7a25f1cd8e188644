"""Times of an earlier run, from which those of a plan are made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdd_ray.config import RunSettings
from mmdd_ray.data.inventory import Source
from mmdd_ray.engine.cluster import Devices
from mmdd_ray.engine.run_dir import MANIFEST, SETTINGS
from mmdd_ray.errors import UserError
from mmdd_ray.planning.run_plan import Planned, about, parallel_of
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

REFERENCE_RUNS = Path(__file__).parent / "reference_runs"


STEADY_SECONDS = 20  # that a stage must have worked before it tells of much more work than it did
SHORTEST_STEADY_SECONDS = 5  # of work, which can be told from its start
STRETCH = 3  # times the work of a shorter stage is the most that it tells of
FARTHEST = 10_000  # times its work is the most that any stage tells of


@dataclass(frozen=True)
class Timed:
    """Time and memory that a stage took in a run."""

    uses: str
    startup_seconds: float
    seconds_a_unit: float
    """Seconds of a unit of work with one actor."""
    units: float
    steady_seconds: float
    """Seconds of all its units, with the actors that it had; 0 where its start could not be told from its work."""
    peak_bytes: int | None
    """Most memory that one of its processes held: of its GPU, or without GPUs of the machine."""
    batches: str
    on_gpu: bool
    gpu_types: tuple[str, ...] = ()
    """GPUs of the machines, where they were known."""

    def tells_of(self, units: float) -> bool:
        """Whether the time of so many units can be told from it.

        Readers work ahead while actors start, so a short run looks faster than it is; and a step or two say little
        of a hundred thousand.
        """
        long_enough = self.steady_seconds >= STEADY_SECONDS and units <= FARTHEST * self.units
        return units <= STRETCH * self.units or long_enough

    def is_of(self, gpus_each: float, gpu_types: Sequence[str]) -> bool:
        """Whether it was measured on devices of this kind: a CPU says nothing of a GPU, nor one GPU of another."""
        if self.on_gpu != bool(gpus_each):
            return False
        known = self.on_gpu and self.gpu_types and gpu_types
        return not known or set(self.gpu_types) == set(gpu_types)


def reference_times(
    settings: RunSettings, job: str, jobs: Mapping[str, Planned]
) -> tuple[dict[str, Timed], str]:
    """Times of stages by name, and in words where they come from.

    Args:
        job: The one that is planned; the run that it is planned by may be of another one.
        jobs: All of them by name.
    """
    if settings.plan.like is not None:
        run = Store(settings.plan.like)
        saved = reference_run(run)
        where = f"the run {redact(run.uri)}"
        if saved["interrupted"]:
            where += f", but for {', '.join(saved['interrupted'])}, in which it was interrupted"
    else:
        file = REFERENCE_RUNS / f"{job}.json"
        if not file.exists():
            return {}, "no run: name one as plan.like"
        saved, where = json.loads(file.read_text()), "the local preset on two CPU cores"
    devices = Devices(**saved["devices"])
    if saved["job"] not in jobs:
        raise UserError(
            f"plan.like: {where} is of the job {saved['job']!r}, which is not known here; name another"
        )
    like = jobs[saved["job"]]
    then = _settings_of(saved, where, like)
    source = Source(**saved["source"])
    times = {}
    for cost in like.costs(then, source):
        stage = saved["stages"].get(cost.stage)
        if stage is None or not cost.units:
            continue
        startup = stage.get("startup_seconds")
        if startup is not None and stage["seconds"] - startup < SHORTEST_STEADY_SECONDS:
            startup = None  # results that came all at once do not say how long they took
        working = max(stage["seconds"] - (startup or 0.0), 0.0)
        each = working * parallel_of(cost, devices) / cost.units
        steady = 0.0 if startup is None else working
        times[cost.stage] = Timed(
            cost.uses,
            startup or 0.0,
            each,
            cost.units,
            steady,
            stage.get("peak_bytes"),
            cost.batches,
            bool(cost.gpus_each and devices.gpus),
            tuple(devices.gpu_types),
        )
    return times, f"{where} ({about(devices)})"


def reference_run(run: Store) -> dict[str, Any]:
    """Everything of a finished run that a plan needs: its settings, source, machines, and times of its stages.

    Those of stages that were ``interrupted`` are left out, since they are of the last attempt alone.

    Raises:
        UserError: There is no run.
    """
    if not run.exists(SETTINGS) or not run.exists(f"features/{MANIFEST}"):
        raise UserError(f"plan.like={redact(run.uri)} is no run that has finished its first stage")
    saved = run.read_json(SETTINGS)
    saved["settings"].get("run", {})["dir"] = None  # where it was says nothing of what it took
    manifests = [run.read_json(name) for entry in run.entries() if run.exists(name := f"{entry}/{MANIFEST}")]
    stages = {one["stage"]: one for one in manifests if "stage" in one}
    return {
        "job": saved["job"],
        "settings": saved["settings"],
        "source": {
            "rows": stages["features"]["rows_in"],
            "captions_per_row": stages["features"]["extra"]["pairs"] / stages["features"]["rows_out"],
            "classes": next(
                (one["extra"]["classes"] for one in stages.values() if "classes" in one["extra"]), 0
            ),
        },
        "devices": stages["features"]["devices"],
        "stages": {
            name: {key: stage.get(key) for key in ("seconds", "startup_seconds", "peak_bytes")}
            for name, stage in stages.items()
            if not stage["resumed"]
        },
        "interrupted": [name for name, stage in stages.items() if stage["resumed"]],
    }


def _settings_of(saved: Mapping[str, Any], where: str, job: Planned) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(job.settings).validate_python(saved["settings"])
    except ValidationError as error:
        raise UserError(
            f"plan.like: {where} was made by another version of mmdd-ray; name another"
        ) from error
