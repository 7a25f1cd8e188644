"""Fine-tunes a generator with Ray Train on pairs that Ray Data streams; resumes exactly after a kill.

What is minimised is the method's ``Objective``. ``Training`` takes the steps of one worker and knows no Ray;
``finetune`` places and feeds it.
"""

import logging
import tempfile
import threading
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.util.queue import Empty, Queue

from mmdd_ray.cluster import actor_resources, pool_size
from mmdd_ray.config import Data, Finetune
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.sources import READ_CPUS, read_pairs
from mmdd_ray.diffusion.training import Batch, Objective, Training
from mmdd_ray.errors import UserError
from mmdd_ray.models.memory import out_of_memory
from mmdd_ray.progress import progress
from mmdd_ray.run import Stage, StageResult
from mmdd_ray.store import Store

if TYPE_CHECKING:  # imports diffusers: 8 s that the driver need not pay
    from mmdd_ray.models.generator import Pipeline

GENERATOR = "generator"
LOSSES = "losses.parquet"
CHECKPOINTS = "checkpoints"
STATE = "state.pt"
PAIRS = "pairs"  # Ray Train's name of the dataset
SHUFFLE_BATCHES = 16  # 16 * 128 pairs * 224 px * 224 px * 3 B = 294 MiB held by a worker
MAX_FAILURES = 3  # of machines; what the user got wrong is not tried again


@dataclass(frozen=True)
class _Job:
    """What each worker is told."""

    settings: Finetune
    objective: Objective
    seed: int
    store: Store
    records: Queue


def training_pairs(
    data: Data, *, image_px: int, seed: int, excluded: Collection[tuple[str, int]] = ()
) -> ray.data.Dataset:
    """The usable pairs of ``data``, decoded, for ``finetune``.

    Leaves out rejected rows, undecodable images and the ``(shard, index)`` in ``excluded``; the feature stage
    has counted and listed them. Columns: ``image``, uint8 (image_px, image_px, 3); ``captions``; ``first``, a
    random number that says with which caption the pair starts.

    Raises:
        ValueError: as ``read_pairs``.
    """
    left_out = frozenset(excluded)

    # A function in a function travels by value, so that the readers need not import this module and torch.
    def decode(rows: pa.Table) -> dict[str, Any]:
        images, captions, first = [], [], []
        for row in rows.to_pylist():
            address = (row["shard"], row["index"])
            if row["reject"] is not None or address in left_out:
                continue
            try:
                pixels = decode_image(row["image"], max_pixels=data.max_image_pixels, image_px=image_px)
            except BadImage:
                continue
            images.append(pixels)
            captions.append(row["captions"])
            first.append(zlib.crc32(f"{seed}/{address}".encode()))
        return {
            "image": np.stack(images) if images else np.empty((0, image_px, image_px, 3), np.uint8),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "first": np.array(first, np.int64),
        }

    # With the readers' share of a CPU, Ray Data makes reading and decoding one task.
    return read_pairs(data).map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)


def finetune(
    pairs: ray.data.Dataset, settings: Finetune, objective: Objective, *, seed: int, stage: Stage
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
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Without the actor that frees placement groups of a lost controller.

        They are freed with the job, which ends then. The actor takes 4 s to start, and where several local Rays
        run, it prints a traceback because it does not know which one is its own.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # Ray Train V2 alone
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

    scaling = _scaling(settings)
    options = ray.data.ExecutionOptions(preserve_order=True)  # so that each run sees the same batches
    with _progress_line(settings.steps) as records:
        trainer = Trainer(
            _train,  # type: ignore[arg-type]  # Ray's annotations are those of Ray Train V1
            train_loop_config={"job": _Job(settings, objective, seed, store, records)},
            scaling_config=scaling,
            datasets={PAIRS: pairs},
            dataset_config=DataConfig(execution_options=options),
            run_config=RunConfig(  # type: ignore[call-arg]  # likewise
                name=CHECKPOINTS,  # a run of the same name in the same place goes on
                storage_path=store.uri,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]  # likewise
    if mistake := outcome.get("mistake"):
        raise UserError(mistake)
    return outcome["losses"]


def _scaling(settings: Finetune) -> Any:
    from ray.train import ScalingConfig

    _ = settings.pairs_per_worker  # raises where the batch cannot be shared
    if settings.workers > (fit := pool_size(None, settings.gpus_per_worker)):
        raise UserError(
            f"finetune.workers={settings.workers}, but this cluster has room for {fit} beside the readers; "
            "lower finetune.workers or finetune.gpus_per_worker, or add machines"
        )
    each = actor_resources(settings.gpus_per_worker)
    return ScalingConfig(
        num_workers=settings.workers,
        use_gpu=each["num_gpus"] > 0,
        resources_per_worker={"CPU": each["num_cpus"], "GPU": each["num_gpus"]},
    )


@contextmanager
def _progress_line(steps: int) -> Iterator[Queue]:
    """A queue for the workers' records, shown as a line of progress while the block waits for them."""
    records = Queue(actor_options={"num_cpus": 0})
    done = threading.Event()

    def show() -> None:
        with progress("finetune", total=steps, unit="steps") as bar:
            while not done.is_set():
                try:
                    record = records.get(timeout=1)
                except Empty:
                    continue
                except RayActorError:  # the line is lost with the node of the queue, the training is not
                    return
                bar.note(loss=record["total"])
                bar.update(record["step"] - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield records
    finally:
        done.set()
        thread.join()
        records.shutdown()


def _train(config: dict[str, _Job]) -> dict[str, Any]:
    """The life of a worker.

    A GPU that is too small for one worker's share fails that worker alone. It has to raise, since the others would
    wait for it for ever.
    """
    with out_of_memory("finetune.batch_pairs (finetune.accumulate makes up for it)"):
        return _work(config["job"])


def _work(job: _Job) -> dict[str, Any]:
    """Trains; rank 0 writes the generator and returns the records of all steps.

    A mistake of the user is returned, not raised: Ray Train would start the workers again, to fail again.
    """
    import ray.train

    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train shows INFO of all libraries
    torch.manual_seed(job.seed)  # new adapters and projections
    try:
        training, pipeline = _build(job, context.get_world_rank(), context.get_world_size())
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                training.restore(torch.load(Path(folder, STATE), map_location="cpu", weights_only=True))
        for record in training.run(partial(_batches, job)):
            if is_first:
                # does not wait and cannot fail, unlike Queue.put_nowait
                job.records.actor.put_nowait.remote(record)  # type: ignore[attr-defined]
            if record["step"] % job.settings.checkpoint_steps == 0:
                _checkpoint(training, is_first)
    except UserError as mistake:
        return {"mistake": str(mistake)}
    if is_first:
        training.finish()
        _save(pipeline, job.store)
    return {"losses": training.losses}


def _build(job: _Job, rank: int, workers: int) -> tuple[Training, "Pipeline"]:
    """The training with its models on this worker's device, and the pipeline whose U-Net it trains.

    Raises:
        ValueError: on all workers, if a model cannot be loaded on one of them.
    """
    from ray.train.torch import get_device, prepare_model

    from mmdd_ray.models.generator import load_pipeline, trainable_parameters

    mistakes: list[str | None] = [None]
    try:
        pipeline = load_pipeline(job.settings.generator, get_device())
        pipeline.unet.to(memory_format=torch.channels_last)
        trainable_parameters(pipeline.unet, job.settings.parameters, rank=job.settings.lora_rank)
        if pipeline.device.type == "cuda":
            pipeline.unet.enable_gradient_checkpointing()
            pipeline.vae.enable_gradient_checkpointing()
        loss = job.objective.build(pipeline)
    except UserError as error:
        mistakes = [str(error)]
    if workers > 1:
        found, mistakes = mistakes, [None] * workers
        dist.all_gather_object(mistakes, found[0])
    if mistake := next(filter(None, mistakes), None):
        raise UserError(mistake)
    return Training(prepare_model(loss), job.settings, seed=job.seed, rank=rank), pipeline


def _save(pipeline: "Pipeline", store: Store) -> None:
    from mmdd_ray.models.generator import save_pipeline

    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(pipeline, Path(folder))
        store.upload_folder(Path(folder), GENERATOR)


def _copy(generator: str, store: Store) -> None:
    """Saves the generator as it is."""
    from mmdd_ray.models.generator import load_pipeline

    _save(load_pipeline(generator), store)


def _checkpoint(training: Training, is_first: bool) -> None:
    """Every worker reports; the state of rank 0 serves all, as it holds nothing of its rank."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if is_first:
            torch.save(training.state(), Path(folder, STATE))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({}, checkpoint=checkpoint)


def _batches(job: _Job, epoch: int) -> Iterator[Batch]:
    """This worker's share of an epoch: shuffled by seed and epoch, with the next caption of each pair."""
    import ray.train

    batch_pairs = job.settings.pairs_per_worker
    shuffle_seed = int(np.random.SeedSequence((job.seed, epoch)).generate_state(1)[0])
    for batch in ray.train.get_dataset_shard(PAIRS).iter_batches(
        batch_size=batch_pairs,
        batch_format="numpy",
        drop_last=True,
        local_shuffle_buffer_size=SHUFFLE_BATCHES * batch_pairs,
        local_shuffle_seed=shuffle_seed,
    ):
        choices = zip(batch["captions"], batch["first"], strict=True)
        yield batch["image"], [str(captions[(first + epoch) % len(captions)]) for captions, first in choices]
