"""The figures of sets under one protocol, from the results of their students; no Ray."""

# K draws of a set, S students of each

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from mmdd_ray.evaluation.spread import spread
from mmdd_ray.evaluation.tasks.task import Task

CURVE_POINTS = 100  # of a reported loss curve

Result = dict[str, Any]
"""The figures of one student, as ``bench.Bench`` keeps them."""


def about_protocol(task: Task, learning_rates: Sequence[float]) -> dict[str, Any]:
    """The protocol of a panel, as a report has it."""
    protocol = task.protocol
    rates = " or ".join(f"{rate:g}" for rate in learning_rates)
    if protocol.is_published:
        chosen = f"learning rate {rates}, as published; figures after the last step"
    elif len(learning_rates) > 1:
        chosen = f"learning rate of each set ({rates}) by its figures on validation data; figures after the last step"
    else:
        chosen = f"learning rate {rates} for all sets; figures after the last step"
    return {
        "name": protocol.shown_name(task.image_px),
        "version": protocol.version,
        "source": protocol.source,
        "summary": protocol.summary,
        "chosen": chosen,
        "differs": list(protocol.differs),
        "unsure": list(protocol.unsure),
        "published": protocol.is_published,
    }


def best_rate(on_val: Sequence[Sequence[Result]], metric: str) -> float:
    """The learning rate with the best mean on validation data, the first of equals."""
    means = _val_means(on_val, metric)
    return max(means, key=lambda rate: means[rate])


def summary(
    on_val: Sequence[Sequence[Result]], on_test: Sequence[Sequence[Result]], task: Task
) -> dict[str, Any]:
    """One set's part of the report, but for its size; results are those of each draw."""
    first, metric = on_test[0][0], task.main_metric
    last = [[result["metrics"] for result in results] for results in on_test]
    looks = [result["looks"] for results in on_test for result in results]
    best = None
    if task.protocol.is_published:
        best = _spreads([[_best_look(result, metric) for result in results] for results in on_test])
    return {
        "draws": len(on_test),
        "learning_rate": first["learning_rate"],
        "on_val": {str(rate): mean for rate, mean in _val_means(on_val, metric).items()},
        "metrics": _spreads(last),
        "best_look": best,
        "looks": [
            {"steps": at[0]["steps"], metric: float(np.mean([one["metrics"][metric] for one in at]))}
            for at in zip(*looks, strict=True)
        ],
        "loss_curve": first["loss_curve"],
        "loss": first.get("loss"),
        "steps": first["steps"],
        "images_seen": first["images_seen"],
        "seconds": round(sum(result["seconds"] for results in [*on_val, *on_test] for result in results), 3),
    }


def loss_curve(losses: np.ndarray) -> list[float | None]:
    """At most 100 means over equal slices of the steps, None where training diverged."""
    slices = np.array_split(losses.astype(np.float64), min(len(losses), CURVE_POINTS))
    means = [float(part.mean()) for part in slices]
    return [mean if isfinite(mean) else None for mean in means]  # JSON has no NaN


def training_notes(on_test: Sequence[Sequence[Result]]) -> list[str]:
    """How students took a set, and the learning rates that were learnt with its draws; older students say nothing."""
    found = [note for results in on_test for result in results for note in result.get("notes", ())]
    rates = [learnt for results in on_test if (learnt := results[0].get("learnt_rates"))]
    if rates:
        each = "; ".join(f"{image:.3g} and {text:.3g}" for image, text in rates)
        found.append(
            f"its students had the learning rates that were learnt with it, of images and texts: {each}"
        )
    return [*dict.fromkeys(found)]


def _val_means(on_val: Sequence[Sequence[Result]], metric: str) -> dict[float, float]:
    """The metric of each learning rate on validation data, mean over the draws of a set."""
    return {
        of_rate[0]["learning_rate"]: float(np.mean([result["metrics"][metric] for result in of_rate]))
        for of_rate in zip(*on_val, strict=True)
    }


def _best_look(result: Result, metric: str) -> dict[str, float]:
    """All metrics of a student at the look where the deciding one was best, the first of equals."""
    return max(
        [one["metrics"] for one in result["looks"]] or [result["metrics"]], key=lambda one: one[metric]
    )


def _spreads(metrics_KS: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """`spread` of each metric of the students of each draw."""
    return {
        name: spread([[metrics[name] for metrics in students] for students in metrics_KS])
        for name in metrics_KS[0][0]
    }
