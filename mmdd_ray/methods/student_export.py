"""A student of a finished run, trained again and written as a model of open_clip."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from mmdd_ray.evaluation.report.words import BASELINES
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.method import Run
from mmdd_ray.methods.saved import open_run
from mmdd_ray.protocols import pair_protocol
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET
from mmdd_ray.storage.redact import REDACTED
from mmdd_ray.storage.store import Store

SETS = "set/sets.json"
"""In the run directory of given sets, what each of them is, in the order of the setting."""


@dataclass(frozen=True, eq=False)
class RunStudent:
    """A student that a finished run trained, and all that it takes to train it again."""

    settings: Any
    """Those of the run."""
    set: str
    """Name of its set in the run's report."""
    seed: int
    """Its number, from 1 on."""
    pairs: PairSet | LearntPairs
    recorded: Mapping[str, Any]
    """Its figures in the run."""


def find_student(uri: str, name: str | None = None, *, draw: int = 0, seed: int = 1) -> RunStudent:
    """A student under "equal-budget" of a distilled or given set.

    Args:
        uri: Run directory, a local folder or a URI; a finished run of pairs.
        name: The set, by its name in the report. Default: the first one that is no baseline.
        draw: Which distillation, where the run has several.
        seed: Which student, from 1 on.

    Raises:
        UserError: It is no such run, it has no such student, or the set is no longer what its students were trained on.
    """
    finished = _panel(Store(uri))
    run = open_run(uri)
    version = str(pair_protocol(EQUAL_BUDGET, run.settings.students).version)
    if finished.protocol[1] != version:
        raise UserError(
            f"{finished.uri} has students of {EQUAL_BUDGET}, version {finished.protocol[1]}, and this is version "
            f"{version}, which may train others; go on with the run, which then trains them anew"
        )
    if name in BASELINES:
        raise UserError(
            f"{name} is a baseline, which a run does not keep as a set; choose one of {', '.join(finished.distilled)}"
        )
    name = known_name(name or finished.distilled[0], finished.distilled, "set")
    if (recorded := finished.tested[name].get((draw, seed))) is None:
        last = max(number for number, _ in finished.tested[name])
        raise UserError(
            f"{finished.uri} has no student --seed {seed} --draw {draw} of {name}; its seeds are 1 to "
            f"{max(finished.seeds(name))}, its draws 0 to {last}"
        )
    if None in recorded["loss_curve"]:
        raise UserError(
            f"the training of student {seed} of {name} in {finished.uri} diverged, so it finds nothing; choose another "
            "--seed"
        )
    pairs = _pairs(run, name, draw)
    if pairs.fingerprint() != recorded["inputs"][0]:
        raise UserError(
            f"the set {name} of {finished.uri} has changed since its students were trained; restore it, or go on with "
            "the run, which then trains them on what is there"
        )
    return RunStudent(run.settings, name, seed, pairs, recorded)


def export_student(found: RunStudent, folder: Path) -> float:
    """Trains the student as its run did, for runs keep no weights, and writes it with ``export_open_clip``.

    Returns:
        The greatest difference from the student of the run in a point of the loss curve, in nats; infinite where their
        curves have other points. Other devices and other versions of libraries round otherwise.

    Raises:
        UserError: The folder is there already, or open_clip has no model that is the same, before anything is trained;
            or the GPU is too small.
    """
    import torch

    from mmdd_ray.engine.devices import one_thread
    from mmdd_ray.engine.memory import out_of_memory
    from mmdd_ray.evaluation.tasks.students import train_student
    from mmdd_ray.models.open_clip_export import check_open_clip, export_open_clip

    students, evaluation = found.settings.students, found.settings.evaluation
    check_open_clip(students, folder)
    device = "cuda" if torch.cuda.is_available() and evaluation.gpus_per_student else "cpu"
    # as Ray gives a task: sums over more threads round otherwise
    with one_thread(), out_of_memory("students.batch_pairs"):
        trained = train_student(
            found.pairs,
            students,
            learning_rate=found.recorded["learning_rate"],
            seed=derive_seed(found.settings.run.seed, found.seed),
            device=device,
        )
    export_open_clip(trained.student, folder, students.temperature)
    return _apart(loss_curve(trained.losses), found.recorded["loss_curve"])


def _panel(store: Store) -> FinishedRun:
    """The run's students under "equal-budget", of this version of it.

    Raises:
        UserError: There are none.
    """
    panels = read_run(store, "")
    where = panels[0].uri
    if panels[0].task != "retrieval":
        raise UserError(
            f"{where} has classifiers, of which open_clip knows nothing; name a run of pairs of images and captions"
        )
    found = next((panel for panel in panels if panel.protocol[0] == EQUAL_BUDGET), None)
    protocols = panels[0].report["settings"]["evaluation"]["protocols"]
    if found is None:
        raise UserError(
            f"{where} has no students under {EQUAL_BUDGET}, and open_clip no model of the form that published "
            f"protocols give theirs; go on with the run and --evaluation.protocols {' '.join(protocols)} {EQUAL_BUDGET}"
        )
    return found


def _pairs(run: Run, name: str, draw: int) -> PairSet | LearntPairs:
    """The set that students were trained on; starts or joins Ray where it is a source of pairs.

    Raises:
        UserError: It is not there, or damaged.
    """
    from mmdd_ray.engine.cluster import connected
    from mmdd_ray.evaluation.sets import distilled_set
    from mmdd_ray.methods.evaluate.reading import of_text_model, read_sets

    if not isinstance(settings := run.settings, Evaluate):
        folder = run.store.child(f"{draws_of(settings)[draw].within}{FOLDER}")
        return distilled_set(folder, settings.students.image_px)
    noted = run.store.read_json(SETS)
    own = settings.set[list(noted).index(name)]
    if REDACTED in own:
        raise UserError(
            f"the run read its set {name} with credentials in {own}, which are never saved; give them in environment "
            "variables, and evaluate the set without them"
        )
    # on this machine, wherever the run was
    here = replace(settings, set=(own,), run=replace(settings.run, ray_address=None))
    is_source = noted[name]["kind"] == "pairs"
    with connected(here.run, run.store) if is_source else nullcontext():
        (given,) = of_text_model(read_sets(here), here.students)
    return given.pairs


def _apart(curve: Sequence[float | None], recorded: Sequence[float | None]) -> float:
    """Greatest difference of two loss curves; infinite where one has a point that the other has not."""
    if len(curve) != len(recorded):
        return inf
    pairs = list(zip(curve, recorded, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        return inf
    return max((abs(one - other) for one, other in pairs if one is not None and other is not None), default=0)
