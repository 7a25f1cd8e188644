"""How a set compares with its baselines, in words. Needs no Ray and no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.evaluation.paired import ALL_EQUAL, ALL_ZERO, ROUNDING
from mmdd_ray.evaluation.report.differences import Compared

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

    ``ABOVE`` or ``BELOW`` where the 95 % confidence interval of the difference, that of the table of differences
    (``Compared``), leaves out 0, ``LEVEL`` where not. Where figures say nothing of the spread, as fewer than `LEAST`
    do, ``HIGHER``, ``EQUAL`` or ``LOWER`` tell of the means alone.
    """
    found = Compared.of(ours, theirs)
    if found.lack:
        if abs(found.mean) <= ROUNDING * max(ours["mean"], theirs["mean"]):
            return EQUAL
        return HIGHER if found.mean > 0 else LOWER
    return ABOVE if found.low > 0 else BELOW if found.high < 0 else LEVEL


def about_spread(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why nothing is known of the spread of the difference of two scores; empty where all differences are 0."""
    found = Compared.of(ours, theirs)
    if found.lack == ALL_ZERO:
        return ""
    if found.lack == ALL_EQUAL:
        return f"{found.count} equal differences say nothing about the spread"
    if found.count == 1:
        return f"single {found.over} say nothing about the spread"
    return f"{found.count} {found.over} say too little about the spread"


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
