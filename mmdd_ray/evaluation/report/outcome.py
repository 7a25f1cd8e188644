"""The outcome of a run in words, good or bad, with likely reasons from the run's own figures.

A reason is told only where a figure of the run shows it, and with that figure. Needs no Ray and no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.report.reasons import CHECKS, Case
from mmdd_ray.evaluation.report.standing import ABOVE, BELOW, EQUAL, HIGHER, LEVEL, LOWER, SAME, listed
from mmdd_ray.evaluation.report.text import in_sentence, label_of

WORSE, ALIKE, BETTER = (BELOW, LOWER), (LEVEL, EQUAL, SAME), (ABOVE, HIGHER)
TONES = {"below": WORSE, "level": ALIKE, "above": BETTER}


def outcomes(report: Mapping[str, Any], ours: str) -> dict[str, dict[str, Any]]:
    """The outcome of each distilled set that has baselines, by its name.

    Args:
        report: With ``standings``, and the figures that reasons are read from.
        ours: The set that the run itself distilled, which losses, audit and agreement are of; empty where none is.

    Returns:
        For each set: ``tone``, "below", "level" or "above", the worst of its standings; ``title``, a sentence;
        ``reasons``, sentences with their figures; ``checked``, the figures that were looked at without a finding; and
        ``advice``, sentences on what would tell more.
    """
    return {name: _outcome(report, name, name == ours) for name in report["standings"]}


def _outcome(report: Mapping[str, Any], name: str, is_own: bool) -> dict[str, Any]:
    standings = report["standings"][name]
    tone = next(tone for tone, words in TONES.items() if any(one in words for one in standings.values()))
    others = [other for other, one in standings.items() if one in TONES[tone]]
    if all(standings[other] == SAME for other in others):
        return _of_same(report, name, others, is_own)
    others = [other for other in others if standings[other] != SAME]  # nothing to explain there
    metric = MAIN_METRIC[report["task"]]
    strongest = max(others, key=lambda other: report["scores"][other][metric]["mean"])
    case = Case(report, name, strongest, tone, is_own)
    found = {what: finding for what, check in CHECKS.items() if (finding := check(case)) is not None}
    reasons = [sentence for sentence in found.values() if sentence]
    return {
        "tone": tone,
        "title": _title(report, name, tone, others, bool(reasons)),
        "reasons": reasons,
        "checked": [what for what, sentence in found.items() if not sentence],
        "advice": _advice(report, is_own, tone),
    }


def _of_same(report: Mapping[str, Any], name: str, others: Sequence[str], is_own: bool) -> dict[str, Any]:
    """The outcome of a set that is no other than its baselines."""
    label, named = label_of(name, report), listed([in_sentence(other, report) for other in others])
    return {
        "tone": "level",
        "title": f"{label} is the same set as {named} here",
        "reasons": [f"{label} has the very same pairs as {named}, so there is nothing to compare."],
        "checked": [],
        "advice": _advice(report, is_own, "level"),
    }


def _title(report: Mapping[str, Any], name: str, tone: str, others: Sequence[str], explained: bool) -> str:
    standings = report["standings"][name]
    is_single = {standings[other] for other in others} <= {HIGHER, LOWER}  # nothing is known of the spread
    stands = {
        "below": "scores lower than" if is_single else "is below",
        "level": "cannot be told from",
        "above": "scores higher than" if is_single else "is above",
    }[tone]
    every = len(others) == len(standings) > 2
    named = "all its baselines" if every else listed([in_sentence(other, report) for other in others])
    told = f"{label_of(name, report)} {stands} {named} here"
    if tone == "above":
        return f"{told}; to keep in mind" if explained else told
    return f"{told}; {'likely reasons' if explained else 'no reason found'}"


def _advice(report: Mapping[str, Any], is_own: bool, tone: str) -> list[str]:
    """Settings that would let the report say more of a disappointing outcome."""
    if tone == "above":
        return []
    advice = []
    if is_own and not report["audit"]:
        advice.append(
            "The setting evaluation.audit adds how varied the set is, and how near it is to real images."
        )
    return advice
