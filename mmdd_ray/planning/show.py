"""A plan as people see it."""

import math

from mmdd_ray.engine.progress import duration
from mmdd_ray.planning.costs import StageCost
from mmdd_ray.planning.reference import FARTHEST, STEADY_SECONDS
from mmdd_ray.planning.run_plan import RunPlan, StagePlan, about


def render(plan: RunPlan) -> str:
    """The plan as text for a terminal of 100 columns."""
    source = plan.source
    count = f"{'' if source.exact else 'about '}{_counted(source.rows, 'pair')}"
    size = f", {_size(source.bytes)}" if source.bytes else ""
    lines = [
        f"source       {count} in {_counted(source.shards, 'shard')}{size}",
        f"             the first shard holds {source.holds}",
        f"machines     {about(plan.devices)}",
        f"times        from {plan.figures}",
        "",
    ]
    rows = _rows(plan)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join([*lines, "", *_totals(plan)])


def _rows(plan: RunPlan) -> list[list[str]]:
    """The table of the stages, its head first."""
    source = plan.source
    rows = [["stage", "work", "at once", "time", "GPU-hours", "memory each", "reads", "writes"]]
    for one in plan.stages:
        cost = one.cost
        rows.append(
            [
                cost.stage,
                f"{f'{cost.times:,} × ' if cost.times > 1 else ''}{cost.units:,.0f} {cost.unit}",
                f"{one.parallel:,}",
                "?" if one.seconds is None else duration(one.seconds),
                "" if not plan.devices.gpus else "?" if one.gpu_hours is None else f"{one.gpu_hours:,.1f}",
                _memory(one) or ("?" if cost.batches else ""),
                _size(cost.times * cost.passes * source.bytes) if source.bytes and cost.passes else "",
                "?"
                if cost.writes_bytes is None
                else _size(cost.times * cost.writes_bytes)
                if cost.writes_bytes
                else "",
            ]
        )
    return rows


def _totals(plan: RunPlan) -> list[str]:
    """Time, money, traffic and memory of the whole run."""
    source, lines = plan.source, list[str]()
    unknown = [one.cost for one in plan.stages if one.seconds is None]
    if plan.seconds is not None:
        lines.append(f"time         {duration(plan.seconds)}")
    else:
        lines.append(
            "time         not known: nothing like it was measured on devices of this kind, or not for long enough, of"
        )
        lines += [f"             {cost.stage}: {cost.uses}; {_sample(cost)}" for cost in unknown]
        lines.append(
            "             run it once on a small part (--data.limit), and name that run as --plan.like"
        )
    hours = [one.gpu_hours for one in plan.stages]
    if plan.devices.gpus and None not in hours:
        total = sum(filter(None, hours))
        price = f", {total * plan.gpu_hour_price:,.2f} at {plan.gpu_hour_price:g} an hour"
        lines.append(f"GPUs         {total:,.1f} GPU-hours{price if plan.gpu_hour_price else ''}")
    if source.bytes:
        read = sum(one.cost.times * one.cost.passes for one in plan.stages) * source.bytes
        lines.append(f"traffic      {_size(read)} read from the source")
    written = sum(one.cost.times * (one.cost.writes_bytes or 0) for one in plan.stages)
    silent = [one.cost.stage for one in plan.stages if one.cost.writes_bytes is None]
    beside = f", beside what {' and '.join(silent)} writes" if silent else ""
    lines.append(f"storage      {_size(written)} in the run directory{beside}")
    if plan.driver_bytes:
        scratch = f", and {_size(plan.scratch_bytes)} in its TMPDIR" if plan.scratch_bytes else ""
        lines.append(
            f"memory       {_size(sum(plan.driver_bytes.values()))} on the machine of the driver{scratch}"
        )
    return lines


def _memory(stage: StagePlan) -> str:
    return f"{'about ' if stage.counted else ''}{_size(stage.peak_bytes)}" if stage.peak_bytes else ""


def _sample(cost: StageCost) -> str:
    """How long a run to plan by has to do this."""
    least = math.ceil(cost.units / FARTHEST)
    return f"takes {STEADY_SECONDS} s of work{f' and {least:,} {cost.unit}' if least > 1 else ''} to know"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
