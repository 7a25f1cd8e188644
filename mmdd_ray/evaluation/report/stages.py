"""Rows, time, memory and cost of each stage of a run, beside what was planned. Needs no Ray and no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.engine.run_dir import MANIFEST
from mmdd_ray.evaluation.report.words import AUDIT_STAGE, BASELINES, FULL
from mmdd_ray.features.rejects import REJECTS
from mmdd_ray.planning.costs import planned_as
from mmdd_ray.storage.store import Store

SECONDS_AN_HOUR = 3600
REJECTS_SHOWN = 3
"""Rows that are named for each reason."""
COMPARING = ("evaluate", AUDIT_STAGE, "coresets", "teacher", "set")
"""Stages that no distilled set needs; "coresets" is what its baselines take."""


def stage_manifests(run: Store, folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Manifests of the finished stages in their order; that of the distilled set is none of them.

    Args:
        folders: Prefixes of the draws in the run directory; the first is empty.
    """
    names = [
        f"{folder}{name}/{MANIFEST}"
        for folder in folders
        for name in (run.child(folder) if folder else run).entries()
    ]
    found = [manifest for name in names if run.exists(name) and "stage" in (manifest := run.read_json(name))]
    return {manifest["stage"]: manifest for manifest in sorted(found, key=lambda m: m["finished"])}


def beside_plan(
    stages: Mapping[str, Any], planned: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Rows, seconds, bytes of memory and GPU-hours of each stage, beside those that were planned.

    GPU-hours are the seconds of a stage times the GPUs that the plan gives to it, because a run pays for GPUs that it
    holds, whether they are busy or not.

    Args:
        planned: What `plan.planned_stages` gives.
    """
    return {name: _beside_plan(one, planned.get(planned_as(name), {})) for name, one in stages.items()}


def _beside_plan(manifest: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, Any]:
    gpus = planned.get("gpus")
    return {
        **{key: manifest[key] for key in ("rows_in", "rows_out", "seconds", "resumed")},
        "peak_bytes": manifest.get("peak_bytes"),
        "gpu_hours": None if gpus is None else manifest["seconds"] * gpus / SECONDS_AN_HOUR,
        "planned_seconds": planned.get("seconds"),
        "planned_peak_bytes": planned.get("peak_bytes"),
        "planned_gpu_hours": planned.get("gpu_hours"),
    }


def totals(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Seconds and GPU-hours of all stages of a report; None where those of a stage are not known.

    A stage that was planned as next to nothing has no figures of the plan, and counts as nothing there.
    """
    planned = [one for one in stages.values() if one["gpu_hours"] is not None]
    found: dict[str, float | None] = {"seconds": sum(one["seconds"] for one in stages.values())}
    for name in ("gpu_hours", "planned_seconds", "planned_gpu_hours"):
        values = [one[name] for one in planned]
        found[name] = sum(values) if values and None not in values else None
    return found


def all_rejects(stages: Mapping[str, Any]) -> dict[str, int]:
    """Refused rows of all stages by reason, the most frequent first."""
    counts = (Counter[str](manifest["rejects"]) for manifest in stages.values())
    return dict(sum(counts, Counter[str]()).most_common())


def reject_examples(run: Store) -> dict[str, list[str]]:
    """Shard and key of the first refused rows of each reason; a row whose damage hid its key has none."""
    if not run.exists(REJECTS):
        return {}
    found: dict[str, list[str]] = {}
    table = run.read_parquet(REJECTS, ["shard", "key", "reason"])
    for shard, key, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
        named = found.setdefault(reason, [])
        if len(named) < REJECTS_SHOWN:
            named.append(f"{shard}/{key or '(no key)'}")
    return found


def seconds_of_sets(stages: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, float]:
    """Seconds that the run took to make each set whose time is known: its distilled set, and coresets.

    The features that each of them needs are counted for each. A set with a stage that was resumed is left out, because
    only the time of the last attempt is known.

    Args:
        stages: Manifests by name; those of further draws lie in folders and are not counted.
        ours: The distilled set.
    """
    own = {name: one for name, one in stages.items() if "/" not in name}
    making = [one for name, one in own.items() if name not in COMPARING]
    found = {} if any(one["resumed"] for one in making) else {ours: sum(one["seconds"] for one in making)}
    features, coresets = own.get("features"), own.get("coresets")
    if features and coresets and not (features["resumed"] or coresets["resumed"]):
        for name, seconds in coresets["extra"].get("seconds", {}).items():
            found[name] = features["seconds"] + seconds
    return found


def untimed_sets(stages: Mapping[str, Mapping[str, Any]], ours: str, sets: Sequence[str]) -> dict[str, str]:
    """Why the time to make a set is not known, for each of ``sets`` that ``seconds_of_sets`` leaves out; "random" and
    "full" take no time.

    Args:
        stages: As for ``seconds_of_sets``, as is ``ours``.
    """
    known = seconds_of_sets(stages, ours)
    own = {name: one for name, one in stages.items() if "/" not in name}
    choosing = {name: own[name] for name in ("features", "coresets") if name in own}
    making = {name: one for name, one in own.items() if name not in COMPARING}
    found = {}
    for name in sets:
        if name in known or name in ("random", FULL):
            continue
        needed = making if name == ours else choosing if name in BASELINES else {}
        resumed = [stage for stage, one in needed.items() if one["resumed"]]
        several = "s" if len(resumed) > 1 else ""
        found[name] = (
            f"the run was resumed in the stage{several} {', '.join(resumed)}"
            if resumed
            else "the run did not measure it"
        )
    return found


def merged(parts: Any) -> dict[str, Any]:
    """One value for each name; several in order, where a resumed run met different ones."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, value in part.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
