"""The evaluation of any labelled sets, whoever made them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.audited_set import AuditedSet
from mmdd_ray.evaluation.compare_labelled import compare_classifiers
from mmdd_ray.methods.evaluate_labelled.classes import DataClasses, all_classes, check_classes, templates
from mmdd_ray.methods.evaluate_labelled.reading import GivenImages, read_sets
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.named_sets import SETTING
from mmdd_ray.methods.shared_stages import (
    FEATURES,
    audit_stage,
    classifiers_comparison,
    features_of,
    teacher_stage,
)
from mmdd_ray.storage.store import Store

SETS = "sets.json"


def _classes(context: Context[EvaluateLabelled]) -> DataClasses:
    """The classes by the features, which takes a pass over all of their labels and captions."""
    features = features_of(context)
    labels: Counter[int | None] = Counter()
    for table in features.tables(["label"]):
        labels.update(table["label"].to_pylist())
    return all_classes(context.settings, labels, features.shared_captions)


def _check(context: Context[EvaluateLabelled]) -> None:
    """Finds before anything is trained that the classes of a set are not those of all the data."""
    check_classes(read_sets(context.settings), _classes(context), context.settings)


def _noted(sets: Sequence[GivenImages]) -> dict[str, Any]:
    """What is known of each set by name, the first one first; other sets in their place have other identities."""
    return {one.named.name: one.about(sets[0]) for one in sets}


def _note_sets(stage: StageDir, context: Context[EvaluateLabelled]) -> StageResult:
    """Reads the sets, which finds damage, and notes which they are."""
    sets = read_sets(context.settings)
    noted = _noted(sets)
    for one in sets:
        for line in (one.sizes, *noted[one.named.name]["notes"]):
            print(f"{SETTING:<12} {one.named.name}: {line}", flush=True)
    stage.store.write_json(SETS, noted)
    count = sum(len(one.rows) for one in sets)
    return StageResult(rows_in=count, rows_out=count)


def _are_same_sets(context: Context[EvaluateLabelled]) -> bool:
    noted = context.run.store.child("set")
    if not noted.exists(SETS):
        return True
    return list(noted.read_json(SETS).items()) == list(_noted(read_sets(context.settings)).items())


def _audited(context: Context[EvaluateLabelled]) -> AuditedSet:
    """The first set as an audit looks at it: its files as they are stored."""
    settings = context.settings
    first = read_sets(replace(settings, set=settings.set[:1]))[0]
    _require_same(first, context)
    if first.named.kind == "distilled":
        return AuditedSet.distilled(Store(first.named.uri))
    files = ((row.name, row.image or b"", row.captions) for row in first.rows)
    px, most = settings.classifiers.image_px, settings.data.max_image_pixels
    return AuditedSet.of_files(first.named.uri, files, most, px)


def _require_same(one: GivenImages, context: Context[EvaluateLabelled]) -> None:
    """Finds that a set is another than the one that the run began with."""
    noted = context.store("set").read_json(SETS)
    if one.checksum != noted[one.named.name]["identity"]:
        raise UserError(
            f"{one.named.shown} changed while it was evaluated; start the same command again to evaluate it as it is "
            "now"
        )


def _compare(stage: StageDir, contexts: Sequence[Context[EvaluateLabelled]]) -> StageResult:
    (context,) = contexts
    settings, sets, classes = context.settings, read_sets(context.settings), _classes(context)
    for one in sets:
        _require_same(one, context)
    labels = tuple(classes.labels)
    decoded = {one.named.name: one.decoded(labels, settings) for one in sets}
    return compare_classifiers(
        stage,
        {name: [ray.put(one)] for name, one in decoded.items()},
        templates(sets, classes, settings.template),
        features_of(context),
        [settings],
        context.run.store,
        per_class=sets[0].counts,
        captioned=False,
        about=context.store("set").read_json(SETS),
        images={name: one.images for name, one in decoded.items()},
    )


def _figures(context: Context[EvaluateLabelled]) -> Figures:
    noted = context.store("set").read_json(SETS)
    return Figures(labels={name: about["label"] for name, about in noted.items()})


STEPS: Steps[EvaluateLabelled] = Steps(
    stages=(
        FEATURES,
        Stage(name="set", run=_note_sets, is_current=_are_same_sets),
        teacher_stage(("features",), lambda context: tuple(_classes(context).labels)),
        audit_stage(audited=_audited, needs="set"),
    ),
    compare=classifiers_comparison(_compare, ("features", "set"), given=lambda settings: len(settings.set)),
    before=_check,
    figures=_figures,
)
