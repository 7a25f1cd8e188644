"""Compares sets by the students they make, under each protocol and with each kind of student.

Students are dual encoders that are tested by retrieval, or classifiers. All sets are trained on under one protocol with
one kind of student before the next; their figures are a panel of the report, and those of different panels are never
compared. The result of a student is a small JSON file in the stage's folder, named by what it is, so an interrupted
comparison goes on with the missing students.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.config import Classifiers, Evaluation, Students
from mmdd_ray.data.pair import safe_name
from mmdd_ray.engine import cluster
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.bench import Bench, Given, HeldOut, Name, Placed, Student
from mmdd_ray.evaluation.panel import Result, about_protocol, best_rate, summary, training_notes
from mmdd_ray.evaluation.report.words import FULL
from mmdd_ray.evaluation.tasks import tasks_of
from mmdd_ray.evaluation.tasks.task import Task
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET
from mmdd_ray.storage.store import Store

EVALUATION = "evaluation.json"
CURVE_PAIRS = "curve_pairs"  # in it, the sizes of nested sets
FOLDER = "students"
VAL_SEED = 0  # of the students that choose the learning rate; those that are reported have the seeds 1, 2, …


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
        (name, draw): Placed(one)
        for name, given in sets.items()
        for draw, one in enumerate(given if isinstance(given, list) else [given])
    }
    held_out = {"val": Placed(val), "test": Placed(test)}
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
    drawn: Mapping[Name, Placed],
    held_out: Mapping[str, Placed],
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
    bench = Bench(drawn, held_out, task, evaluation.gpus_per_student, seed, store)
    seeds = task.protocol.students or evaluation.seeds
    on_val, on_test = _train_all(bench, list(drawn), task.main_metric, rates, seeds, shown)
    names = list(dict.fromkeys(name for name, _ in drawn))
    return {
        "task": task.name,
        "protocol": about_protocol(task, rates),
        "models": task.models,
        "folder": store.uri.rpartition("/")[2],
        "sets": {
            name: summary(_of_set(on_val, name), _of_set(on_test, name), task) | bench.facts(name)
            for name in names
        },
        "notes": {name: told for name in names if (told := training_notes(_of_set(on_test, name)))},
        "chance": task.chance(test),
    }


def folder_of(task: Task, own_models: str) -> str:
    """Where the students of a panel are kept: those of other protocols and models have folders of their own."""
    if task.protocol.name == EQUAL_BUDGET and task.models == own_models:
        return FOLDER
    return f"{FOLDER}-{safe_name(f'{task.protocol.name}-{task.models}'.lower())}"


def _train_all(
    bench: Bench, drawn: Sequence[Name], metric: str, rates: Sequence[float], seeds: int, shown: str
) -> tuple[dict[Student, Result], dict[Student, Result]]:
    """Students that choose the learning rate of each set, and those that are reported."""
    tried = rates if len(rates) > 1 else ()
    total = len(drawn) * (len(tried) + seeds)
    with progress(shown, total=total, unit="students", missing=cluster.missing) as bar:
        on_val = bench.train(
            [Student(name, rate, VAL_SEED, "val", draw) for name, draw in drawn for rate in tried], bar
        )
        chosen = {name: best_rate(_of_set(on_val, name), metric) if tried else rates[0] for name, _ in drawn}
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


def _of_set(results: Mapping[Student, Result], name: str) -> list[list[Result]]:
    """The results of each draw of a set."""
    found: dict[int, list[Result]] = {}
    for student, result in results.items():
        if student.set == name:
            found.setdefault(student.draw, []).append(result)
    return list(found.values())
