"""Compares sets by the students they make, under each protocol and with each kind of student.

Students are dual encoders that are tested by retrieval, or classifiers. All sets are trained on under one protocol with
one kind of student before the next; their figures are a panel of the report, and those of different panels are never
compared. The result of a student is a small JSON file in the stage's folder, named by what it is, so an interrupted
comparison goes on with the missing students.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from time import monotonic
from typing import Any, Literal

import numpy as np
import ray

from mmdd_ray.config import Classifiers, Evaluation, Students
from mmdd_ray.data.pair import safe_name
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine import cluster
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory, peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.engine.tasks import as_done
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.report.words import FULL
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.evaluation.tasks import tasks_of
from mmdd_ray.evaluation.tasks.task import Task
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET
from mmdd_ray.storage.store import Store

EVALUATION = "evaluation.json"
CURVE_PAIRS = "curve_pairs"  # in it, the sizes of nested sets
FOLDER = "students"
VAL_SEED = 0  # of the students that choose the learning rate; those that are reported have the seeds 1, 2, …
RETRIES = 5  # of a student whose worker or node was lost
CURVE_POINTS = 100  # of a reported loss curve

Result = dict[str, Any]
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


def compare(
    sets: Mapping[str, Given | list[Given]],
    val: HeldOut,
    test: HeldOut,
    students: Students | Classifiers,
    evaluation: Evaluation,
    seed: int,
    stage: StageDir,
    teacher: str | None = None,
) -> dict[str, Any]:
    """Trains students on every set and reports how well they do on the test data.

    For each set and learning rate of a protocol's grid one student is tested with ``val``; the rate with the best mean
    recall or top-1 accuracy (the first of equals) is the set's. A grid of one rate needs none of them. Then as many
    students as the protocol has, or ``evaluation.seeds``, are trained at that rate and tested with ``test``, each after
    its last step. Students of one seed start alike. Where a protocol looks at students on their way, the figures of
    these looks are kept beside those of the last step.

    A set that was drawn several times has one learning rate, that with the best mean over its draws: one choice from
    all figures is less noisy than a choice for each draw, and all draws are then trained alike. Every draw has students
    of the same seeds.

    Args:
        sets: by name, which becomes part of file names; a list is the draws of one set. A set may already be in the
            object store. Pairs for dual encoders, labelled images for classifiers, and so are ``val`` and ``test``.
        students: settings of the dual encoders or of the classifiers.
        seed: of the run; each student derives its own from it.
        stage: finished students are kept in its folder and are not trained again.
        teacher: where the weights of the teacher are, if a protocol needs one.

    Returns:
        One panel, and under ``others`` those of further protocols and students. A panel is ``{"task": ...,
        "protocol": ..., "models": ..., "folder": ..., "sets": {name: ...}, "chance": {...}}``, as JSON. The task is
        "retrieval" or "classification", the folder that of the students. A set has ``draws``, their number;
        ``learning_rate``; ``on_val``, the figures that decided, by learning rate; ``metrics`` in percent, by name, as
        ``spread`` gives them; ``best_look``, the same at the best look of each student, which a published protocol
        chose on the test data, otherwise None; ``looks``, the mean of the deciding metric over all students after so
        many steps; ``loss_curve`` (of its first student on test: at most 100 means over equal slices of the steps, null
        where training diverged); ``steps`` of a student, and ``images_seen`` by it; ``pairs``, ``images`` and ``bytes``
        (of its first draw); ``fingerprints`` of its draws, which are the same for the same pairs; and ``seconds``, the
        sum over all its students. ``chance`` takes all test images to have their mean number of captions.

    Raises:
        ValueError: an encoder cannot be loaded, images are not of ``students.image_px``, or the settings
            leave no student to train.
    """
    drawn = {
        (name, draw): _Placed(one)
        for name, given in sets.items()
        for draw, one in enumerate(given if isinstance(given, list) else [given])
    }
    held_out = {"val": _Placed(val), "test": _Placed(test)}
    tasks = tasks_of(students, evaluation, teacher)
    main, *others = [
        _panel(
            task,
            drawn,
            held_out,
            evaluation,
            seed,
            stage.store.child(folder_of(task, tasks[0].models)),
            test,
            f"students {task.protocol.name}" if len(tasks) > 1 else "students",
        )
        for task in tasks
    ]
    return main | {"others": others}


def count_students(found: Mapping[str, Any]) -> int:
    """Students that were tested with the test data, in all panels of what `compare` gave."""
    sets = [one for panel in (found, *found["others"]) for one in panel["sets"].values()]
    return sum(len(next(iter(one["metrics"].values()))["runs"]) for one in sets)


def has_all(folder: Store, students: Students | Classifiers, evaluation: Evaluation) -> bool:
    """Whether the comparison that a folder holds, if any, has each protocol and kind of student that is wanted now, and
    as many students."""
    if not folder.exists(EVALUATION):
        return True
    found = folder.read_json(EVALUATION)
    panels = [
        (panel["protocol"]["name"], panel["protocol"]["version"], panel["models"], _students_of_a_draw(panel))
        for panel in (found, *found["others"])
    ]
    wanted = tasks_of(students, evaluation)
    if found.get(CURVE_PAIRS, []) != [*evaluation.curve_pairs]:
        return False
    return panels == [
        (
            task.protocol.shown_name(task.image_px),
            task.protocol.version,
            task.models,
            task.protocol.students or evaluation.seeds,
        )
        for task in wanted
    ]


def _students_of_a_draw(panel: Mapping[str, Any]) -> int:
    """Students of each draw of each set, which are equally many."""
    one = next(iter(panel["sets"].values()))
    return len(next(iter(one["metrics"].values()))["runs"]) // int(one["draws"])


def _panel(
    task: Task,
    drawn: Mapping[Name, "_Placed"],
    held_out: Mapping[str, "_Placed"],
    evaluation: Evaluation,
    seed: int,
    store: Store,
    test: HeldOut,
    shown: str,
) -> dict[str, Any]:
    """The figures of all sets under one protocol, with one kind of student; ``shown`` names it in progress lines."""
    rates = task.learning_rates(test)
    _check_students(task, rates, evaluation)
    if task.protocol.is_published:
        drawn = {name: one for name, one in drawn.items() if name[0] != FULL}
    bench = _Bench(drawn, held_out, task, evaluation.gpus_per_student, seed, store)
    seeds = task.protocol.students or evaluation.seeds
    on_val, on_test = _train_all(bench, list(drawn), task.main_metric, rates, seeds, shown)
    return {
        "task": task.name,
        "protocol": about_protocol(task, rates),
        "models": task.models,
        "folder": store.uri.rpartition("/")[2],
        "sets": {
            name: _summary(_of_set(on_val, name), _of_set(on_test, name), task) | bench.facts(name)
            for name in dict.fromkeys(name for name, _ in drawn)
        },
        "notes": {
            name: notes
            for name in dict.fromkeys(name for name, _ in drawn)
            if (notes := _notes(_of_set(on_test, name)))
        },
        "chance": task.chance(test),
    }


def folder_of(task: Task, own_models: str) -> str:
    """Where the students of a panel are kept: those of other protocols and models have folders of their own."""
    if task.protocol.name == EQUAL_BUDGET and task.models == own_models:
        return FOLDER
    return f"{FOLDER}-{safe_name(f'{task.protocol.name}-{task.models}'.lower())}"


def about_protocol(task: Task, learning_rates: Sequence[float]) -> dict[str, Any]:
    """What a report says of the protocol of a panel."""
    protocol = task.protocol
    rates = " or ".join(f"{rate:g}" for rate in learning_rates)
    if protocol.is_published:
        chosen = f"learning rate {rates}, as published; figures after the last step"
    elif len(learning_rates) > 1:
        chosen = f"learning rate of each set ({rates}) by its figures on validation data; figures after the last step"
    else:
        chosen = f"learning rate {rates} for all sets; figures after the last step"
    return {
        "name": protocol.shown_name(task.image_px),
        "version": protocol.version,
        "source": protocol.source,
        "summary": protocol.summary,
        "chosen": chosen,
        "differs": list(protocol.differs),
        "unsure": list(protocol.unsure),
        "published": protocol.is_published,
    }


def _train_all(
    bench: "_Bench", drawn: Sequence[Name], metric: str, rates: Sequence[float], seeds: int, shown: str
) -> tuple[dict[Student, Result], dict[Student, Result]]:
    """Students that choose the learning rate of each set, and those that are reported."""
    tried = rates if len(rates) > 1 else ()
    total = len(drawn) * (len(tried) + seeds)
    with progress(shown, total=total, unit="students", missing=cluster.missing) as bar:
        on_val = bench.train(
            [Student(name, rate, VAL_SEED, "val", draw) for name, draw in drawn for rate in tried], bar
        )
        chosen = {name: _best_rate(_of_set(on_val, name), metric) if tried else rates[0] for name, _ in drawn}
        reported = range(VAL_SEED + 1, VAL_SEED + 1 + seeds)
        on_test = bench.train(
            [Student(name, chosen[name], i, "test", draw) for name, draw in drawn for i in reported], bar
        )
    return on_val, on_test


def _check_students(task: Task, rates: Sequence[float], evaluation: Evaluation) -> None:
    if not rates or evaluation.seeds < 1:
        raise UserError(
            f"{task.section}.learning_rates={rates} and evaluation.seeds={evaluation.seeds} "
            f"leave no student to train; give at least one of each"
        )


class _Placed:
    """A set in the object store, and what the driver needs to know about it, whatever students it has."""

    def __init__(self, given: Given) -> None:
        self.pairs: ray.ObjectRef[Any] = given if isinstance(given, ray.ObjectRef) else ray.put(given)
        pairs: TrainedOn = ray.get(self.pairs)
        self.sizes = {"pairs": pairs.n_pairs, "images": pairs.n_images, "bytes": pairs.n_bytes}
        self.fingerprint = pairs.fingerprint()


class _Bench:
    """Trains students in parallel tasks and keeps what they score."""

    def __init__(
        self,
        sets: Mapping[Name, _Placed],
        held_out: Mapping[str, _Placed],
        task: Task,
        gpus_per_student: float,
        seed: int,
        store: Store,
    ) -> None:
        self._sets, self._held_out = sets, held_out
        self._prepared: dict[
            _Placed, ray.ObjectRef[Any]
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

    def _prepared_of(self, placed: _Placed) -> ray.ObjectRef[Any] | None:
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
        "loss_curve": _curve(trained.losses),
        "seconds": round(monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
    }


def _prepare(task: Task, given: TrainedOn | HeldOut, device: str) -> np.ndarray:
    assert task.prepare is not None
    with out_of_memory(task.memory_setting):
        return task.prepare(given, device)


def _curve(losses: np.ndarray) -> list[float | None]:
    slices = np.array_split(losses.astype(np.float64), min(len(losses), CURVE_POINTS))
    means = [float(part.mean()) for part in slices]
    return [mean if isfinite(mean) else None for mean in means]  # JSON has no NaN


def _of_set(results: Mapping[Student, Result], name: str) -> list[list[Result]]:
    """The results of each draw of a set."""
    found: dict[int, list[Result]] = {}
    for student, result in results.items():
        if student.set == name:
            found.setdefault(student.draw, []).append(result)
    return list(found.values())


def _val_means(on_val: Sequence[Sequence[Result]], metric: str) -> dict[float, float]:
    """The metric of each learning rate on validation data, mean over the draws of a set."""
    return {
        of_rate[0]["learning_rate"]: float(np.mean([result["metrics"][metric] for result in of_rate]))
        for of_rate in zip(*on_val, strict=True)
    }


def _best_rate(on_val: Sequence[Sequence[Result]], metric: str) -> float:
    means = _val_means(on_val, metric)
    return max(means, key=lambda rate: means[rate])


def _summary(
    on_val: Sequence[Sequence[Result]], on_test: Sequence[Sequence[Result]], task: Task
) -> dict[str, Any]:
    """One set's part of the report, but for its size; results are those of each draw."""
    first, metric = on_test[0][0], task.main_metric
    last = [[result["metrics"] for result in results] for results in on_test]
    looks = [result["looks"] for results in on_test for result in results]
    best = None
    if task.protocol.is_published:
        best = _spreads([[best_look(result, metric) for result in results] for results in on_test])
    return {
        "draws": len(on_test),
        "learning_rate": first["learning_rate"],
        "on_val": {str(rate): mean for rate, mean in _val_means(on_val, metric).items()},
        "metrics": _spreads(last),
        "best_look": best,
        "looks": [
            {"steps": at[0]["steps"], metric: float(np.mean([one["metrics"][metric] for one in at]))}
            for at in zip(*looks, strict=True)
        ],
        "loss_curve": first["loss_curve"],
        "loss": first.get("loss"),
        "steps": first["steps"],
        "images_seen": first["images_seen"],
        "seconds": round(sum(result["seconds"] for results in [*on_val, *on_test] for result in results), 3),
    }


def _notes(on_test: Sequence[Sequence[Result]]) -> list[str]:
    """How students took a set, and the learning rates that were learnt with its draws; older students say nothing."""
    found = [note for results in on_test for result in results for note in result.get("notes", ())]
    rates = [learnt for results in on_test if (learnt := results[0].get("learnt_rates"))]
    if rates:
        each = "; ".join(f"{image:.3g} and {text:.3g}" for image, text in rates)
        found.append(
            f"its students had the learning rates that were learnt with it, of images and texts: {each}"
        )
    return [*dict.fromkeys(found)]


def best_look(result: Result, metric: str) -> dict[str, float]:
    """All metrics of a student at the look where the deciding one was best, the first of equals."""
    return max(
        [one["metrics"] for one in result["looks"]] or [result["metrics"]], key=lambda one: one[metric]
    )


def _spreads(metrics_KS: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """`spread` of each metric of the students of each draw."""
    return {
        name: spread([[metrics[name] for metrics in students] for students in metrics_KS])
        for name in metrics_KS[0][0]
    }
