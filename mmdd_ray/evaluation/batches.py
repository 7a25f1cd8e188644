"""Batches of image-caption pairs, and the only augmentation that they get."""

# B images of a step

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.evaluation.pairs import PairSet

SHIFT_FRACTION = 16  # images are shifted by up to 1/16 of their side

Pairs = PairSet | LearntPairs
"""Pairs that a student is trained on."""


def draw_shifts(n: int, image_px: int, rng: np.random.Generator) -> np.ndarray:
    """How far to move each of n images down and right, (2, n) pixels: up to 1/16 of their side, either way."""
    reach = image_px // SHIFT_FRACTION
    return rng.integers(-reach, reach + 1, size=(2, n))


def shifted(image_BHWC: Tensor, shift_2B: np.ndarray) -> Tensor:
    """Each image moved; its edge fills the gap.

    That is all the augmentation there is: captions say left and right and name colours, so mirroring or
    recolouring an image would make them false.
    """
    side = image_BHWC.shape[1]
    # indices beyond the edge are clipped to it, which is edge padding without a padded copy
    clipped = (np.arange(side) + shift_2B[:, :, None]).clip(0, side - 1)
    y_BH, x_BW = torch.from_numpy(clipped).to(image_BHWC.device)
    row_B = torch.arange(len(image_BHWC), device=image_BHWC.device)
    return image_BHWC[row_B[:, None, None], y_BH[:, :, None], x_BW[:, None, :]]


def batches(
    pairs: Pairs, batch_pairs: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image rows and caption rows of each step: distinct images, and one caption of each at random.

    An image is in a batch only once, because its other captions would be false negatives there. Sets smaller
    than a batch are used whole; the rest of a permutation that fills no batch is dropped.
    """
    n_captions_N = np.array([len(own) for own in pairs.captions])
    first_caption_N = n_captions_N.cumsum() - n_captions_N
    batch = min(batch_pairs, pairs.n_images)
    batches_per_epoch = pairs.n_images // batch
    for step in range(steps):
        if step % batches_per_epoch == 0:
            epoch_batches = rng.permutation(pairs.n_images)[: batches_per_epoch * batch].reshape(-1, batch)
        image_B = epoch_batches[step % batches_per_epoch]
        yield image_B, first_caption_N[image_B] + rng.integers(n_captions_N[image_B])


def caption_batches(
    pairs: Pairs, batch_pairs: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image rows and caption rows of each step: every pair once in an epoch, the smaller last batch included.

    The published protocols do this. An image with several captions may stand in a batch twice.
    """
    owner_P = np.repeat(np.arange(pairs.n_images), [len(own) for own in pairs.captions])
    for step, caption_B in enumerate(row_batches(len(owner_P), batch_pairs, rng, keeps_rest=True)):
        if step == steps:
            return
        yield owner_P[caption_B], caption_B


def redrawn_batches(
    pairs: LearntPairs, batch_pairs: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image rows and caption rows of each step: as many distinct pairs of all, whatever was drawn before (LoRS)."""
    for _ in range(steps):
        row_B = rng.permutation(pairs.n_pairs)[:batch_pairs]
        yield row_B, row_B


def row_batches(
    n_rows: int, batch_rows: int, rng: np.random.Generator, *, keeps_rest: bool
) -> Iterator[np.ndarray]:
    """Rows of each step, without end: one permutation after the other, each cut into batches.

    Args:
        keeps_rest: Whether the rest of a permutation that fills no batch is a batch, or dropped.
    """
    batch = min(batch_rows, n_rows)
    stop = n_rows if keeps_rest else n_rows - n_rows % batch
    while True:
        order_N = rng.permutation(n_rows)
        for start in range(0, stop, batch):
            yield order_N[start : min(start + batch, stop)]
