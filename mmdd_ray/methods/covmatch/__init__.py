"""CovMatch: learns pairs whose features have the cross-covariance of the real data's (arXiv 2510.18583)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmdd_ray.methods.covmatch.preflight import check, models, needs
from mmdd_ray.methods.covmatch.presets import PRESETS
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.method import Method, Steps

WORDS = {
    "losses": "Matching, and InfoNCE of encoders that are trained",
    "quality": "What batches miss of the whole data",
    "quality_note": "Distance between the moments of a real batch and those of all pairs that are matched, "
    "under the initial encoders, relative to the norm of the latter. The images of a batch are shifted by chance, too.",
    "examples_note": "The first caption is the one that the pair began as, the second line the words that are "
    "nearest to the text that was learnt.",
}


def _steps() -> Steps[Covmatch]:
    from mmdd_ray.methods.covmatch.stages import STEPS

    return STEPS


def _shortened(settings: Covmatch, batch: Callable[[int], int], folder: Path) -> Covmatch:
    """Pairs for one batch, which begin as real ones."""
    match = settings.match
    start = "random" if match.start_set else match.init
    return replace(settings, match=replace(match, pairs=batch(match.pairs), init=start))


METHOD = Method(
    name="covmatch",
    job="covmatch_flickr30k",
    settings=Covmatch,
    presets=PRESETS,
    models=models,
    preflight=check,
    steps=_steps,
    needs=needs,
    size=lambda settings, source: ("match.pairs", settings.match.pairs),
    words=lambda settings: WORDS,
    shortened=_shortened,
)
