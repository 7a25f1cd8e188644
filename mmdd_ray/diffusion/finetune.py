"""Fine-tunes a generator with Ray Train on pairs that Ray Data streams; resumes exactly after a kill.

What is minimised is the method's ``Objective``. ``Training`` takes the steps of one worker and knows no Ray;
``finetune`` places and feeds it.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from torch import nn

from mmdd_ray.config import Finetune
from mmdd_ray.data.sources import READ_CPUS
from mmdd_ray.diffusion.training import Objective, Training
from mmdd_ray.engine.data_position import Batch
from mmdd_ray.engine.ray_train import CHECKPOINTS, Placement, Worker, pair_batches, train
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.models.generators.generator import Generator
from mmdd_ray.storage.store import Store

GENERATOR = "generator"
STATE = "state.pt"


@dataclass(frozen=True)
class _Job:
    """Everything that a worker of the training gets."""

    settings: Finetune
    objective: Objective
    seed: int
    store: Store


def finetune(
    pairs: ray.data.Dataset, settings: Finetune, objective: Objective, *, seed: int, stage: StageDir
) -> StageResult:
    """Trains ``settings.generator`` and writes two outputs into the stage's folder.

    - ``generator/``: a plain StableDiffusionPipeline in safetensors, with averaged weights if there are any;
    - ``losses.parquet``: step, loss terms, gradient norm, learning rate and seconds, a row for each step.

    A killed run goes on from its last checkpoint. On one worker it ends with the weights of an unbroken run.

    Raises:
        ValueError: the workers do not fit on the cluster or cannot share the batch; there are fewer pairs
            than in a batch; the generator or another model cannot be loaded; the loss is no finite number.
    """
    if not stage.store.exists(LOSSES):  # written last
        if settings.steps:
            losses = _fit(pairs, settings, objective, seed, stage.store)
        else:
            ray.get(ray.remote(_copy).options(num_cpus=READ_CPUS).remote(settings.generator, stage.store))
            losses = []
        stage.store.write_parquet(LOSSES, pa.Table.from_pylist(losses))
    stage.store.remove(CHECKPOINTS)
    losses = stage.store.read_parquet(LOSSES).to_pylist()
    shown = settings.steps * settings.accumulate * settings.batch_pairs
    return StageResult(
        rows_in=shown,
        rows_out=shown,
        outputs=[name for name in stage.store.files() if name == LOSSES or name.startswith(f"{GENERATOR}/")],
        extra={"steps": settings.steps, "first": losses[0], "last": losses[-1]} if losses else {"steps": 0},
    )


def _fit(
    pairs: ray.data.Dataset, settings: Finetune, objective: Objective, seed: int, store: Store
) -> list[dict[str, float]]:
    """Runs the workers and returns the records of all steps."""
    _ = settings.pairs_per_worker  # raises where the batch cannot be shared
    placement = Placement(
        section="finetune",
        training=settings,
        memory_setting="finetune.batch_pairs (finetune.accumulate makes up for it)",
        steps=settings.steps,
        checkpoint_steps=settings.checkpoint_steps,
    )
    return train(_work, _Job(settings, objective, seed, store), placement, store=store, pairs=pairs)["losses"]


def _work(worker: Worker, job: _Job) -> dict[str, Any]:
    """Trains; rank 0 writes the generator and returns the records of all steps."""
    torch.manual_seed(job.seed)  # new adapters and projections
    with worker.raise_on_all():
        loss, generator = _build(job)
    from ray.train.torch import prepare_model

    training = Training(prepare_model(loss), job.settings, seed=job.seed, rank=worker.rank)
    if state := worker.restored(STATE):
        training.restore(state)
    # the state of rank 0 serves all, as it holds nothing of its rank
    worker.run_steps(
        training.run(partial(_batches, job)), lambda: {STATE: training.state()} if worker.rank == 0 else {}
    )
    if worker.rank == 0:
        training.finish()
        _save(generator, job.store)
    return {"losses": training.losses}


def _batches(job: _Job, epoch: int) -> Iterator[Batch]:
    return pair_batches(job.settings.pairs_per_worker, seed=job.seed, epoch=epoch)


def _build(job: _Job) -> tuple[nn.Module, Generator]:
    """The loss on this worker's device, and the generator that it trains.

    Raises:
        UserError: a model cannot be loaded.
    """
    from ray.train.torch import get_device

    from mmdd_ray.models.generators.generator import load_generator

    settings = job.settings
    generator = load_generator(settings.generator, get_device())
    generator.prepare_training(settings.parameters, rank=settings.lora_rank, compiled=settings.compile)
    return job.objective.build(generator), generator


def _save(generator: Generator, store: Store) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generator.save(Path(folder))
        store.upload_folder(Path(folder), GENERATOR)


def _copy(generator: str, store: Store) -> None:
    """Saves the generator as it is."""
    from mmdd_ray.models.generators.generator import load_generator

    _save(load_generator(generator), store)
