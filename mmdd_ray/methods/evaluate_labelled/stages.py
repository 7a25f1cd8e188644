"""The evaluation of any labelled set, whoever made it."""

from collections import Counter
from collections.abc import Sequence

import ray

from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled_sets import compare_classifiers
from mmdd_ray.evaluation.report.words import BASELINES, FULL, LABELS
from mmdd_ray.methods.evaluate_labelled.classes import (
    DataClasses,
    all_classes,
    check_named,
    check_set_classes,
    read_set,
    templates,
)
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import FEATURES, classifiers_comparison, features_of, teacher_stage

SET = "set.json"


def _classes(context: Context[EvaluateLabelled]) -> DataClasses:
    """The classes by the features, which takes a pass over all of their labels and captions."""
    features = features_of(context)
    labels: Counter[int | None] = Counter()
    for table in features.tables(["label"]):
        labels.update(table["label"].to_pylist())
    return all_classes(context.settings, labels, features.shared_captions)


def _check(context: Context[EvaluateLabelled]) -> None:
    """Finds before anything is trained that the classes of the set are not those of all the data."""
    given, classes = read_set(context.settings), _classes(context)
    check_set_classes(given, classes, context.settings)
    check_named(given, classes, context.settings)


def _note_set(stage: StageDir, context: Context[EvaluateLabelled]) -> StageResult:
    """Reads the set, which finds damage, and notes which it is."""
    given = read_set(context.settings)
    counts = [[label, count] for label, count in given.counts.items()]
    noted = {"name": given.name, "title": given.title, "checksum": given.checksum, "images": counts}
    stage.store.write_json(SET, noted)
    return StageResult(rows_in=len(given.rows), rows_out=len(given.rows))


def _is_same_set(context: Context[EvaluateLabelled]) -> bool:
    noted = context.run.store.child("set")
    return not noted.exists(SET) or noted.read_json(SET)["checksum"] == read_set(context.settings).checksum


def _compare(stage: StageDir, contexts: Sequence[Context[EvaluateLabelled]]) -> StageResult:
    (context,) = contexts
    settings, given, classes = context.settings, read_set(context.settings), _classes(context)
    if given.checksum != context.store("set").read_json(SET)["checksum"]:
        raise UserError(
            f"set={given.uri} changed while it was evaluated; start the same command again to evaluate it as it is now"
        )
    images = given.decoded(tuple(classes.labels), settings)
    return compare_classifiers(
        stage,
        {given.name: [ray.put(images)]},
        templates(given, classes, settings.template),
        features_of(context),
        [settings],
        context.run.store,
        per_class=given.counts,
        captioned=False,
        teacher=context.store("teacher") if "teacher" in context.done else None,
    )


def _figures(context: Context[EvaluateLabelled]) -> Figures:
    """Names of the sets; where classes have different numbers of images, they say so."""
    noted = context.store("set").read_json(SET)
    counts = [count for _, count in noted["images"]]
    if min(counts) == max(counts):
        return Figures(labels={noted["name"]: noted["title"]})
    title = f"{noted['title']}, {min(counts):,} to {max(counts):,} images of each class"
    real = {name: f"{LABELS[name]}, as many of each class" for name in BASELINES if name != FULL}
    return Figures(labels={noted["name"]: title} | real)


STEPS: Steps[EvaluateLabelled] = Steps(
    stages=(
        FEATURES,
        Stage(name="set", run=_note_set, is_current=_is_same_set),
        teacher_stage(("features",), lambda context: tuple(_classes(context).labels)),
    ),
    compare=classifiers_comparison(_compare, ("features", "set")),
    before=_check,
    figures=_figures,
)
