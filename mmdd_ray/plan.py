"""What a run will cost, before it starts: work, time, GPU-hours, traffic and memory of each stage. No torch.

The work of a stage is counted by ``work.py``. Times are those of an earlier run whose stages used the same models in
the same way, scaled to the work: what a stage took to start stays, the rest grows with the work and shrinks with the
actors. Memory is what the largest process of a stage held there, if its batches were the same. Where no such run is
known, there is neither.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmdd_ray.cluster import Devices, actor_resources, connect, devices, pool_size, this_machine
from mmdd_ray.config import Covmatch, Edge, Evaluate, Evaluation, Precompute, Vlcp
from mmdd_ray.data.class_names import read_class_names
from mmdd_ray.data.inventory import Source, look_at
from mmdd_ray.draws import count_sets
from mmdd_ray.errors import UserError
from mmdd_ray.progress import duration
from mmdd_ray.redact import redact
from mmdd_ray.run import MANIFEST, SETTINGS
from mmdd_ray.store import Store
from mmdd_ray.work import FEATURE_BYTES, Settings, Work, clip_dim, set_size, works

PLAN = "plan.json"
FIGURES = Path(__file__).parent / "figures"
KINDS: dict[str, type[Settings]] = {
    "edge_cc3m": Edge,
    "covmatch_flickr30k": Covmatch,
    "vlcp_imagenette": Vlcp,
    "precompute": Precompute,
    "evaluate": Evaluate,
}
STEADY_SECONDS = 20  # that a stage must have worked before it tells of much more work than it did
SHORTEST_STEADY_SECONDS = 5  # of work, which can be told from its start
STRETCH = 3
GIB = 2**30


@dataclass(frozen=True)
class Timed:
    """What a stage took in a run: time, and memory of a process."""

    uses: str
    startup_seconds: float
    seconds_a_unit: float
    """With one actor."""
    units: float
    steady_seconds: float
    """Of all its units, with the actors that it had; 0 where its start could not be told from its work."""
    peak_bytes: int | None
    """What one of its processes held at most: of its GPU, or without GPUs of the machine."""
    batches: str
    on_gpu: bool

    def tells_of(self, units: float) -> bool:
        """Whether the time of so many units can be told from it.

        Readers work ahead while actors start, so a short run looks faster than it is.
        """
        return units <= STRETCH * self.units or self.steady_seconds >= STEADY_SECONDS


@dataclass
class StagePlan:
    """A line of the plan."""

    work: Work
    parallel: int
    seconds: float | None
    """Of all the times that it is done; None where nothing like it has been measured."""

    gpus_each: float
    """Of what works at once; 0 without GPUs."""
    peak_bytes: int | None
    """What each process will hold, of its GPU or the machine; None where nothing like it has been measured."""

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.parallel * self.gpus_each / 3600


@dataclass
class RunPlan:
    """The plan of a run."""

    source: Source
    devices: Devices
    figures: str
    """Where times come from, in words."""
    stages: list[StagePlan]
    driver_bytes: dict[str, float]
    """What the driver holds in memory at once, by the setting that decides it."""
    scratch_bytes: float
    """What it keeps in its temporary folder."""
    gpu_hour_price: float

    @property
    def seconds(self) -> float | None:
        """Of all stages, one after the other."""
        found = [stage.seconds for stage in self.stages]
        return None if None in found else sum(filter(None, found))

    def as_json(self) -> dict[str, Any]:
        """For the run directory."""
        return {
            "figures": self.figures,
            "seconds": self.seconds,
            "stages": {
                one.work.stage: {
                    "units": one.work.units,
                    "unit": one.work.unit,
                    "parallel": one.parallel,
                    "times": one.work.times,
                    "seconds": one.seconds,
                    "gpu_hours": one.gpu_hours,
                    "peak_bytes": one.peak_bytes,
                }
                for one in self.stages
            },
        }


def plan_run(settings: Settings, job: str, devices: Devices) -> RunPlan:
    """The plan of a run with these settings on machines like these.

    Raises:
        UserError: `plan.like` is no run to plan by, or the source cannot be read.
    """
    source = look_at(settings.data)
    if isinstance(settings, Vlcp) and settings.describe.class_names is not None:
        source = replace(source, classes=len(read_class_names(settings.describe.class_names)))
    times, figures = _times(settings, job)
    stages = [_stage_plan(work, devices, times.get(work.like)) for work in works(settings, source)]
    driver_bytes, scratch_bytes = _driver_bytes(settings, source), _scratch_bytes(settings, source)
    return RunPlan(
        source, devices, figures, stages, driver_bytes, scratch_bytes, settings.plan.gpu_hour_price
    )


def show_plan(settings: Settings, job: str) -> str:
    """The plan as people see it; joins a cluster if the run would.

    Raises:
        UserError: as ``plan_run``; or the run cannot fit, in a sentence that names the setting to change.
    """
    plan = plan_run(settings, job, _devices(settings))
    _check_fit(settings, plan)
    return render(plan)


# ---- time and memory


def _stage_plan(work: Work, devices: Devices, time: Timed | None) -> StagePlan:
    parallel, gpus = _parallel(work, devices), work.gpus_each if devices.gpus else 0.0
    if time is None or time.uses != work.uses:
        return StagePlan(work, parallel, None, gpus, None)
    seconds = work.times * (time.startup_seconds + time.seconds_a_unit * work.units / parallel)
    alike = time.batches == work.batches and time.on_gpu == bool(gpus)
    return StagePlan(
        work,
        parallel,
        seconds if time.tells_of(work.units) else None,
        gpus,
        time.peak_bytes if alike else None,
    )


def _parallel(work: Work, devices: Devices) -> int:
    if work.leaves_cpu:
        return pool_size(work.actors, work.gpus_each, devices)
    each = actor_resources(work.gpus_each, devices)
    fit = devices.gpus / each["num_gpus"] if each["num_gpus"] else devices.cpus / each["num_cpus"]
    return max(min(int(fit + 1e-6), work.actors or int(fit)), 1)


def _times(settings: Settings, job: str) -> tuple[dict[str, Timed], str]:
    """What stages took, by name, and in words where that comes from."""
    if settings.plan.like is not None:
        run = Store(settings.plan.like)
        held = figures(run)
        where = f"the run {redact(run.uri)}"
    else:
        file = FIGURES / f"{job}.json"
        if not file.exists():
            return {}, "no run: name one as plan.like"
        held, where = json.loads(file.read_text()), "the local preset on two CPU cores"
    devices = Devices(**held["devices"])
    then = _settings_of(held, where)
    source = Source(**held["source"])
    times = {}
    for work in works(then, source):
        stage = held["stages"].get(work.stage)
        if stage is None or not work.units:
            continue
        startup = stage.get("startup_seconds")
        if startup is not None and stage["seconds"] - startup < SHORTEST_STEADY_SECONDS:
            startup = None  # results that came all at once do not say how long they took
        working = max(stage["seconds"] - (startup or 0.0), 0.0)
        each = working * _parallel(work, devices) / work.units
        steady = 0.0 if startup is None else working
        times[work.stage] = Timed(
            work.uses,
            startup or 0.0,
            each,
            work.units,
            steady,
            stage.get("peak_bytes"),
            work.batches,
            bool(work.gpus_each and devices.gpus),
        )
    return times, f"{where} ({_about(devices)})"


def figures(run: Store) -> dict[str, Any]:
    """What a plan needs of a finished run: its settings, source, machines, and what its stages took.

    Raises:
        UserError: There is no run, or one of its stages was interrupted, so that its time is not known.
    """
    if not run.exists(SETTINGS) or not run.exists(f"features/{MANIFEST}"):
        raise UserError(f"plan.like={redact(run.uri)} is no run that has finished its first stage")
    held = run.read_json(SETTINGS)
    held["settings"].get("run", {})["dir"] = None  # where it was says nothing of what it took
    manifests = [run.read_json(name) for entry in run.entries() if run.exists(name := f"{entry}/{MANIFEST}")]
    stages = {one["stage"]: one for one in manifests if "stage" in one}
    if resumed := [name for name, stage in stages.items() if stage["resumed"]]:
        raise UserError(
            f"plan.like={redact(run.uri)} was interrupted in the stage {resumed[0]}, so its time is not known; name a "
            "run that went through"
        )
    return {
        "job": held["job"],
        "settings": held["settings"],
        "source": {
            "rows": stages["features"]["rows_in"],
            "captions_per_row": stages["features"]["extra"]["pairs"] / stages["features"]["rows_out"],
            "classes": stages["describe"]["extra"]["classes"] if "describe" in stages else 0,
        },
        "devices": stages["features"]["devices"],
        "stages": {
            name: {key: stage.get(key) for key in ("seconds", "startup_seconds", "peak_bytes")}
            for name, stage in stages.items()
        },
    }


def _settings_of(held: Mapping[str, Any], where: str) -> Settings:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(KINDS[held["job"]]).validate_python(held["settings"])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"plan.like: {where} was made by another version of mmdd-ray; name another"
        ) from error


def _devices(settings: Settings) -> Devices:
    asked, run = settings.plan, settings.run
    if run.ray_address or os.environ.get("RAY_ADDRESS"):
        connect(run)
        found = devices()
    else:
        found = this_machine(run)
    return Devices(
        cpus=float(asked.cpus or max(found.cpus, run.max_cpus or 0)),
        gpus=float(max(found.gpus, run.max_gpus or 0) if asked.gpus is None else asked.gpus),
        gpu_types=found.gpu_types,
    )


# ---- whether it fits


def _driver_bytes(settings: Settings, source: Source) -> dict[str, float]:
    if isinstance(settings, Precompute):
        return {}
    evaluation: Evaluation = settings.evaluation
    px = settings.classifiers.image_px if isinstance(settings, Vlcp) else settings.students.image_px
    parts = len(evaluation.sources(settings.data))
    images: dict[str, float] = {"evaluation.max_pairs": parts * evaluation.max_pairs}
    if "full" in evaluation.baselines:
        images["evaluation.full_pairs"] = min(evaluation.full_pairs, source.rows)
    copies = 2 * 3 * px**2  # decoded, and in the object store
    held = {name: count * copies for name, count in images.items()}
    sets = count_sets(evaluation, without=["full"])
    setting, count = set_size(settings, source)
    return held | {setting: sets * count * 3 * px**2}  # those are decoded one by one


def _scratch_bytes(settings: Settings, source: Source) -> float:
    """What the driver keeps in its temporary folder: features that coresets and prompts are chosen by."""
    each = source.rows * clip_dim(settings.features.clip) * FEATURE_BYTES
    joint = {"herding", "k-center"} & set(getattr(getattr(settings, "evaluation", None), "baselines", ()))
    k_means = isinstance(settings, Edge) and settings.synthesis.prompts == "k-means"
    return max(2 * each if joint else 0, each * source.captions_per_row if k_means else 0)


def _check_fit(settings: Settings, plan: RunPlan) -> None:
    import psutil

    has = plan.devices
    for one in plan.stages:
        work = one.work
        wanted = getattr(getattr(settings, work.section, None), "min_actors", 1)
        if has.gpus and work.gpus_each * wanted > has.gpus:
            raise UserError(
                f"the stage {work.stage} needs {work.gpus_each * wanted:g} GPUs, but the cluster has at most "
                f"{has.gpus:g}; lower the actors or their share of a GPU in --{work.section}, or add machines"
            )
        workers = getattr(getattr(settings, work.section, None), "workers", 1)
        if work.section in ("finetune", "match", "refine") and workers > (
            fit := pool_size(None, work.gpus_each, has)
        ):
            raise UserError(
                f"{work.section}.workers={workers}, but the cluster has room for {fit}; lower it, or add machines"
            )
    memory = psutil.virtual_memory()
    alone = not (settings.run.ray_address or os.environ.get("RAY_ADDRESS"))
    for one in plan.stages:
        if alone and not has.gpus and one.peak_bytes and one.parallel * one.peak_bytes > memory.total:
            raise UserError(
                f"the stage {one.work.stage} would hold {one.peak_bytes / GIB:.1f} GiB in each of {one.parallel} "
                f"processes, but this machine has {memory.total / GIB:.1f} GiB; lower run.num_cpus, or the batches in "
                f"--{one.work.section}"
            )
    # the driver is this process, on a cluster too: that of a submitted job plans where it runs
    needed, free = sum(plan.driver_bytes.values()), memory.available
    if needed > free:
        largest = max(plan.driver_bytes, key=lambda name: plan.driver_bytes[name])
        raise UserError(
            f"the evaluation holds {needed / GIB:.1f} GiB in memory, most of it for {largest}, but this machine has "
            f"{free / GIB:.1f} GiB free; lower {largest}, or run on a larger machine"
        )
    if plan.scratch_bytes > (left := shutil.disk_usage(tempfile.gettempdir()).free):
        raise UserError(
            f"features to choose from take {plan.scratch_bytes / GIB:.1f} GiB in {tempfile.gettempdir()}, which has "
            f"{left / GIB:.1f} GiB left; set TMPDIR to another folder"
        )


# ---- for people


def render(plan: RunPlan) -> str:
    """The plan as text for a terminal of 100 columns."""
    source = plan.source
    count = f"{source.rows:,} pairs" if source.exact else f"about {source.rows:,} pairs"
    size = f", {_size(source.bytes)}" if source.bytes else ""
    lines = [
        f"source       {count} in {source.shards:,} shards{size}",
        f"             the first shard holds {source.holds}",
        f"machines     {_about(plan.devices)}",
        f"times        from {plan.figures}",
        "",
    ]
    rows = [["stage", "work", "at once", "time", "GPU-hours", "memory each", "reads", "writes"]]
    for one in plan.stages:
        work = one.work
        rows.append(
            [
                work.stage,
                f"{f'{work.times:,} × ' if work.times > 1 else ''}{work.units:,.0f} {work.unit}",
                f"{one.parallel:,}",
                "?" if one.seconds is None else duration(one.seconds),
                "" if not plan.devices.gpus else "?" if one.gpu_hours is None else f"{one.gpu_hours:,.1f}",
                _size(one.peak_bytes) if one.peak_bytes else "?" if work.batches else "",
                _size(work.times * work.passes * source.bytes) if source.bytes and work.passes else "",
                "?"
                if work.writes_bytes is None
                else _size(work.times * work.writes_bytes)
                if work.writes_bytes
                else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    lines.append("")
    unknown = [one.work for one in plan.stages if one.seconds is None]
    if plan.seconds is not None:
        lines.append(f"time         {duration(plan.seconds)}")
    else:
        lines.append("time         not known: nothing like it was measured, or not for long enough, of")
        lines += [f"             {work.stage}: {work.uses}" for work in unknown]
        lines.append(
            "             run it once on a small part (--data.limit), and name that run as --plan.like"
        )
    hours = [one.gpu_hours for one in plan.stages]
    if plan.devices.gpus and None not in hours:
        total = sum(filter(None, hours))
        price = f", {total * plan.gpu_hour_price:,.2f} at {plan.gpu_hour_price:g} an hour"
        lines.append(f"GPUs         {total:,.1f} GPU-hours{price if plan.gpu_hour_price else ''}")
    if source.bytes:
        read = sum(one.work.times * one.work.passes for one in plan.stages) * source.bytes
        lines.append(f"traffic      {_size(read)} read from the source")
    written = sum(one.work.times * (one.work.writes_bytes or 0) for one in plan.stages)
    unknown_bytes = any(one.work.writes_bytes is None for one in plan.stages)
    beside = ", beside the fine-tuned generator" if unknown_bytes else ""
    lines.append(f"storage      {_size(written)} in the run directory{beside}")
    if plan.driver_bytes:
        scratch = f", and {_size(plan.scratch_bytes)} in its TMPDIR" if plan.scratch_bytes else ""
        lines.append(
            f"memory       {_size(sum(plan.driver_bytes.values()))} on the machine of the driver{scratch}"
        )
    return "\n".join(lines)


def _about(devices: Devices) -> str:
    cpus = f"{devices.cpus:g} CPUs"
    return f"{cpus}, {devices.gpus:g} GPUs {'/'.join(devices.gpu_types)}".rstrip() if devices.gpus else cpus


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def planned_seconds(run: Store) -> dict[str, float]:
    """What the plan of a run said of each of its stages, where it said something: of one time that it is done."""
    stages = run.read_json(PLAN)["stages"] if run.exists(PLAN) else {}
    return {
        name: one["seconds"] / one.get("times", 1)
        for name, one in stages.items()
        if one["seconds"] is not None
    }
