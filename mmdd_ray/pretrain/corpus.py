"""Scenes in memory, for training and judging the tiny zoo."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmdd_ray.data.web_scenes import World, scene

TRAIN_SEED = 1_000_003  # scene seeds of the zoo; presets and tests use small ones, so they never meet
HELD_OUT_SEED = 2_000_003
IMAGE_PX = 32
BROAD = World(broad=True)
"""The world that the zoo is pretrained on, of which that of a run is one domain."""
WEB = World()


@dataclass(frozen=True)
class Corpus:
    """N scenes: `images` (N, 3, 32, 32) uint8, `labels` (N,) of the main objects, and captions.

    `captions` are those that the data have, `true_captions` five right ones each.
    """

    images: Tensor
    captions: list[list[str]]
    true_captions: list[list[str]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "Corpus":
        return Corpus(self.images[rows], self.captions[rows], self.true_captions[rows], self.labels[rows])


@lru_cache(maxsize=4)  # several models learn from one corpus
def draw_corpus(scenes: int, *, seed: int, world: World, labelled: bool = False) -> Corpus:
    """The first `scenes` scenes of `seed`."""
    images = np.empty((scenes, IMAGE_PX, IMAGE_PX, 3), np.uint8)
    captions, true_captions, labels = [], [], np.empty(scenes, np.int64)
    for index in tqdm(range(scenes), "drawing scenes", mininterval=5, leave=False):
        drawn = scene(index, seed=seed, labelled=labelled, world=world)
        images[index] = np.asarray(drawn.render(IMAGE_PX))
        captions.append(drawn.captions())
        true_captions.append(drawn.true_captions())
        labels[index] = drawn.label
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Corpus(pixels, captions, true_captions, torch.from_numpy(labels))


def draw_broad(scenes: int) -> Corpus:
    """The zoo is pretrained on these: `scenes` // 2 scenes of the broad world, then as many of one labelled object.

    In scenes of several objects whose colours, sizes and places tell them apart, shapes explain so little that neither
    CLIP nor a generator learns them; pictures of one thing make up for it.
    """
    halves = [
        draw_corpus(scenes // 2, seed=TRAIN_SEED, world=BROAD, labelled=labelled)
        for labelled in (False, True)
    ]
    return Corpus(
        torch.cat([half.images for half in halves]),
        [captions for half in halves for captions in half.captions],
        [captions for half in halves for captions in half.true_captions],
        torch.cat([half.labels for half in halves]),
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
