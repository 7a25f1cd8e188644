"""Experts and pairs, placed on the cluster: a task for each expert, and Ray Train for what follows them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from mmdd_ray.distilled.sample import LEARNT
from mmdd_ray.engine.cluster import actor_resources, missing
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory, peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.ray_train import CHECKPOINTS, Placement, Worker, train
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.engine.tasks import as_done
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.sets import read_rows
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.start import START
from mmdd_ray.methods.trajectory.experts import form_of, train_expert
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories, Trajectory
from mmdd_ray.methods.trajectory.training import TrajectoryMatcher, learnt_pairs
from mmdd_ray.models.students import load_student, load_text_encoder
from mmdd_ray.storage.store import Store
from mmdd_ray.storage.tensor_file import pack, unpack

KIND = "expert"
RETRIES = 5  # of an expert whose worker or node was lost
HELD_EPOCHS = (
    16  # of experts, in the memory of the worker that learns: 160 MB each with the published encoder
)


def train_experts(stage: StageDir, features: FeatureStore, settings: Trajectory) -> StageResult:
    """Trains the experts that are missing, on all real pairs; read them with `read_expert`."""
    pairs = _real_pairs(features, settings)
    experts, resources = settings.experts, actor_resources(settings.experts.gpus_per_expert)
    device = device_with(resources)
    remote = ray.remote(max_retries=RETRIES, **resources)
    left = [
        number for number in range(experts.count) if not stage.store.exists(_file(number, experts.epochs))
    ]
    with progress("experts", total=experts.count, unit="experts", missing=missing) as bar:
        bar.resume(experts.count - len(left))
        if left:
            real = ray.put(pairs)
            vectors = remote(_encode).remote(real, settings.match, device)
            one = remote(_train_expert)
            running = {
                one.remote(
                    real,
                    vectors,
                    experts,
                    settings.match,
                    _seed(settings, number),
                    number,
                    stage.store,
                    device,
                ): number
                for number in left
            }
            for _, peak in as_done(running):
                bar.note_memory(peak)
                bar.update()
    return StageResult(rows_in=pairs.n_pairs, rows_out=experts.count)


def _real_pairs(features: FeatureStore, settings: Trajectory) -> PairSet:
    """The pairs of the features; what is refused was listed with them."""
    left_out = set(features.duplicates())
    rows = [row for row in read_rows(settings.data) if (row.shard, row.index) not in left_out]
    px, most = settings.match.image_px, settings.data.max_image_pixels
    return PairSet.from_rows(rows, image_px=px, max_pixels=most)[0]


def _seed(settings: Trajectory, number: int) -> int:
    return derive_seed(settings.run.seed, number)


def _encode(pairs: PairSet, encoders: Trajectories, device: str) -> np.ndarray:
    with out_of_memory("match.max_tokens"):
        encoder = load_text_encoder(encoders, device, form_of(encoders))
        return encoder.encode_captions(pairs.flat_captions).cpu().numpy()


def _train_expert(
    pairs: PairSet,
    vectors: np.ndarray,
    experts: Experts,
    encoders: Trajectories,
    seed: int,
    number: int,
    store: Store,
    device: str,
) -> int:
    """Writes the parameters of each epoch; gives the most memory that its process held, in bytes."""
    with out_of_memory("experts.batch_pairs"):
        epochs = train_expert(pairs, vectors, experts, encoders, seed=seed, device=device)
        for epoch, parameters in enumerate(epochs):  # the last is written last: with it, an expert is whole
            store.write_bytes(_file(number, epoch), pack(KIND, parameters, {"seed": seed}))
    return peak_bytes()


def _file(number: int, epoch: int) -> str:
    return f"{number:03d}/{epoch:03d}.safetensors"


def read_expert(store: Store, number: int, epoch: int) -> dict[str, np.ndarray]:
    """The parameters of an expert after that epoch, and the means that it centres features by."""
    return unpack(KIND, store.read_bytes(_file(number, epoch)))[0]


# ---- learning pairs


@dataclass(frozen=True)
class _Job:
    """Everything that the worker gets."""

    settings: Trajectory
    start: ray.ObjectRef[Any]
    """The ``PairSet`` to start from, one caption each."""
    experts: Store
    store: Store
    nearest: ray.ObjectRef[Any]
    """Real captions, among which the nearest to each learnt vector is shown."""


def learn(
    stage: StageDir, start: PairSet, captions: list[str], experts: Store, settings: Trajectory
) -> StageResult:
    """Learns pairs that begin as ``start``.

    Writes ``learnt_pairs.safetensors``, and ``losses.parquet`` with a row for each iteration. A killed run goes on from
    its last checkpoint.

    Args:
        captions: Real ones, to show what a learnt vector is near to.
        experts: What `train_experts` has written.
    """
    if not stage.store.exists(LEARNT):  # written last
        job = _Job(settings, ray.put(start), experts, stage.store, ray.put(captions))
        placement = Placement(
            section=settings.match.section,
            training=settings.match,
            memory_setting="match.batch_pairs and match.student_steps",
            steps=settings.match.iterations,
            checkpoint_steps=settings.match.checkpoint_iterations,
        )
        train(_work, job, placement, store=stage.store)
    stage.store.remove(CHECKPOINTS)
    losses = stage.store.read_parquet(LOSSES).to_pylist()
    return StageResult(
        rows_in=settings.match.iterations,
        rows_out=start.n_pairs,
        outputs=[START, LEARNT, LOSSES],
        extra={"iterations": len(losses), "first": losses[0], "last": losses[-1]},
    )


def _work(worker: Worker, job: _Job) -> dict[str, Any]:
    from ray.train.torch import get_device

    match, device = job.settings.match, get_device()
    start: PairSet = ray.get(job.start)
    with worker.raise_on_all():
        student = load_student(match, job.settings.run.seed, device, form_of(match)).eval()
    pixels = student.image.normalise(torch.tensor(start.images, device=device)).float()
    vectors = student.text.encode_captions(start.flat_captions)
    read = lru_cache(HELD_EPOCHS)(lambda number, epoch: read_expert(job.experts, number, epoch))
    matcher = TrajectoryMatcher(
        student, pixels, vectors, match, job.settings.experts, read, seed=job.settings.run.seed
    )
    if state := worker.restored("matcher.pt"):
        matcher.restore(state)
    worker.run_steps(matcher.run(), lambda: {"matcher.pt": matcher.state()})
    found = learnt_pairs(matcher, start, ray.get(job.nearest))
    job.store.write_parquet(LOSSES, pa.Table.from_pylist(matcher.records))
    job.store.write_bytes(LEARNT, found.to_bytes())
    return {"iterations": len(matcher.records)}
