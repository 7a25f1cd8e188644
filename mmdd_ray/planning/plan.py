"""The cost of a run, before it starts: work, time, GPU-hours, traffic and memory of each stage.

Where the memory of GPUs is counted, torch is imported for it.

A method says what each of its stages costs. Times are those of an earlier run whose stages used the same models in
the same way, scaled to the work: what a stage took to start stays, the rest grows with the work and shrinks with the
actors. Memory is what the largest process of a stage held there, if its batches were the same. Where no such run on
devices of the same kind is known, there is no time, and the memory of a GPU is counted.
"""

import os
from collections.abc import Mapping
from typing import Any

from mmdd_ray.config import Evaluation, RunSettings, judged_by
from mmdd_ray.data.inventory import Source, require_rows
from mmdd_ray.engine.cluster import Devices, connect, devices, this_machine
from mmdd_ray.engine.draws import count_sets
from mmdd_ray.planning.costs import FEATURE_BYTES, GREEDY, StageCost, clip_dim, counted_bytes
from mmdd_ray.planning.fit import check_fit, smallest_gpu_gib
from mmdd_ray.planning.reference import Timed, reference_times
from mmdd_ray.planning.run_plan import Planned, RunPlan, StagePlan, parallel_of
from mmdd_ray.planning.show import render
from mmdd_ray.storage.store import Store

PLAN = "plan.json"


def plan_run(
    settings: RunSettings, method: Planned, devices: Devices, jobs: Mapping[str, Planned]
) -> RunPlan:
    """The plan of a run with these settings on machines like these.

    Args:
        jobs: All jobs by name, of which the run that is planned by may be another one.

    Raises:
        UserError: `plan.like` is no run to plan by, or the source cannot be read, or is known to be too small.
    """
    source = method.look(settings)
    if source.exact:
        require_rows(source.rows, method.needs(settings), settings.data.uri)
    times, figures = reference_times(settings, method.job, jobs)
    stages = [_stage_plan(cost, devices, times.get(cost.like)) for cost in method.costs(settings, source)]
    driver_bytes, scratch_bytes = _driver_bytes(settings, source, method), _scratch_bytes(settings, source)
    return RunPlan(
        source,
        devices,
        figures,
        stages,
        driver_bytes,
        scratch_bytes,
        settings.plan.gpu_hour_price,
        gpu_gib=settings.plan.gpu_gib or smallest_gpu_gib(devices.gpu_types),
    )


def show_plan(settings: RunSettings, method: Planned, jobs: Mapping[str, Planned]) -> str:
    """The plan as people see it; joins a cluster if the run would.

    Raises:
        UserError: as ``plan_run``; or the run cannot fit, in a sentence that names the setting to change.
    """
    plan = plan_run(settings, method, _devices(settings), jobs)
    check_fit(settings, plan)
    return render(plan)


def _stage_plan(cost: StageCost, devices: Devices, time: Timed | None) -> StagePlan:
    parallel, gpus = parallel_of(cost, devices), cost.gpus_each if devices.gpus else 0.0
    seconds = measured = None
    if time is not None and time.uses == cost.uses and time.is_of(gpus, devices.gpu_types):
        if time.tells_of(cost.units):
            seconds = cost.times * (time.startup_seconds + time.seconds_a_unit * cost.units / parallel)
        measured = time.peak_bytes if time.batches == cost.batches else None
    counted = counted_bytes(cost) if gpus and measured is None else None
    return StagePlan(cost, parallel, seconds, gpus, measured or counted, counted is not None)


def _devices(settings: RunSettings) -> Devices:
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


def _driver_bytes(settings: RunSettings, source: Source, method: Planned) -> dict[str, float]:
    evaluation: Evaluation | None = getattr(settings, "evaluation", None)
    if evaluation is None:
        return {}
    px = judged_by(settings).image_px
    tests = (evaluation.zero_shot, evaluation.compositional)
    parts = len(evaluation.sources(settings.data)) + sum(uri is not None for uri in tests)
    images: dict[str, float] = {"evaluation.max_pairs": parts * evaluation.max_pairs}
    if "full" in evaluation.baselines:
        images["evaluation.full_pairs"] = min(evaluation.full_pairs, source.rows)
    copies = 2 * 3 * px**2  # decoded, and in the object store
    at_once = {name: count * copies for name, count in images.items()}
    sets = count_sets(evaluation, without=["full"])
    setting, count = method.size(settings, source)
    distilled = {setting: sets * count * 3 * px**2}  # those are decoded one by one
    return at_once | distilled | dict(method.holds(settings, source))


def _scratch_bytes(settings: RunSettings, source: Source) -> float:
    """Bytes that the driver keeps in its temporary folder: features that coresets and prompts are chosen by."""
    each = source.rows * clip_dim(settings.features.clip) * FEATURE_BYTES
    joint = {*GREEDY} & set(getattr(getattr(settings, "evaluation", None), "baselines", ()))
    k_means = getattr(getattr(settings, "synthesis", None), "prompts", "") == "k-means"
    return max(2 * each if joint else 0, each * source.captions_per_row if k_means else 0)


def planned_stages(run: Store) -> dict[str, dict[str, Any]]:
    """Each stage by the plan of a run, for one repetition: `seconds`, `gpus` that it holds, `gpu_hours` and
    `peak_bytes` of a process; None where the plan did not know them. Empty where the run has no plan."""
    stages = run.read_json(PLAN)["stages"] if run.exists(PLAN) else {}
    return {
        name: {key: one.get(key) for key in ("gpus", "peak_bytes")}
        | {
            key: None if one[key] is None else one[key] / one.get("times", 1)
            for key in ("seconds", "gpu_hours")
        }
        for name, one in stages.items()
    }
