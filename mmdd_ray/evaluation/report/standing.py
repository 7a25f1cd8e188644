"""How a set compares with its baselines, in words. Needs no Ray and no torch."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from scipy.special import stdtrit

from mmdd_ray.evaluation.paired import ALL_EQUAL, ALL_ZERO, CONFIDENCE, LEAST, TOO_FEW, Paired, lack_of
from mmdd_ray.evaluation.report.differences import paired_figures

SAME = "same"  # both sets have the very same pairs
ABOVE, LEVEL, BELOW = "above", "level", "below"
HIGHER, EQUAL, LOWER = "higher", "equal", "lower"  # where nothing is known of the spread
WORDS = {
    ABOVE: "above",
    HIGHER: "higher than",
    SAME: "the same set as",
    LEVEL: "within the spread of",
    EQUAL: "equal to",
    BELOW: "below",
    LOWER: "lower than",
}
"""How a sentence puts them, in its order."""


def standing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Where a score stands beside another one; each is one that ``spread.spread`` gives.

    ``ABOVE`` or ``BELOW`` where the 95 % confidence interval of the difference leaves out 0, ``LEVEL`` where not.
    The interval is that of the table of differences, over paired draws or students. Where these are not equally many,
    it is Welch's (Biometrika 34, 1947): the combined standard error times a quantile of Student's t, with the degrees
    of freedom of Welch and Satterthwaite. The deviation is then that of the means of draws where a set was drawn
    several times, because students of one draw have its luck in common; otherwise that of students. Where figures say
    nothing of the spread, as fewer than `LEAST` do, ``HIGHER``, ``EQUAL`` or ``LOWER`` tell of the means alone.
    """
    difference = ours["mean"] - theirs["mean"]
    by_mean = HIGHER if difference > 0 else LOWER if difference < 0 else EQUAL
    _, ours_S, theirs_S = paired_figures(ours, theirs)
    if len(ours_S) == len(theirs_S):
        if lack := lack_of(ours_S, theirs_S):
            return EQUAL if lack == ALL_ZERO else by_mean
        paired = Paired.of(ours_S, theirs_S)
        return ABOVE if paired.low > 0 else BELOW if paired.high < 0 else LEVEL
    if min(_deviation(ours)[1], _deviation(theirs)[1]) < LEAST:
        return by_mean
    if abs(difference) <= _margin(ours, theirs):
        return LEVEL
    return ABOVE if difference > 0 else BELOW


def about_spread(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why nothing is known of the spread of the difference of two scores; empty where all differences are 0."""
    over, ours_S, theirs_S = paired_figures(ours, theirs)
    count = min(len(ours_S), len(theirs_S))
    lack = lack_of(ours_S, theirs_S) if len(ours_S) == len(theirs_S) else TOO_FEW
    if lack == ALL_ZERO:
        return ""
    if lack == ALL_EQUAL:
        return f"{count} equal differences say nothing about the spread"
    if count == 1:
        return f"single {over} say nothing about the spread"
    return f"{count} {over} say too little about the spread"


def _deviation(score: Mapping[str, Any]) -> tuple[float, int]:
    """The sample deviation of the independent figures behind a mean, and their number."""
    if "draw_means" in score:
        return score["std_between_draws"], len(score["draw_means"])
    return score["std"], len(score["runs"])


def _margin(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Half the width of the confidence interval of the difference."""
    deviations = [_deviation(score) for score in (ours, theirs)]
    freedoms = [count - 1 for _, count in deviations]
    variances = [std**2 / count for std, count in deviations]  # of the two means
    combined = sum(variances)
    if combined == 0:
        return 0.0
    # divided before it is squared, which would underflow
    shares = [variance / combined for variance in variances]
    freedom = 1 / sum(share**2 / own for share, own in zip(shares, freedoms, strict=True))
    return sqrt(combined) * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def sentence(subject: str, standings: Mapping[str, str], doubt: str = "") -> str:
    """``EDGE is above random real pairs and herding, and below k-center.``

    Args:
        standings: The result of ``standing`` by baseline, named as a sentence names it; at least one.
        doubt: A clause on what is not known.
    """
    groups = {word: [name for name, own in standings.items() if own == word] for word in WORDS}
    groups = {word: names for word, names in groups.items() if names}
    if len(groups) == 1 and len(standings) > 1:
        ((word, names),) = groups.items()
        words = f"{WORDS[word]} all its baselines: {listed(names)}"
    else:
        clauses = [f"{WORDS[word]} {listed(names)}" for word, names in groups.items()]
        words = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
    return f"{subject} is {words}{f'; {doubt}' if doubt else ''}."


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; of one name at least."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
