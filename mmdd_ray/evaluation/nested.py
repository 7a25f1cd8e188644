"""Nested subsets of one set, for a learning curve: what a larger one adds is not another draw. Imports no torch."""

# N images

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet

Pairs = TypeVar("Pairs", PairSet, LearntPairs)
_PER_PAIR = ("pixels", "ids", "mask", "offsets", "vectors")


def nested_subsets(pairs: Pairs, counts: Sequence[int], seed: int) -> list[Pairs]:
    """The first images of one random order, as many as each count says, with all of their captions.

    Each subset holds those with smaller counts as its first images, whatever other counts there are.

    Args:
        counts: Images of each subset, in any order.
        seed: Of the order.

    Raises:
        UserError: A count is below 1 or above the number of images.
    """
    for count in counts:
        if not 1 <= count <= pairs.n_images:
            raise UserError(
                f"a subset of {count} images cannot be taken of {pairs.n_images}; choose from 1 to {pairs.n_images}"
            )
    order_N = np.random.default_rng(seed).permutation(pairs.n_images)
    return [_taken(pairs, order_N[:count]) for count in counts]


def _taken(pairs: Pairs, rows: np.ndarray) -> Pairs:
    captions = [pairs.captions[row] for row in rows]
    if isinstance(pairs, PairSet):
        return replace(pairs, images=pairs.images[rows], captions=captions)
    arrays = {name: values[rows] for name in _PER_PAIR if (values := getattr(pairs, name)) is not None}
    if pairs.similarity is not None:
        arrays["similarity"] = pairs.similarity[np.ix_(rows, rows)]
    nearest = [pairs.nearest[row] for row in rows]
    return replace(pairs, **arrays, captions=captions, nearest=nearest)
