"""Settings of what works in parallel: actor pools, and data-parallel training."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from mmdd_ray.config.fields import Count, Essential, Weight, operational


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool of actors."""

    min_actors: Count = operational(1)
    """Smallest number of actors."""
    max_actors: Count = operational(1)
    """Largest number of actors; Ray adds actors (and the autoscaler machines) up to here."""
    gpus_per_actor: Weight = operational(1.0)
    """Share of a GPU for each actor; ignored on clusters without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Features(Pool):
    """CLIP features of every pair and the moments of their distribution."""

    clip: Essential[str] = "tiny-clip"
    """CLIP model of features, losses and selection: a zoo name, an open_clip "MODEL/PRETRAINED" such as
    "ViT-B-32/laion2b_s34b_b79k", "hf-hub:ORG/REPO", or "local-dir:/FOLDER"."""
    image_px: Count = 32
    """Side to which images are decoded for CLIP; its own input size is best."""
    chunk_pairs: Count = 256
    """Images encoded and written together; one output file each."""
    clip_score_fraction: Essential[Annotated[float, Gt(0), Le(1)]] = 1.0
    """Share of the real pairs, those whose image and caption agree best by CLIP, whose moments are matched: in EDGE's
    selection among candidates, and by CovMatch, whose real batches leave out the others. Below 1 where captions are
    noisy."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Data-parallel training on Ray Train."""

    workers: Count = 1
    """Data-parallel workers."""
    gpus_per_worker: Weight = operational(1.0)
    """GPUs of each worker; ignored on clusters without GPUs."""
    max_failures: Annotated[int, Ge(-1)] = operational(3)
    """Times that workers may be lost before the training gives up, to be resumed; -1: it never does. Machines that
    were drained because a cloud takes them back do not count (`ray drain-node`, which somebody has to call)."""
