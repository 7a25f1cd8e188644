"""Which students a comparison trains: every protocol with every kind of student. Imports neither torch nor Ray."""

from dataclasses import replace
from itertools import product
from typing import Any, get_args, get_type_hints

from mmdd_ray.config import Classifiers, Evaluation, Students
from mmdd_ray.errors import UserError
from mmdd_ray.protocols import LabelProtocol, PairProtocol, label_protocol, pair_protocol


def trainings(
    judged: Students | Classifiers, evaluation: Evaluation
) -> list[tuple[PairProtocol | LabelProtocol, Any]]:
    """Each protocol with the settings of each kind of student; the run's own students under the first one first.

    Raises:
        UserError: `evaluation.protocols` names the same twice, or `evaluation.students` no encoders or no classifier.
    """
    names = evaluation.protocols
    if len(set(names)) < len(names):
        raise UserError(f"evaluation.protocols={' '.join(names)} names the same twice")
    return [
        (pair_protocol(name, kind) if isinstance(kind, Students) else label_protocol(name, kind), kind)
        for name, kind in product(names, [judged, *other_students(judged, evaluation)])
    ]


def label_trainings(
    classifiers: Classifiers, evaluation: Evaluation
) -> list[tuple[LabelProtocol, Classifiers]]:
    """As ``trainings``, for classifiers."""
    found = trainings(classifiers, evaluation)
    return [(protocol, kind) for protocol, kind in found if isinstance(protocol, LabelProtocol)]


def about_trainings(judged: Students | Classifiers, evaluation: Evaluation) -> list[dict[str, Any]]:
    """``name``, ``version`` and ``source`` of each protocol of a comparison, for a manifest."""
    kinds = [
        (protocol, protocol.shown_name(kind.image_px)) for protocol, kind in trainings(judged, evaluation)
    ]
    by_name = {name: protocol for protocol, name in kinds}
    return [
        {"name": name, "version": protocol.version, "source": protocol.source}
        for name, protocol in by_name.items()
    ]


def other_students(judged: Students | Classifiers, evaluation: Evaluation) -> list[Any]:
    """Settings of the students that `evaluation.students` names beside those of the run.

    Raises:
        UserError: It names no encoders, no classifier, or the same twice.
    """
    names = [name.strip() for given in evaluation.students for name in given.split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise UserError(f"evaluation.students={' '.join(evaluation.students)} names the same twice")
    if isinstance(judged, Classifiers):
        known = get_args(get_type_hints(Classifiers)["model"])
        if strange := [name for name in names if name not in known]:
            raise UserError(
                f"evaluation.students={strange[0]} is no classifier; choose from {', '.join(known)}"
            )
        found: list[Any] = [replace(judged, model=name) for name in names]  # type: ignore[arg-type]  # is known
        for one in found:
            _ = one.poolings  # raises where images are too small
    else:
        found = [_pair_of(judged, name) for name in names]
    if judged in found:
        raise UserError(
            f"evaluation.students names {names[found.index(judged)]}, which the students of the run are already; "
            "leave it out"
        )
    return found


def _pair_of(judged: Students, name: str) -> Students:
    image_model, plus, text_model = name.partition("+")
    if not (image_model and plus and text_model):
        raise UserError(
            f"evaluation.students={name} must name an image and a text encoder, as in "
            f"{judged.image_model}+{judged.text_model}"
        )
    return replace(judged, image_model=image_model, text_model=text_model)
