"""Scenes in memory, for training and judging the tiny zoo."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmdd_ray.data import shapes

TRAIN_SEED = 1_000_003  # scene seeds of the zoo; presets and tests use small ones, so they never meet
HELD_OUT_SEED = 2_000_003
IMAGE_PX = 32


@dataclass(frozen=True)
class Corpus:
    """N scenes: `images` (N, 3, 32, 32) uint8, five `captions` each, `labels` (N,) of the main objects."""

    images: Tensor
    captions: list[list[str]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def draw_corpus(scenes: int, *, seed: int, labelled: bool = False) -> Corpus:
    """The first `scenes` scenes of `seed`."""
    images = np.empty((scenes, IMAGE_PX, IMAGE_PX, 3), np.uint8)
    captions, labels = [], np.empty(scenes, np.int64)
    for index in tqdm(range(scenes), "drawing scenes", mininterval=5, leave=False):
        scene = shapes.scene(index, seed=seed, labelled=labelled)
        images[index] = np.asarray(scene.render(IMAGE_PX))
        captions.append(scene.captions())
        labels[index] = scene.label
    return Corpus(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions, torch.from_numpy(labels)
    )


def batches(rows: int, batch: int, steps: int, *, seed: int) -> Iterator[Tensor]:
    """`steps` index tensors (batch,), epoch after epoch, reshuffled each time."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch]
        order = order[batch:]
