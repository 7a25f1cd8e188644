"""CovMatch's pairs, learnt data-parallel on Ray Train; resumes exactly after a kill.

``matching/training.py`` takes the iterations of one worker and knows no Ray; here it is placed and fed. Ranks hold
disjoint synthetic pairs and disjoint shares of every real batch, and exchange moments, features of the real batch and
gradients of the encoders. With cached real pairs, k workers take the steps of one; streamed, every rank shuffles its
own part of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from mmdd_ray.config import MatchingSettings, PairLearning
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import LEARNT
from mmdd_ray.engine.devices import moved
from mmdd_ray.engine.ray_train import CHECKPOINTS, Placement, Worker, pair_batches, train
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.evaluation.batches import draw_shifts, shifted
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.initial_pairs import start_from, start_from_learnt
from mmdd_ray.matching.moments import whole_moments
from mmdd_ray.matching.real_batches import cached_batches
from mmdd_ray.matching.start import START
from mmdd_ray.matching.training import PairOptimizer, RealBatch
from mmdd_ray.models.students import count_longer, load_student
from mmdd_ray.storage.store import Store

SHARES = "shares"


@dataclass(frozen=True)
class _Job:
    """Everything that a worker of the training gets."""

    settings: PairLearning
    seed: int
    start: ray.ObjectRef[Any]
    """The ``PairSet`` to start from, one caption each, or ``LearntPairs``."""
    real: ray.ObjectRef[Any] | None
    """A ``PairSet`` of all real pairs that are matched, where they are cached."""
    whole: Moments | None
    """Moments of all real pairs under the initial encoders, if they are to be matched."""
    store: Store


def learn(
    stage: StageDir,
    features: FeatureStore,
    start: PairSet | LearntPairs,
    whole: Moments | None,
    settings: MatchingSettings,
) -> StageResult:
    """Learns pairs that begin as ``start``, by ``match`` or ``refine`` of the settings.

    Writes two outputs into the stage's folder:

    - ``learnt_pairs.safetensors``: ``LearntPairs``;
    - ``losses.parquet``: a row for each iteration: ``step`` (from 1), ``covariance``, ``mean``, ``total``,
      ``relative_covariance`` (the covariance term over the squared norm of the real one), ``contrastive`` (InfoNCE of
      the encoders), the sampling errors of batch moments where they are known, and ``seconds``.

    A killed run goes on from its last checkpoint. On CPUs it ends with the pairs of an unbroken one; kernels of a GPU
    need not be exact.

    Args:
        features: whose duplicates are left out of the real batches, and what does not agree where
            ``features.clip_score_fraction`` is below 1.
        start: pairs with one caption each.
        whole: for ``real_moments=whole``.

    Raises:
        UserError: the workers do not fit on the cluster or cannot share the batch; there are fewer real pairs than in
            a batch; an encoder cannot be loaded; a loss is no finite number.
    """
    cut = count_longer(start.flat_captions, settings.matching) if isinstance(start, PairSet) else 0
    if cut:
        section, limit = settings.matching.section, settings.matching.max_tokens
        print(
            f"{section:<12} {cut} of the {start.n_pairs} captions to start from are longer than "
            f"{section}.max_tokens={limit} or than the text encoder reads, and are cut",
            flush=True,
        )
    if not stage.store.exists(LEARNT):  # written last
        losses, shares = _fit(stage.store, features, start, whole, settings)
        stage.store.write_parquet(LOSSES, pa.Table.from_pylist(losses))
        stage.store.write_bytes(LEARNT, LearntPairs.interleaved(shares).to_bytes())
    stage.store.remove(CHECKPOINTS)
    stage.store.remove(SHARES)
    losses = stage.store.read_parquet(LOSSES).to_pylist()
    extra = {"iterations": len(losses), "first": losses[0], "last": losses[-1]} if losses else {}
    return StageResult(
        rows_in=settings.matching.iterations * settings.matching.real_batch,
        rows_out=start.n_pairs,
        outputs=[START, LEARNT, LOSSES],
        extra=extra | {"cut_captions": cut},
    )


def _fit(
    store: Store,
    features: FeatureStore,
    start: PairSet | LearntPairs,
    whole: Moments | None,
    settings: MatchingSettings,
) -> tuple[list[dict[str, float]], list[LearntPairs]]:
    """Runs the workers; the records of all iterations and what each rank has learnt."""
    matching = settings.matching
    _ = matching.real_pairs_per_worker  # raises where the batch cannot be shared
    count, texts = len(features.addresses), None
    if settings.features.clip_score_fraction < 1:
        agreeing = features.agreeing()
        count, texts = agreeing.n_images, agreeing.captions
    pairs = training_pairs(
        settings.data,
        image_px=matching.image_px,
        seed=settings.run.seed,
        excluded=features.duplicates(),
        texts=texts,
    )
    is_cached = count * matching.image_px**2 * 3 <= matching.cache_mib * 2**20
    job = _Job(
        matching,
        settings.run.seed,
        ray.put(start),
        _cached.remote(pairs, count, matching.image_px) if is_cached else None,
        whole,
        store,
    )
    placement = Placement(
        section=matching.section,
        training=matching,
        memory_setting=f"{matching.section}.micro_batch",
        steps=matching.iterations,
        checkpoint_steps=matching.checkpoint_iterations,
    )
    losses = train(_work, job, placement, store=store, pairs=None if is_cached else pairs)["losses"]
    return losses, [
        LearntPairs.from_bytes(store.read_bytes(_share(rank))) for rank in range(matching.workers)
    ]


@ray.remote(
    num_cpus=0
)  # the tasks that it waits for have theirs; and not on the driver, which may be a small machine
def _cached(pairs: ray.data.Dataset, count: int, image_px: int) -> PairSet:
    """All real pairs, decoded, in the order of the dataset."""
    pairs.context.execution_options.preserve_order = True  # so that each run sees the same batches
    # filled in place: a list that is joined at the end would need twice the memory
    images = np.empty((count, image_px, image_px, 3), np.uint8)
    captions: list[list[str]] = []
    for block in pairs.iter_batches(batch_size=None, batch_format="numpy"):
        images[len(captions) : len(captions) + len(block["image"])] = block["image"]
        captions += [list(map(str, own)) for own in block["captions"]]
    return PairSet(images[: len(captions)], captions)


def _work(worker: Worker, job: _Job) -> dict[str, Any]:
    """Learns this worker's share of the pairs and writes it; gives the records of all iterations."""
    from ray.train.torch import get_device

    start: PairSet | LearntPairs = ray.get(job.start)
    with worker.raise_on_all():
        encoders = load_student(job.settings, job.seed, get_device())
        if isinstance(start, LearntPairs):
            begin = start_from_learnt(encoders, start, job.settings)
        else:
            begin = start_from(encoders, start.images, start.flat_captions, job.settings)
    whole = whole_moments(job.whole, get_device()) if job.whole else None
    distillation = PairOptimizer(
        encoders, begin, job.settings, seed=job.seed, rank=worker.rank, workers=worker.workers, whole=whole
    )
    file = f"rank{worker.rank}.pt"
    with worker.raise_on_all():
        if state := worker.restored(file):
            distillation.restore(state)
    worker.run_steps(
        distillation.run(partial(_real_batches, worker, job, get_device())),
        lambda: {file: distillation.state()},
    )
    with worker.raise_on_all():
        share = distillation.share()
    job.store.write_bytes(_share(worker.rank), share.to_bytes())
    if worker.workers > 1:
        torch.distributed.barrier()  # rank 0, which ends the training, does not end before all are written
    return {"losses": distillation.records}


def _real_batches(worker: Worker, job: _Job, device: torch.device, epoch: int) -> Iterator[RealBatch]:
    """This worker's share of an epoch of real batches, augmented on its device."""
    settings, seed = job.settings, derive_seed(job.seed, epoch)
    if job.real is not None:
        real = ray.get(job.real)
        yield from cached_batches(real, settings.real_batch, seed, worker.rank, worker.workers, device)
        return
    rng = np.random.default_rng((seed, worker.rank))
    for images, captions in pair_batches(settings.real_pairs_per_worker, seed=job.seed, epoch=epoch):
        shift_2B = draw_shifts(len(images), settings.image_px, rng)
        yield shifted(moved(torch.tensor(images), device), shift_2B), captions


def _share(rank: int) -> str:
    return f"{SHARES}/rank{rank}.safetensors"
