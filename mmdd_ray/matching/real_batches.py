"""Batches of real pairs that are held in memory; no Ray."""

from collections.abc import Iterator

import numpy as np
import torch

from mmdd_ray.engine.devices import moved
from mmdd_ray.evaluation.batches import batches, draw_shifts, shifted
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.matching.training import RealBatch


def cached_batches(
    real: PairSet, batch_pairs: int, seed: int, rank: int, workers: int, device: torch.device | str = "cpu"
) -> Iterator[RealBatch]:
    """A rank's share of an epoch of augmented batches, which together are the same for any number of workers.

    Args:
        batch_pairs: of all ranks together.
        seed: of the epoch.
    """
    rng = np.random.default_rng(seed)
    captions = real.flat_captions
    own = slice(rank, None, workers)
    for image_B, caption_B in batches(real, batch_pairs, real.n_images // batch_pairs, rng):
        shift_2B = draw_shifts(batch_pairs, real.image_px, rng)
        images = moved(torch.from_numpy(real.images[image_B[own]]), device)
        yield shifted(images, shift_2B[:, own]), [captions[row] for row in caption_B[own]]
