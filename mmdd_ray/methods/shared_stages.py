"""Stages that several methods have: features first; the set, coresets and the comparison last."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdd_ray.data.inventory import Source
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import FOLDER, MANIFEST, Sample
from mmdd_ray.distilled.write import note_protocols, write_distilled
from mmdd_ray.engine.run_dir import StageDir, StageResult, versions
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.evaluation.audit import audit_set, is_current_audit
from mmdd_ray.evaluation.audited_set import AuditedSet
from mmdd_ray.evaluation.compare import has_all
from mmdd_ray.evaluation.report.words import AUDIT_STAGE
from mmdd_ray.evaluation.sets import (
    compare_with_baselines,
    compared_coresets,
    distilled_set,
    read_coresets,
    save_coresets,
)
from mmdd_ray.evaluation.teachers import (
    TEACHER_STAGE,
    has_teacher,
    is_current_teacher,
    needs_teacher,
    prepare_teacher,
)
from mmdd_ray.features.precompute import precompute
from mmdd_ray.features.store import MOMENTS, FeatureStore
from mmdd_ray.matching.costs import moments_cost
from mmdd_ray.matching.moments import whole_stage
from mmdd_ray.methods.method import Comparison, Context, Stage
from mmdd_ray.models import zoo
from mmdd_ray.planning.costs import (
    audit_cost,
    coresets_cost,
    evaluation_cost,
    features_cost,
    teacher_cost,
)
from mmdd_ray.protocols.trainings import about_trainings
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def features_of(context: Context[Any]) -> FeatureStore:
    """The features of the real pairs."""
    return FeatureStore(context.store("features"))


FEATURES: Stage[Any] = Stage(
    name="features",
    run=lambda stage, context: precompute(
        stage, context.run.store, context.settings.data, context.settings.features
    ),
    cost=lambda settings, source: features_cost(settings.features, source),
    shared=True,
    reads=("data", "features"),
)

MOMENTS_OF_ALL: Stage[Any] = Stage(
    name="moments",
    needs=("features",),
    run=lambda stage, context: whole_stage(stage, None, context.settings, context.store("features")),
    wanted=lambda settings: settings.matching.iterations > 0 and settings.matching.real_moments == "whole",
    cost=moments_cost,
    shared=True,
)


def set_folder(context: Context[Any]) -> Store:
    """Where the draw keeps its distilled set."""
    return context.run.store.child(f"{context.draw.within}{FOLDER}")


def export_stage(
    needs: tuple[str, ...],
    made: Callable[[Context[Any]], tuple[list[Sample], LearntPairs | None]],
    *,
    method: Callable[[Any], str],
    models: Callable[[Any], Mapping[str, str]],
    inputs: Callable[[Context[Any]], Mapping[str, Any]] = lambda context: {},
    class_names: Callable[[Context[Any]], Mapping[int, str] | None] = lambda context: None,
) -> Stage[Any]:
    """The stage `export`, which writes the folder `distilled/`; again, if that was deleted.

    Args:
        made: Gives the samples of the set, and the learnt pairs that they show, if they are more than that.
        method: As people write it.
        models: Names of those that made the set, by their role.
        inputs: What it was made from beside the data, for its manifest.
        class_names: By label, for labelled sets.
    """

    def run(stage: StageDir, context: Context[Any]) -> StageResult:
        settings, features = context.settings, context.done["features"]
        checksums = {output["path"]: output["checksum"] for output in features.manifest["outputs"]}
        samples, learnt = made(context)
        manifest = write_distilled(
            samples,
            set_folder(context),
            method=method(settings),
            settings=resolved(settings),
            seed=settings.run.seed,
            inputs={
                "uri": redact(settings.data.uri),
                "fingerprint": features.manifest["extra"]["source"]["fingerprint"],
                "moments": checksums[MOMENTS],
                **inputs(context),
            },
            models={
                role: {"name": zoo.public_name(name), "version": zoo.version(name)}
                for role, name in models(settings).items()
            },
            versions=versions(),
            protocols=_protocols(settings),
            learnt=learnt,
            class_names=class_names(context),
        )
        stage.store.write_json(
            "distilled.json", {name: manifest[name] for name in ("checksum", "shards", "learnt")}
        )
        return StageResult(
            rows_in=len(samples),
            rows_out=manifest["pairs"],
            extra={name: manifest[name] for name in ("images", "pairs", "bytes", "checksum")},
        )

    return Stage(
        name="export",
        needs=("features", *needs),
        run=run,
        is_current=lambda context: set_folder(context).exists(MANIFEST),
    )


def coresets_stage(pairs: Callable[[Any], int]) -> Stage[Any]:
    """The stage `coresets`, which chooses the baselines that look at the features of all pairs.

    Args:
        pairs: Of the distilled set.
    """
    return Stage(
        name="coresets",
        needs=("features",),
        run=lambda stage, context: save_coresets(
            stage, features_of(context), context.draw.compared, pairs(context.settings)
        ),
        wanted=lambda settings: bool(compared_coresets(settings.evaluation)),
        cost=lambda settings, source: coresets_cost(
            settings.features.clip, settings.evaluation, pairs(settings), source
        ),
    )


def _own_set(context: Context[Any]) -> AuditedSet:
    return AuditedSet.distilled(set_folder(context))


def audit_stage(
    images: Callable[[Any, Source], float] | None = None,
    audited: Callable[[Context[Any]], AuditedSet] = _own_set,
    needs: str = "export",
) -> Stage[Any]:
    """The stage `audit`, which looks for copies in the set of the first draw, and at its spectrum, for the report.

    Args:
        images: Of the set, for the plan; None where only the set itself tells, which may be gone when a later run is
            planned by this one.
        audited: Reads the set; default: the one that the draw has distilled.
        needs: The stage that says which set it is.
    """
    return Stage(
        name=AUDIT_STAGE,
        needs=("features", needs),
        is_current=lambda context: is_current_audit(context.run.store.child(AUDIT_STAGE)),
        run=lambda stage, context: audit_set(stage, audited(context), features_of(context), context.settings),
        wanted=lambda settings: settings.evaluation.audit,
        cost=lambda settings, source: (
            audit_cost(settings.features, settings.evaluation, images(settings, source), source)
            if images
            else None
        ),
        shared=True,
    )


def students_comparison(name: Callable[[Any], str]) -> Comparison[Any]:
    """The stage `evaluate`: students of the sets in `distilled/` and of their baselines.

    Args:
        name: Of the distilled set, in files and tables.
    """

    def run(stage: StageDir, contexts: Sequence[Context[Any]]) -> StageResult:
        first = contexts[0]
        px = first.settings.students.image_px
        return compare_with_baselines(
            stage,
            {name(first.settings): [distilled_set(set_folder(one), px) for one in contexts]},
            features_of(first),
            [one.draw.compared for one in contexts],
            [_coresets(one) for one in contexts],
            first.run.store,
        )

    return Comparison(
        run=_noting_protocols(run),
        cost=lambda settings, pairs, source: evaluation_cost(settings.students, settings.evaluation, pairs),
        is_current=lambda folder, settings: has_all(folder, settings.students, settings.evaluation),
        needs=("features", "export", "coresets"),
    )


def teacher_stage(needs: tuple[str, ...], classes: Callable[[Context[Any]], tuple[int, ...]]) -> Stage[Any]:
    """The stage `teacher`, where a protocol needs one: tests it, and first trains it if none is given.

    Args:
        classes: Labels of the data, ascending.
    """
    return Stage(
        name=TEACHER_STAGE,
        needs=needs,
        run=lambda stage, context: prepare_teacher(
            stage, context.run.store, features_of(context), context.settings, classes(context)
        ),
        wanted=needs_teacher,
        is_current=lambda context: is_current_teacher(
            context.run.store.child(TEACHER_STAGE), context.settings
        ),
        cost=lambda settings, source: teacher_cost(settings.classifiers, settings.evaluation),
        shared=True,
    )


def classifiers_comparison(
    run: "Compare",
    needs: tuple[str, ...],
    given: Callable[[Any], int] = lambda settings: 1,
) -> Comparison[Any]:
    """The stage `evaluate` of labelled sets, whose students learn from the stage `teacher`, if there is one.

    Args:
        run: Trains classifiers on the sets of all draws and on real images.
        given: Number of sets that are no baselines, by the settings.
    """
    return Comparison(
        run=_noting_protocols(run),
        cost=lambda settings, images, source: evaluation_cost(
            settings.classifiers, settings.evaluation, images, source.classes, given(settings)
        ),
        # not the stage `teacher`: each student notes the teacher that it learnt from, and others are kept
        is_current=lambda folder, settings: (
            has_all(folder, settings.classifiers, settings.evaluation) and has_teacher(folder, settings)
        ),
        needs=needs,
    )


Compare = Callable[[StageDir, Sequence[Context[Any]]], StageResult]


def _noting_protocols(run: Compare) -> Compare:
    """The same comparison, after which the sets of the run name the protocols that they were judged under: a finished
    run takes more of them."""

    def noting(stage: StageDir, contexts: Sequence[Context[Any]]) -> StageResult:
        result = run(stage, contexts)
        for one in contexts:
            if set_folder(one).exists(MANIFEST):
                note_protocols(set_folder(one), _protocols(one.settings))
        return result

    return noting


def _protocols(settings: Any) -> list[dict[str, Any]]:
    judged = settings.students if hasattr(settings, "students") else settings.classifiers
    return about_trainings(judged, settings.evaluation)


def _coresets(context: Context[Any]) -> Mapping[str, Any]:
    chosen = context.done.get("coresets")
    return read_coresets(chosen.store if chosen else None, context.draw.compared.evaluation)
