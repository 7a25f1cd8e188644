"""Panels of a report: the figures of all sets under one protocol, with one kind of student. Needs no Ray and no torch.

Figures of different protocols never share a column. Students of several kinds under one protocol do, in one table of
the deciding metric, because that is the question there: what a set is worth to other encoders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.report.words import CHANCE


def panels_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The first panel, which is the report's own, and all others, each with ``protocol``, ``models``, ``scores``,
    ``best_looks`` and ``sets``."""
    return [report, *report["panels"]] if report["protocol"] else []


def of_other_protocols(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The panels of the run's own students under the protocols after the first."""
    return [panel for panel in report["panels"] if panel["models"] == report["models"]]


def across_students(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table a protocol that has several kinds of students: the deciding metric of each set with each of them.

    Returns:
        For each: ``protocol``; ``models``, the run's own first; and ``rows``, by set: the scores in the order of the
        models, and ``drop``, by how much the mean of the others is below the run's own, in percentage points.
    """
    metric = MAIN_METRIC.get(report["task"], "")
    tables = []
    for first in [report, *of_other_protocols(report)] if report["protocol"] else []:
        name = first["protocol"]["name"]
        alike = [panel for panel in panels_of(report) if panel["protocol"]["name"] == name]
        if len(alike) < 2:
            continue
        rows = {}
        for one in first["scores"]:
            own, *others = (panel["scores"][one][metric] for panel in alike)
            drop = own["mean"] - sum(score["mean"] for score in others) / len(others)
            rows[one] = {"scores": [own, *others], "drop": None if one == CHANCE else drop}
        tables.append(
            {"protocol": first["protocol"], "models": [panel["models"] for panel in alike], "rows": rows}
        )
    return tables


def protocol_title(protocol: Mapping[str, Any]) -> str:
    """``lors-frozen-text-small, version 1``."""
    return f"{protocol['name']}, version {protocol['version']}"


def about_protocols(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Each protocol of the report by its title: what it follows, how students are trained, and what was chosen on
    what; what differs from the publication, and what is not known of it."""
    found: dict[str, list[str]] = {}
    for panel in panels_of(report):
        protocol = panel["protocol"]
        found[protocol_title(protocol)] = [
            f"{protocol['source']}: {protocol['summary']}.",
            f"Chosen: {protocol['chosen']}.",
            *(f"Differs: {line}." for line in protocol["differs"]),
            *(f"Not known: {line}." for line in protocol["unsure"]),
        ]
    return list(found.items())


def is_looked_at(panel: Mapping[str, Any]) -> bool:
    """Whether students were tested on their way, so that there is a learning curve."""
    return any(one["looks"] for one in panel["sets"].values())


def learning_curves(
    panel: Mapping[str, Any], metric: str
) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Steps, and the deciding metric after them, mean over all students, by set."""
    return {
        name: ([look["steps"] for look in one["looks"]], [look[metric] for look in one["looks"]])
        for name, one in panel["sets"].items()
        if one["looks"]
    }
