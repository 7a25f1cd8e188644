"""The evaluation of any distilled set, whoever made it."""

from collections.abc import Sequence

from mmdd_ray.distilled.read import read_manifest
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.evaluation.compare import has_all
from mmdd_ray.evaluation.report.words import set_name
from mmdd_ray.evaluation.sets import (
    compare_with_baselines,
    compared_coresets,
    distilled_set,
    read_coresets,
    save_coresets,
)
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.method import Comparison, Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import FEATURES, audit_stage, features_of
from mmdd_ray.planning.costs import evaluation_cost
from mmdd_ray.storage.store import Store

SET = "set.json"


def _identity(settings: Evaluate) -> dict[str, object]:
    """The identity of the set: another in its place has another one."""
    manifest = read_manifest(Store(settings.set))
    return {
        "name": set_name(manifest["method"]),
        "method": manifest["method"],
        "checksum": manifest["checksum"],
    }


def _note_set(stage: StageDir, context: Context[Evaluate]) -> StageResult:
    """Reads the set, which finds damage, and notes which it is."""
    pairs = distilled_set(Store(context.settings.set), context.settings.students.image_px)
    stage.store.write_json(SET, _identity(context.settings))
    return StageResult(rows_in=pairs.n_pairs, rows_out=pairs.n_pairs, extra={"pairs": pairs.n_pairs})


def _is_same_set(context: Context[Evaluate]) -> bool:
    noted = context.run.store.child("set")
    return not noted.exists(SET) or noted.read_json(SET) == _identity(context.settings)


def _coresets(stage: StageDir, context: Context[Evaluate]) -> StageResult:
    pairs = context.done["set"].manifest["extra"]["pairs"]
    return save_coresets(stage, features_of(context), context.settings, pairs)


def _compare(stage: StageDir, contexts: Sequence[Context[Evaluate]]) -> StageResult:
    (context,) = contexts
    settings = context.settings
    coresets = context.done.get("coresets")
    return compare_with_baselines(
        stage,
        context.store("set").read_json(SET)["name"],
        [distilled_set(Store(settings.set), settings.students.image_px)],
        features_of(context),
        [settings],
        [read_coresets(coresets.store if coresets else None, settings.evaluation)],
        context.run.store,
    )


def _figures(context: Context[Evaluate]) -> Figures:
    noted = context.store("set").read_json(SET)
    return Figures(labels={noted["name"]: noted["method"]})


STEPS: Steps[Evaluate] = Steps(
    stages=(
        FEATURES,
        Stage(name="set", run=_note_set, is_current=_is_same_set),
        Stage(
            name="coresets",
            needs=("features", "set"),
            run=_coresets,
            wanted=lambda settings: bool(compared_coresets(settings.evaluation)),
        ),
        audit_stage(lambda context: Store(context.settings.set), needs="set"),
    ),
    compare=Comparison(
        run=_compare,
        cost=lambda settings, pairs, source: evaluation_cost(settings.students, settings.evaluation, pairs),
        is_current=lambda folder, settings: has_all(folder, settings.students, settings.evaluation),
        needs=("features", "set", "coresets"),
    ),
    figures=_figures,
)
