"""Differences of sets in a report: students of one seed start alike. Needs no Ray and no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from mmdd_ray.evaluation.paired import ALL_EQUAL, LEAST, TOO_FEW, Paired, lack_of
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL

DRAWS, STUDENTS = "draws", "students"
SAME_SET = "same set"
"""Why there is no interval of the difference of two sets that are one."""
MADE_ONCE = (
    "{sets} {were} made once: intervals beside them hold the luck of students, and not that of making a set."
)


def differences(
    scores: Mapping[str, Mapping[str, Any]], prints: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences of the scores of two sets with their 95 % confidence intervals, by Student's t.

    Compared are all sets that are no baselines with each other and with the small baselines, as ``Compared`` has it:
    these are the differences that a report puts into words.

    Args:
        scores: Of each set, by metric, as ``spread.spread`` gives them.
        prints: Fingerprints of the draws of each set, as far as they are known.

    Returns:
        ``{set: {other: {"over": "students" or "draws", "count": ..., "paired": ..., "metrics": {metric: {"mean", "low",
        "high"}}}}}``,
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
    return [(ours, theirs) for place, ours in enumerate(given, 1) for theirs in (*given[place:], *baselines)]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], same: bool) -> dict[str, Any] | None:
    metrics: dict[str, dict[str, Any]] = {}
    for metric in ours:
        found = Compared.of(ours[metric], theirs[metric])
        if found.count < 2 and not same:
            return None
        metrics[metric] = found.interval(same)
    return {"over": found.over, "count": found.count, "paired": found.paired, "metrics": metrics}


def over_words(difference: Mapping[str, Any]) -> str:
    """The figures that a difference is over: "students" or "draws", "paired" before them where they are."""
    return f"paired {difference['over']}" if difference["paired"] else str(difference["over"])


@dataclass(frozen=True)
class Compared:
    """Two scores of one metric beside each other."""

    over: str
    """The figures that are compared: "draws", their means, or "students"."""
    count: int
    """How many a set has; where both have such figures, and not equally many, the smaller number."""
    paired: bool
    """Whether they are paired, by draw or by seed."""
    lack: str
    """Why they say nothing of their spread, in the words of ``lack_of``; empty where they do."""
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> "Compared":
        """Compares two scores, each as ``spread.spread`` gives it.

        Students of one draw have its luck in common, so a set that was drawn several times has one figure of each draw,
        the mean. Figures of one kind that are equally many are paired: by draw, or by the seed of the students.
        Otherwise, as beside a set that is drawn once, because it is always the same, the interval is Welch's.
        """
        (kind, ours_K), (other, theirs_R) = map(_figures, (ours, theirs))
        if kind != other or len(ours_K) != len(theirs_R):
            return cls.unpaired(ours, theirs)
        paired = Paired.of(ours_K, theirs_R)
        lack = lack_of(ours_K, theirs_R)
        return cls(kind, len(ours_K), True, lack, paired.mean, paired.low, paired.high)

    @classmethod
    def unpaired(cls, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> "Compared":
        """As ``of``, by Welch's interval, of scores whose draws or students have no seeds in common."""
        figures = (kind, ours_K), (other, theirs_R) = tuple(map(_figures, (ours, theirs)))
        over = DRAWS if DRAWS in (kind, other) else STUDENTS
        count = min(len(own) for own_kind, own in figures if own_kind == over)
        if min(len(ours_K), len(theirs_R)) < LEAST:
            return cls(over, count, False, TOO_FEW, ours["mean"] - theirs["mean"], -inf, inf)
        apart = Paired.welch(ours_K, theirs_R)
        lack = ALL_EQUAL if apart.low == apart.high else ""
        return cls(over, count, False, lack, apart.mean, apart.low, apart.high)

    def interval(self, same: bool = False) -> dict[str, Any]:
        """Mean of the difference, and ``low`` and ``high`` of its interval, or ``lack``, why there is none.

        Args:
            same: Whether both sets are one, so that there is nothing to tell apart.
        """
        if lack := SAME_SET if same else self.lack:
            return {"mean": self.mean, "low": None, "high": None, "lack": lack}
        return {"mean": self.mean, "low": self.low, "high": self.high}


def _figures(score: Mapping[str, Any]) -> tuple[str, Sequence[float]]:
    """The independent figures of a score, and their kind."""
    return (DRAWS, score["draw_means"]) if "draw_means" in score else (STUDENTS, score["runs"])
