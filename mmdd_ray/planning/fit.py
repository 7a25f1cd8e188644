"""Whether a planned run fits on the machines."""

import os
import shutil
import tempfile
from collections.abc import Sequence

from mmdd_ray.config import RunSettings, Training
from mmdd_ray.engine.cluster import pool_size
from mmdd_ray.errors import UserError
from mmdd_ray.planning.memory import CONTEXT_BYTES
from mmdd_ray.planning.run_plan import RunPlan

GIB = 2**30
GPU_GIB = {
    "T4": 15,
    "V100": 16,
    "A10G": 22,
    "L4": 22,
    "A100": 39,
    "A100-40G": 39,
    "L40S": 44,
    "A100-80G": 79,
    "H100": 79,
    "H200": 140,
}
"""Usable memory of GPUs by Ray's names, in GiB, rounded down."""


def smallest_gpu_gib(kinds: Sequence[str]) -> float | None:
    """Memory of the smallest of these GPUs, in GiB; None if there is none, or one is not known.

    Some clusters name a card twice, "A100" and "A100-80G": then the second name counts.
    """
    plain = {kind.partition("-")[0] for kind in kinds if "-" in kind}
    sizes = [GPU_GIB.get(kind) for kind in kinds if kind not in plain]
    return None if not sizes or None in sizes else min(filter(None, sizes))


def check_fit(settings: RunSettings, plan: RunPlan) -> None:
    """Looks at GPUs, memory, and the temporary folder.

    Raises:
        UserError: One of them is too small, in a sentence that names the setting to change.
    """
    import psutil

    has = plan.devices
    for one in plan.stages:
        cost = one.cost
        wanted = getattr(getattr(settings, cost.section, None), "min_actors", 1)
        if has.gpus and cost.gpus_each * wanted > has.gpus:
            raise UserError(
                f"the stage {cost.stage} needs {cost.gpus_each * wanted:g} GPUs, but the cluster has at most "
                f"{has.gpus:g}; lower the actors or their share of a GPU in --{cost.section}, or add machines"
            )
        training = getattr(settings, cost.section, None)
        fit = pool_size(None, cost.gpus_each, has)
        if isinstance(training, Training) and training.workers > fit:
            raise UserError(
                f"{cost.section}.workers={training.workers}, but the cluster has room for {fit}; lower it, or add "
                "machines"
            )
    check_gpus(plan)
    memory = psutil.virtual_memory()
    alone = not (settings.run.ray_address or os.environ.get("RAY_ADDRESS"))
    for one in plan.stages:
        if alone and not has.gpus and one.peak_bytes and one.parallel * one.peak_bytes > memory.total:
            raise UserError(
                f"the stage {one.cost.stage} would hold {one.peak_bytes / GIB:.1f} GiB in each of {one.parallel} "
                f"processes, but this machine has {memory.total / GIB:.1f} GiB; lower run.num_cpus, or the batches in "
                f"--{one.cost.section}"
            )
    # the driver is this process, on a cluster too: that of a submitted job plans where it runs
    needed, free = sum(plan.driver_bytes.values()), memory.available
    if needed > free:
        largest = max(plan.driver_bytes, key=lambda name: plan.driver_bytes[name])
        raise UserError(
            f"the driver holds {needed / GIB:.1f} GiB in memory, most of it for {largest}, but this machine has "
            f"{free / GIB:.1f} GiB free; lower {largest}, or run on a larger machine"
        )
    if plan.scratch_bytes > (left := shutil.disk_usage(tempfile.gettempdir()).free):
        raise UserError(
            f"features to choose from take {plan.scratch_bytes / GIB:.1f} GiB in {tempfile.gettempdir()}, which has "
            f"{left / GIB:.1f} GiB left; set TMPDIR to another folder"
        )


def check_gpus(plan: RunPlan) -> None:
    """Looks whether the processes that share a GPU, or have one, hold more than it has.

    Raises:
        UserError: Those of a stage do.
    """
    if plan.gpu_gib is None:
        return
    for one in plan.stages:
        if not one.gpus_each or not one.peak_bytes:
            continue
        sharing = min(max(int(1 / one.gpus_each + 1e-6), 1), one.parallel)
        held = (one.peak_bytes + (0 if one.counted else CONTEXT_BYTES)) / GIB
        if sharing * held > plan.gpu_gib:
            share = (
                f"{sharing} processes at {one.gpus_each:g} of a GPU take"
                if sharing > 1
                else "a process takes"
            )
            fits = int(plan.gpu_gib // held)
            advice = f"give each {1 / fits:.2g} of a GPU, or " if fits else ""
            raise UserError(
                f"the stage {one.cost.stage} does not fit: {share} {sharing * held:.1f} GiB, but a GPU has "
                f"{plan.gpu_gib:g} GiB; {advice}lower its batches ({one.cost.batches}) in --{one.cost.section}, or say "
                "how much a GPU has as --plan.gpu_gib"
            )
