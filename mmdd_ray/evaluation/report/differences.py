"""Paired differences of sets in a report: students of one seed start alike. Needs no Ray and no torch."""

# K draws of a set, S students of each

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmdd_ray.evaluation.paired import Paired
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL

DRAWS, STUDENTS = "draws", "students"


def differences(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences of the scores of two sets with their 95 % confidence intervals, by Student's t.

    Compared are the first set with every other small one, and all sets that are no baselines with each other. Means of
    draws are paired where both sets have as many draws, several; otherwise students by their seeds, each the mean over
    the draws of its set.

    Args:
        scores: Of each set, by metric, as ``spread.spread`` gives them.

    Returns:
        ``{set: {other: {"over": "students" or "draws", "count": ..., "metrics": {metric: {"mean", "low", "high"}}}}}``,
        differences of set − other in the unit of the scores. Pairs of a single figure are left out, because it has no
        interval.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for ours, theirs in _compared(list(scores)):
        if difference := _difference(scores[ours], scores[theirs]):
            found.setdefault(ours, {})[theirs] = difference
    return found


def _compared(names: Sequence[str]) -> list[tuple[str, str]]:
    given = [name for name in names if name not in (*BASELINES, CHANCE)]
    baselines = [name for name in names if name in BASELINES and name != FULL]
    pairs = list(combinations(given, 2))
    beside_first = len(given) - 1  # the first set's pairs come first
    return [*pairs[:beside_first], *((given[0], name) for name in baselines if given), *pairs[beside_first:]]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    metrics: dict[str, dict[str, float]] = {}
    over, count = STUDENTS, 0
    for metric in ours:
        over, ours_S, theirs_S = _paired_figures(ours[metric], theirs[metric])
        count = len(ours_S)
        if count != len(theirs_S) or count < 2:
            return None
        paired = Paired.of(ours_S, theirs_S)
        metrics[metric] = {"mean": paired.mean, "low": paired.low, "high": paired.high}
    return {"over": over, "count": count, "metrics": metrics}


def _paired_figures(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, list[float], list[float]]:
    ours_K, theirs_K = (list(score.get("draw_means", ())) for score in (ours, theirs))
    if len(ours_K) == len(theirs_K) > 1:
        return DRAWS, ours_K, theirs_K
    return STUDENTS, _by_seed(ours), _by_seed(theirs)


def _by_seed(score: Mapping[str, Any]) -> list[float]:
    """The score of each student, the mean over the draws of its set."""
    draws = len(score.get("draw_means", (0,)))
    runs: list[float] = np.array(score["runs"], np.float64).reshape(draws, -1).mean(axis=0).tolist()
    return runs
