"""Fine-tunes a generator with Ray Train on pairs that Ray Data streams; resumes exactly after a kill.

What is minimised is the method's ``Objective``. ``Training`` takes the steps of one worker and knows no Ray;
``finetune`` places and feeds it.
"""

import logging
import math
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.util.queue import Empty, Queue
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmdd_ray.cluster import actor_resources, pool_size
from mmdd_ray.config import Data, Finetune
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.sources import READ_CPUS, read_pairs
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

Batch = tuple[NDArray[np.uint8], list[str]]
"""Images (B, H, W, 3) and one caption each."""


class Objective(Protocol):
    """What a fine-tuning minimises: a small picklable description that becomes a loss on each worker."""

    def build(self, pipeline: "Pipeline") -> nn.Module:
        """The loss as a module that holds ``pipeline.unet`` and has every trained parameter.

        Called with the two parts of a ``Batch`` and a CPU ``torch.Generator`` for its noise, it returns
        scalar terms by name, of which ``total`` is minimised. All are means over the pairs of the worker or
        of all workers, so that their average over workers is what one worker would report.
        """
        ...


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

    scaling = _scaling(settings)
    options = ray.data.ExecutionOptions(preserve_order=True)  # so that each run sees the same batches
    with _progress_line(settings.steps) as records:
        trainer = TorchTrainer(
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
        raise ValueError(mistake)
    return outcome["losses"]


def _scaling(settings: Finetune) -> Any:
    from ray.train import ScalingConfig

    if settings.batch_pairs % settings.workers:
        raise ValueError(
            f"finetune.batch_pairs={settings.batch_pairs} cannot be shared by finetune.workers="
            f"{settings.workers}; make it a multiple"
        )
    if settings.workers > (fit := pool_size(None, settings.gpus_per_worker)):
        raise ValueError(
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
    """The life of a worker. Rank 0 writes the generator and returns the records of all steps.

    A mistake of the user is returned, not raised: Ray Train would start the workers again, to fail again.
    """
    import ray.train

    job = config["job"]
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
    except ValueError as mistake:
        return {"mistake": str(mistake)}
    if is_first:
        training.finish()
        _save(pipeline, job.store)
    return {"losses": training.losses}


def _build(job: _Job, rank: int, workers: int) -> tuple["Training", "Pipeline"]:
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
    except ValueError as error:
        mistakes = [str(error)]
    if workers > 1:
        found, mistakes = mistakes, [None] * workers
        dist.all_gather_object(mistakes, found[0])
    if mistake := next(filter(None, mistakes), None):
        raise ValueError(mistake)
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


def _checkpoint(training: "Training", is_first: bool) -> None:
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

    batch_pairs = job.settings.batch_pairs // job.settings.workers
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


class Training:
    """An optimiser, averaged weights and the position in the data, at the start of a training or resumed.

    The noise of a batch depends on seed, step, number of the batch in it, and rank only. So ``state`` holds
    no random state, and an interrupted training ends with the weights of an unbroken one.
    """

    def __init__(self, loss: nn.Module, settings: Finetune, *, seed: int, rank: int = 0) -> None:
        """``loss`` is what ``Objective.build`` made, on its device, in ``DistributedDataParallel`` or not."""
        self.loss, self.settings, self.seed, self.rank = loss, settings, seed, rank
        bare = loss.module if isinstance(loss, DistributedDataParallel) else loss
        self.parameters = {name: p for name, p in bare.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = _optimizer(self.parameters.values(), settings)
        self.average = _average(self.parameters.values(), settings.ema_decay)
        self.losses: list[dict[str, float]] = []
        """A record of every step: its number (from 1), terms, gradient norm, learning rate and seconds."""
        self.epoch, self.batch = 0, 0
        """Where the next batch stands in the data."""

    def run(self, open_epoch: Callable[[int], Iterable[Batch]]) -> Iterator[dict[str, float]]:
        """Takes the steps that are left; yields the record of each when ``state`` includes it.

        ``open_epoch`` gives the batches of an epoch, the same ones in the same order at every call.

        Raises:
            ValueError: the loss or its gradient is no finite number, or an epoch has no batch.
        """
        stream = self._batches(open_epoch)
        while len(self.losses) < self.settings.steps:
            yield self._step(islice(stream, self.settings.accumulate))

    def _batches(self, open_epoch: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
        """Endless batches from the current position on, which moves with them."""
        while True:
            number = 0
            for number, batch in enumerate(open_epoch(self.epoch), start=1):
                if number > self.batch:
                    self.batch = number
                    yield batch
            if number == 0:
                raise ValueError(
                    f"the data has fewer usable pairs than finetune.batch_pairs={self.settings.batch_pairs}; "
                    "lower finetune.batch_pairs, or set finetune.steps=0 to keep the generator as it is"
                )
            self.epoch, self.batch = self.epoch + 1, 0

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        started, share = time.monotonic(), 1 / self.settings.accumulate
        step = len(self.losses) + 1
        terms: dict[str, Tensor] = {}
        for number, (images, captions) in enumerate(batches, start=1):
            with self._synchronised(last=number == self.settings.accumulate):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    found = self.loss(images, captions, self._noise(step, number))
                (found["total"] * share).backward()
            terms = {name: terms.get(name, 0) + share * term.detach() for name, term in found.items()}
        # After DDP's averaging the gradient is the same everywhere, so all workers stop here or none.
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm or math.inf)
        if not norm.isfinite():
            raise ValueError(
                f"the loss or its gradient is no finite number at step {step} with finetune.learning_rate="
                f"{self.settings.learning_rate:g}; lower finetune.learning_rate, or set "
                "finetune.max_grad_norm=1"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.step(self.parameters.values())
        record = {
            "step": step,
            **_mean_over_workers(terms),
            "gradient_norm": norm.item(),
            "learning_rate": self.settings.learning_rate,
            "seconds": time.monotonic() - started,
        }
        self.losses.append(record)
        return record

    def _synchronised(self, *, last: bool) -> Any:
        """DDP exchanges gradients once a step, with the last of its batches."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()

    def _noise(self, step: int, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, step, number, self.rank)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed))

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, for ``torch.save`` and ``torch.load(weights_only=True)``."""
        return {
            "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "losses": self.losses,
            "epoch": self.epoch,
            "batch": self.batch,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a ``state`` of a training with the same settings."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
        self.losses, self.epoch, self.batch = list(state["losses"]), state["epoch"], state["batch"]

    def finish(self) -> None:
        """Puts the averaged weights, if there are any, in place of the last ones."""
        if self.average:
            self.average.copy_to(self.parameters.values())


def _average(parameters: Iterable[nn.Parameter], decay: float) -> Any:
    """diffusers' averaged weights, whose decay rises to ``decay`` over the first steps; None without decay."""
    if decay <= 0:
        return None
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=decay, foreach=True)


def _optimizer(parameters: Iterable[nn.Parameter], settings: Finetune) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        # no decay: it would pull biases, norms and scale factors to zero
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)


def _mean_over_workers(terms: dict[str, Tensor]) -> dict[str, float]:
    values = torch.stack([term.float() for term in terms.values()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(terms, values.tolist(), strict=True))
