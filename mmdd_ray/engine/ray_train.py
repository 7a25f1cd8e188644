"""Ray Train as every training here uses it: workers that go on from checkpoints, and mistakes as one sentence.

A training gives ``train`` a function that is one worker's life. It builds its models inside ``Worker.raise_on_all``,
asks for ``Worker.restored``, takes its steps through ``Worker.run_steps``, and returns what rank 0 has to say.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.util.queue import Empty, Queue

from mmdd_ray.config import Training
from mmdd_ray.engine.cluster import actor_resources, missing, pool_size, shows_logs
from mmdd_ray.engine.data_position import Batch
from mmdd_ray.engine.memory import out_of_memory, peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.storage.store import Store

CHECKPOINTS = "checkpoints"
PAIRS = "pairs"  # Ray Train's name of the dataset
SHUFFLE_BATCHES = 16  # 16 * 128 pairs * 224 px * 224 px * 3 B = 294 MiB held by a worker


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many workers, and the settings that messages name."""

    section: str
    """Section of the settings that ``training`` is. Names the line of progress, too."""
    training: Training
    memory_setting: str
    """The setting to lower where a GPU is too small."""
    steps: int
    checkpoint_steps: int


class Worker:
    """One worker of a training, and its dealings with the others."""

    def __init__(self, placement: Placement, records: Queue) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.workers: int = context.get_world_size()
        self.placement = placement
        self._records = records

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Raises on all workers the ``UserError`` that was raised inside the block on one of them."""
        mistakes: list[str | None] = [None]
        try:
            yield
        except UserError as error:
            mistakes = [str(error)]
        if self.workers > 1:
            found, mistakes = mistakes, [None] * self.workers
            dist.all_gather_object(mistakes, found[0])
        if mistake := next(filter(None, mistakes), None):
            raise UserError(mistake)

    def restored(self, file: str) -> dict[str, Any] | None:
        """The state in this file of the last checkpoint, if there is one."""
        import ray.train

        if not (checkpoint := ray.train.get_checkpoint()):
            return None
        with checkpoint.as_directory() as folder:
            return torch.load(Path(folder, file), map_location="cpu", weights_only=True)

    def run_steps(
        self, steps: Iterator[dict[str, float]], states: Callable[[], Mapping[str, dict[str, Any]]]
    ) -> None:
        """Takes all steps; shows their records (``step``, ``total``) and saves checkpoints.

        Args:
            states: gives what this worker adds to a checkpoint, by file name; names differ between workers.
        """
        for record in steps:
            if self.rank == 0:
                # does not wait and cannot fail, unlike Queue.put_nowait
                reported = {**record, "peak_bytes": peak_bytes()}
                self._records.actor.put_nowait.remote(reported)  # type: ignore[attr-defined]
            if record["step"] % self.placement.checkpoint_steps == 0:
                _checkpoint(states())


def train(
    work: Callable[[Worker, Any], dict[str, Any]],
    job: Any,
    placement: Placement,
    *,
    store: Store,
    pairs: "ray.data.Dataset | None" = None,
) -> dict[str, Any]:
    """Runs ``work(worker, job)`` on every worker and gives what rank 0 returned.

    Workers of a lost machine are started again and go on from the last checkpoint below ``store``.

    Args:
        pairs: for ``pair_batches``.

    Raises:
        UserError: the workers do not fit on the cluster, or one of them raised it.
    """
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Without the actor that frees placement groups of a lost controller, and without a Ctrl-C of its own.

        They are freed with the job, which ends then. The actor takes 4 s to start, and where several local Rays
        run, it prints a traceback because it does not know which one is its own. Ctrl-C is to stop the run at once:
        Ray Train's would wait for the workers, end with the status 0, and stay in place after the training.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # Ray Train V2 alone
            return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]

        def _register_sigint_handler(self, controller: Any) -> None:
            pass

    scaling = _scaling(placement)
    options = ray.data.ExecutionOptions(preserve_order=True)  # so that each run sees the same batches
    with _progress_line(placement) as records:
        trainer = Trainer(
            _live,  # type: ignore[arg-type]  # Ray's annotations are those of Ray Train V1
            train_loop_config={
                "work": work,
                "job": job,
                "placement": placement,
                "records": records,
                "verbose": shows_logs(),
            },
            scaling_config=scaling,
            datasets={PAIRS: pairs} if pairs else {},
            dataset_config=DataConfig(execution_options=options),
            run_config=RunConfig(  # type: ignore[call-arg]  # likewise
                name=CHECKPOINTS,  # a run of the same name in the same place goes on
                storage_path=store.uri,
                # losses that a cloud announces have a budget of their own, which has no end
                failure_config=FailureConfig(max_failures=placement.training.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                logging_config=LoggingConfig(log_level="INFO" if shows_logs() else "ERROR"),
            ),
        )
        outcome = trainer.fit().return_value  # type: ignore[attr-defined]  # likewise
    if mistake := outcome.get("mistake"):
        raise UserError(mistake)
    return outcome


def pair_batches(batch_pairs: int, *, seed: int, epoch: int) -> Iterator[Batch]:
    """This worker's share of an epoch of ``train``'s pairs: shuffled anew, with the next caption of each pair.

    Args:
        batch_pairs: of this worker.
    """
    import ray.train

    shuffle_seed = derive_seed(seed, epoch)
    for batch in ray.train.get_dataset_shard(PAIRS).iter_batches(
        batch_size=batch_pairs,
        batch_format="numpy",
        drop_last=True,
        local_shuffle_buffer_size=SHUFFLE_BATCHES * batch_pairs,
        local_shuffle_seed=shuffle_seed,
    ):
        choices = zip(batch["captions"], batch["first"], strict=True)
        yield batch["image"], [str(captions[(first + epoch) % len(captions)]) for captions, first in choices]


def _live(config: dict[str, Any]) -> dict[str, Any]:
    """The life of a worker.

    A mistake of the user is returned, not raised: Ray Train would start the workers again, to fail again. A GPU that is
    too small for one worker's share fails that worker alone. It has to raise, since the others would wait for it for
    ever.
    """
    placement: Placement = config["placement"]
    if not config["verbose"]:
        logging.getLogger().setLevel(logging.WARNING)  # Ray Train shows INFO of all libraries
    with out_of_memory(placement.memory_setting):
        try:
            return config["work"](Worker(placement, config["records"]), config["job"])
        except UserError as mistake:
            return {"mistake": str(mistake)}


def _checkpoint(states: Mapping[str, dict[str, Any]]) -> None:
    """Reports this worker's part of a checkpoint; every worker has to."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        for name, state in states.items():
            torch.save(state, Path(folder, name))
        checkpoint = ray.train.Checkpoint.from_directory(folder) if states else None
        ray.train.report({}, checkpoint=checkpoint)


def _scaling(placement: Placement) -> Any:
    from ray.train import ScalingConfig

    section, training = placement.section, placement.training
    each_gpus = training.gpus_per_worker
    if training.workers > (fit := pool_size(None, each_gpus)):
        raise UserError(
            f"{section}.workers={training.workers}, but this cluster has room for {fit} beside the readers; "
            f"lower {section}.workers or {section}.gpus_per_worker, or add machines"
        )
    each = actor_resources(each_gpus)
    return ScalingConfig(
        num_workers=training.workers,
        use_gpu=each["num_gpus"] > 0,
        resources_per_worker={"CPU": each["num_cpus"], "GPU": each["num_gpus"]},
    )


@contextmanager
def _progress_line(placement: Placement) -> Iterator[Queue]:
    """A queue for the workers' records, shown as a line of progress while the block waits for them."""
    records = Queue(actor_options={"num_cpus": 0})
    done = threading.Event()

    def show() -> None:
        with progress(placement.section, total=placement.steps, unit="steps", missing=missing) as bar:
            while True:
                ended = done.is_set()  # before looking, so that the last records are seen
                try:
                    record = records.get(timeout=0.1 if ended else 1)
                except Empty:
                    if ended:
                        return
                    continue
                except RayActorError:  # the line is lost with the node of the queue, the training is not
                    return
                bar.note_memory(record["peak_bytes"])
                bar.note(loss=record["total"])
                bar.note_record(record)
                step = int(record["step"])
                if not bar.n:
                    bar.resume(step - 1)  # steps of an earlier attempt
                bar.update(step - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield records
    finally:
        done.set()
        thread.join()
        records.shutdown()
