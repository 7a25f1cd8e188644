"""The metrics of students, by name, and what chance scores. Imports no torch."""

from collections.abc import Iterable, Mapping
from math import comb

from scipy.special import bdtrc

RANKS = (1, 5, 10)
TOPS = (1, 5)
METRICS = {
    "retrieval": (*(f"{direction}@{k}" for direction in ("ir", "tr") for k in RANKS), "mean_recall"),
    "classification": tuple(f"top-{k}" for k in TOPS),
}
"""Names of the metrics of each task."""
MAIN_METRIC = {"retrieval": "mean_recall", "classification": "top-1"}
"""The one that decides, and that charts show."""
ZERO_SHOT = "zero-shot/{}"
"""Name of a metric of zero-shot classification, by that of classification."""
LUCK = 0.05
LINEAR_PROBE = "linear-probe"
COMPOSITIONAL = "compositional"
"""Mean over the kinds of negatives, and the first part of the name of each kind's metric."""


def extra_metrics(names: Iterable[str], task: str) -> tuple[str, ...]:
    """Those metrics of students, in their order, that not every comparison of the task has."""
    return tuple(name for name in names if name not in METRICS[task])


def compositional_scores(by_kind: Mapping[str, float]) -> dict[str, float]:
    """The score of each kind of negatives under its name as a metric, and their unweighted mean."""
    mean = sum(by_kind.values()) / len(by_kind)
    return {f"{COMPOSITIONAL}/{kind}": score for kind, score in by_kind.items()} | {COMPOSITIONAL: mean}


def chance(n_images: int, captions_per_image: int) -> dict[str, float]:
    """Exact expectation of ``retrieval_metrics`` for a random ranking without ties, in percent.

    ir@k = k/N. tr@k is one minus the chance that k of the P = N·c captions, drawn without replacement, hold
    none of the image's own c.

    Examples:
        >>> chance(100, 5)["ir@1"], round(chance(100, 5)["mean_recall"], 2)
        (1.0, 5.26)
    """
    n_captions = n_images * captions_per_image
    ir, tr = {}, {}
    for k in RANKS:
        ir[f"ir@{k}"] = 100 * min(k, n_images) / n_images
        drawn = min(k, n_captions)
        tr[f"tr@{k}"] = 100 * (1 - comb(n_captions - captions_per_image, drawn) / comb(n_captions, drawn))
    return with_mean_recall(ir, tr)


def with_mean_recall(ir: dict[str, float], tr: dict[str, float]) -> dict[str, float]:
    """Both directions' recalls, and ``mean_recall``, the mean of the six."""
    recalls = ir | tr
    return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}


def accuracy_chance(n_classes: int) -> dict[str, float]:
    """Expected score of a random order of the classes, in percent."""
    return {f"top-{k}": 100 * min(k, n_classes) / n_classes for k in TOPS}


def is_above_chance(top_1: float, images: int, n_classes: int) -> bool:
    """Whether an accuracy, in percent, is no luck: guesses reach it with a probability below `LUCK` (binomial).

    True also where so few images could not tell even if all were named rightly.
    """
    right = round(images * top_1 / 100)
    luck, least = (float(bdtrc(hits - 1, images, 1 / n_classes)) for hits in (right, images))
    return luck < LUCK or least >= LUCK
