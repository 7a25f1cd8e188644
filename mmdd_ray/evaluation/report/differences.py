"""Paired differences of sets in a report: students of one seed start alike. Needs no Ray and no torch."""

# K draws of a set, S students of each

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmdd_ray.evaluation.paired import Paired, lack_of
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL

DRAWS, STUDENTS = "draws", "students"
SAME_SET = "same set"
"""Why there is no interval of the difference of two sets that are one."""


def differences(
    scores: Mapping[str, Mapping[str, Any]], prints: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences of the scores of two sets with their 95 % confidence intervals, by Student's t.

    Compared are the first set with every other small one, and all sets that are no baselines with each other. Means of
    draws are paired where both sets have as many draws, several; otherwise students by their seeds, each the mean over
    the draws of its set.

    Args:
        scores: Of each set, by metric, as ``spread.spread`` gives them.
        prints: Fingerprints of the draws of each set, as far as they are known.

    Returns:
        ``{set: {other: {"over": "students" or "draws", "count": ..., "metrics": {metric: {"mean", "low", "high"}}}}}``,
        differences of set − other in the unit of the scores. Where the pairs say nothing of their spread, ``low`` and
        ``high`` are None and ``lack`` says why, in the words of ``lack_of``, or `SAME_SET` where both sets have equal
        fingerprints. Pairs of a single figure are left out, unless the sets are the same.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for ours, theirs in _compared(list(scores)):
        if difference := _difference(scores[ours], scores[theirs], are_same(ours, theirs, prints or {})):
            found.setdefault(ours, {})[theirs] = difference
    return found


def are_same(ours: str, theirs: str, prints: Mapping[str, Sequence[str]]) -> bool:
    """Whether two sets have the same pairs in every draw; not where their fingerprints are not known."""
    return bool(prints.get(ours)) and prints[ours] == prints.get(theirs)


def _compared(names: Sequence[str]) -> list[tuple[str, str]]:
    given = [name for name in names if name not in (*BASELINES, CHANCE)]
    baselines = [name for name in names if name in BASELINES and name != FULL]
    pairs = list(combinations(given, 2))
    beside_first = len(given) - 1  # the first set's pairs come first
    return [*pairs[:beside_first], *((given[0], name) for name in baselines if given), *pairs[beside_first:]]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], same: bool) -> dict[str, Any] | None:
    metrics: dict[str, dict[str, Any]] = {}
    over, count = STUDENTS, 0
    for metric in ours:
        over, ours_S, theirs_S = paired_figures(ours[metric], theirs[metric])
        count = len(ours_S)
        if count != len(theirs_S) or (count < 2 and not same):
            return None
        metrics[metric] = interval_of(ours_S, theirs_S, same)
    return {"over": over, "count": count, "metrics": metrics}


def interval_of(ours_S: Sequence[float], theirs_S: Sequence[float], same: bool = False) -> dict[str, Any]:
    """Mean of the paired differences, and ``low`` and ``high`` of its interval, or ``lack``, why there is none.

    Args:
        same: Whether both sets are one, so that there is nothing to tell apart.
    """
    paired = Paired.of(ours_S, theirs_S)
    if lack := SAME_SET if same else lack_of(ours_S, theirs_S):
        return {"mean": paired.mean, "low": None, "high": None, "lack": lack}
    return {"mean": paired.mean, "low": paired.low, "high": paired.high}


def paired_figures(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, list[float], list[float]]:
    """The figures of two scores that are paired, and whether they are of "draws" or "students"; not equally many where
    none fit."""
    ours_K, theirs_K = (list(score.get("draw_means", ())) for score in (ours, theirs))
    if len(ours_K) == len(theirs_K) > 1:
        return DRAWS, ours_K, theirs_K
    return STUDENTS, _by_seed(ours), _by_seed(theirs)


def _by_seed(score: Mapping[str, Any]) -> list[float]:
    """The score of each student, the mean over the draws of its set."""
    draws = len(score.get("draw_means", (0,)))
    runs: list[float] = np.array(score["runs"], np.float64).reshape(draws, -1).mean(axis=0).tolist()
    return runs
