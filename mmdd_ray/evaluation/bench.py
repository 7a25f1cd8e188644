"""Trains students in parallel tasks and keeps what they score.

The result of a student is a small JSON file, named by what it is, so an interrupted comparison goes on with the missing
students.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, Literal

import numpy as np
import ray

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine import cluster
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory, peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.engine.tasks import as_done
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.panel import Result, loss_curve
from mmdd_ray.evaluation.tasks.task import Task
from mmdd_ray.storage.store import Store

RETRIES = 5  # of a student whose worker or node was lost

TrainedOn = PairSet | LearntPairs | LabelledSet
HeldOut = PairSet | LabelledSet
Given = TrainedOn | ray.ObjectRef[Any]
Name = tuple[str, int]  # of a set and of its draw


@dataclass(frozen=True)
class Student:
    """One student: the set it is trained on, how, and the part it is tested with."""

    set: str
    learning_rate: float
    seed: int
    held_out: Literal["val", "test"]
    draw: int = 0

    @property
    def file(self) -> str:
        drawn = f"{self.set}-draw{self.draw}" if self.draw else self.set
        return f"{drawn}-lr{self.learning_rate}-seed{self.seed}.json"


class Placed:
    """A set in the object store, and what the driver needs to know about it, whatever students it has."""

    def __init__(self, given: Given) -> None:
        self.pairs: ray.ObjectRef[Any] = given if isinstance(given, ray.ObjectRef) else ray.put(given)
        pairs: TrainedOn = ray.get(self.pairs)
        self.sizes = {"pairs": pairs.n_pairs, "images": pairs.n_images, "bytes": pairs.n_bytes}
        self.fingerprint = pairs.fingerprint()


class Bench:
    """Trains students in parallel tasks and keeps what they score."""

    def __init__(
        self,
        sets: Mapping[Name, Placed],
        held_out: Mapping[str, Placed],
        task: Task,
        gpus_per_student: float,
        seed: int,
        store: Store,
    ) -> None:
        self._sets, self._held_out = sets, held_out
        self._prepared: dict[
            Placed, ray.ObjectRef[Any]
        ] = {}  # what all students need of a set, once one does
        self._task = task
        self._seed = seed
        self._store = store
        resources = cluster.actor_resources(gpus_per_student)
        self._device = device_with(resources)
        # Declared with their GPUs, and not by .options(): then Ray ends a worker after each task on a GPU. torch
        # keeps the first GPU that a process has seen, so students in workers that are used again would pile up on
        # one GPU of a node. Ten seconds of imports are little beside a student that is worth a GPU; on CPUs workers
        # are used again.
        self._train = ray.remote(max_retries=RETRIES, **resources)(_train_and_test)
        self._prepare = ray.remote(max_retries=RETRIES, **resources)(_prepare)

    def facts(self, name: str) -> dict[str, Any]:
        """The size of a set's first draw, and the fingerprints of all."""
        prints = [placed.fingerprint for (own, _), placed in self._sets.items() if own == name]
        return self._sets[name, 0].sizes | {"fingerprints": prints}

    def train(self, wanted: Sequence[Student], bar: progress) -> dict[Student, Result]:
        """Results in the order of ``wanted``; those of earlier attempts are read, the others computed."""
        found = {student: result for student in wanted if (result := self._committed(student))}
        bar.resume(len(found))
        running = {self._submit(student): student for student in wanted if student not in found}
        for student, result in as_done(running):
            found[student] = asdict(student) | {"inputs": self._inputs(student)} | result
            bar.note_memory(found[student]["peak_bytes"])
            self._store.write_json(student.file, found[student])
            bar.update()
        return {student: found[student] for student in wanted}

    def _submit(self, student: Student) -> ray.ObjectRef[Any]:
        trained_on, held_out = self._sets[student.set, student.draw], self._held_out[student.held_out]
        return self._train.remote(
            trained_on.pairs,
            self._prepared_of(trained_on),
            held_out.pairs,
            self._prepared_of(held_out),
            self._task,
            student.learning_rate,
            # one run seed and two students never share a stream, as they would with seed + index
            derive_seed(self._seed, student.seed),
            self._device,
            student.held_out == "test",
        )

    def _prepared_of(self, placed: Placed) -> ray.ObjectRef[Any] | None:
        if self._task.prepare is not None and placed not in self._prepared:
            self._prepared[placed] = self._prepare.remote(self._task, placed.pairs, self._device)
        return self._prepared.get(placed)

    def _committed(self, student: Student) -> Result | None:
        """The result of an earlier attempt, unless it was trained on or searched with other pairs."""
        if not self._store.exists(student.file):
            return None
        result = self._store.read_json(student.file)
        return result if result["inputs"] == self._inputs(student) else None

    def _inputs(self, student: Student) -> list[str]:
        return [
            self._sets[student.set, student.draw].fingerprint,
            self._held_out[student.held_out].fingerprint,
            *self._task.made_by,
        ]


def _train_and_test(
    trained_on: TrainedOn,
    prepared: np.ndarray | None,
    held_out: HeldOut,
    held_out_prepared: np.ndarray | None,
    task: Task,
    learning_rate: float,
    seed: int,
    device: str,
    looked_at: bool = False,
) -> Result:
    started = monotonic()
    looks: list[dict[str, Any]] = []

    def look(student: Any, steps: int) -> None:
        looks.append({"steps": steps, "metrics": task.test(student, held_out, held_out_prepared)})

    with out_of_memory(task.memory_setting):
        trained = task.train(
            trained_on,
            prepared,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            look=look if looked_at else None,
        )
        metrics = task.test(trained.student, held_out, held_out_prepared)
    steps = len(trained.losses)
    return {
        "metrics": metrics,
        "looks": [*looks, {"steps": steps, "metrics": metrics}] if looks else [],
        "steps": steps,
        "images_seen": trained.images_seen,
        "loss": trained.loss,
        "learnt_rates": trained.learnt_rates,
        "notes": [*trained.notes],
        "loss_curve": loss_curve(trained.losses),
        "seconds": round(monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
    }


def _prepare(task: Task, given: TrainedOn | HeldOut, device: str) -> np.ndarray:
    assert task.prepare is not None
    with out_of_memory(task.memory_setting):
        return task.prepare(given, device)
