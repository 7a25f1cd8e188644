"""A student of a finished run, trained again and written as a model of open_clip."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from mmdd_ray.config.changes import known_name
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import FOLDER
from mmdd_ray.engine.draws import draws_of
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.finished_run import FinishedRun, read_run
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.panel import loss_curve
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.method import Run
from mmdd_ray.methods.named_sets import named_sets
from mmdd_ray.methods.saved import open_run
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET
from mmdd_ray.storage.store import Store


@dataclass(frozen=True)
class Exported:
    """A student that was written, and the one of the run that it is to be."""

    set: str
    """Name of the set in the run's report."""
    recorded: Mapping[str, Any]
    """The figures of the run's own student."""
    apart: float
    """Greatest difference between the two in a point of the loss curve; other devices and other versions of libraries
    round otherwise."""


def export_student(
    uri: str, folder: Path, name: str | None = None, *, draw: int = 0, seed: int = 1
) -> Exported:
    """Trains a student of a distilled or given set under "equal-budget" as the run did, for runs keep no weights.

    Args:
        uri: Run directory, a local folder or a URI; a finished run of pairs.
        folder: New local folder, ``export_open_clip``'s.
        name: The set, by its name in the report. Default: the first.
        draw: Which distillation, where the run has several.
        seed: Which student, from 1 on.

    Raises:
        UserError: It is no such run, it has no such student, the set is no longer what its students were trained on, or
            open_clip has no model that is the same; before anything is trained.
    """
    finished = _panel(Store(uri))
    run = open_run(uri)
    name = known_name(name or finished.distilled[0], finished.distilled, "set")
    if (recorded := finished.tested[name].get((draw, seed))) is None:
        draws = 1 + max(number for number, _ in finished.tested[name])
        raise UserError(
            f"{finished.uri} has no student {seed} of draw {draw} of {name}; its draws are 0 to {draws - 1}, its "
            f"students 1 to {max(finished.seeds(name))}"
        )
    pairs = _pairs(run, name, draw)
    if pairs.fingerprint() != recorded["inputs"][0]:
        raise UserError(
            f"the set {name} of {finished.uri} is not what its students were trained on; go on with the run, so that "
            "they are trained on it, or copy it again"
        )

    import torch

    from mmdd_ray.evaluation.tasks.students import train_student
    from mmdd_ray.models.open_clip_export import check_open_clip, export_open_clip
    from mmdd_ray.models.students import load_student

    students = run.settings.students
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as Ray gives a task: sums over more threads round otherwise
    check_open_clip(load_student(students, seed, "cpu"), folder)
    trained = train_student(
        pairs,
        students,
        learning_rate=recorded["learning_rate"],
        seed=derive_seed(run.settings.run.seed, seed),
        device=device,
    )
    export_open_clip(trained.student, folder, students.temperature)
    return Exported(name, recorded, _apart(loss_curve(trained.losses), recorded["loss_curve"]))


def _panel(store: Store) -> FinishedRun:
    """The run's students under "equal-budget"."""
    panels = read_run(store, "")
    where = panels[0].uri
    if panels[0].task != "retrieval":
        raise UserError(
            f"{where} has classifiers, of which open_clip knows nothing; name a run of pairs of images and captions"
        )
    found = next((panel for panel in panels if panel.protocol[0] == EQUAL_BUDGET), None)
    if found is None:
        raise UserError(
            f"{where} has no students under {EQUAL_BUDGET}, and open_clip no model of the form that published "
            f"protocols give theirs; go on with the run and --evaluation.protocols {EQUAL_BUDGET}"
        )
    return found


def _pairs(run: Run, name: str, draw: int) -> PairSet | LearntPairs:
    from mmdd_ray.engine.cluster import connected
    from mmdd_ray.evaluation.sets import distilled_set
    from mmdd_ray.methods.evaluate.reading import of_text_model, read_sets

    if not isinstance(settings := run.settings, Evaluate):
        folder = run.store.child(f"{draws_of(settings)[draw].within}{FOLDER}")
        return distilled_set(folder, settings.students.image_px)
    is_source = any(one.kind == "pairs" for one in named_sets(settings.set))
    with connected(settings.run, run.store) if is_source else nullcontext():
        given = of_text_model(read_sets(settings), settings.students)
    return next(one.pairs for one in given if one.named.name == name)


def _apart(curve: list[float | None], recorded: list[float | None]) -> float:
    if len(curve) != len(recorded):
        return inf
    return max(
        (abs(one - other) for one, other in zip(curve, recorded, strict=True) if one and other), default=0.0
    )
