"""The evaluation of given sets, whoever made them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.evaluation.compare import has_all
from mmdd_ray.evaluation.sets import (
    compare_with_baselines,
    compared_coresets,
    read_coresets,
    save_coresets,
)
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.methods.evaluate.reading import GivenSet, audited_set, of_text_model, read_sets
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.method import Comparison, Context, Figures, Stage, Steps
from mmdd_ray.methods.named_sets import SETTING
from mmdd_ray.methods.shared_stages import FEATURES, audit_stage, features_of
from mmdd_ray.planning.costs import evaluation_cost

SETS = "sets.json"


def _noted(given: Sequence[GivenSet]) -> dict[str, Any]:
    """What is known of each set by name, the first one first; other sets in their place have other identities."""
    return {one.named.name: one.about for one in given}


def _note_sets(stage: StageDir, context: Context[Evaluate]) -> StageResult:
    """Reads the sets, which finds damage, and notes which they are."""
    listed = RejectList(stage.store, context.run.store)
    given = read_sets(context.settings, listed)
    listed.save()
    for one in given:
        pairs = one.pairs
        sizes = f"{pairs.n_pairs:,} pairs on {pairs.n_images:,} images, {pairs.image_px} px"
        for line in (sizes, *one.notes):
            print(f"{SETTING:<12} {one.named.name}: {line}", flush=True)
    stage.store.write_json(SETS, _noted(given))
    return StageResult(
        rows_in=sum(one.rows_in for one in given),
        rows_out=sum(one.pairs.n_pairs for one in given),
        rejects=Counter(reason for *_, reason in listed.rows),
        extra={"pairs": given[0].pairs.n_pairs},
    )


def _are_same_sets(context: Context[Evaluate]) -> bool:
    noted = context.run.store.child("set")
    if not noted.exists(SETS):
        return True
    given = _noted(read_sets(context.settings))
    return list(noted.read_json(SETS).items()) == list(given.items())


def _coresets(stage: StageDir, context: Context[Evaluate]) -> StageResult:
    pairs = context.done["set"].manifest["extra"]["pairs"]
    return save_coresets(stage, features_of(context), context.settings, pairs)


def _compare(stage: StageDir, contexts: Sequence[Context[Evaluate]]) -> StageResult:
    (context,) = contexts
    settings = context.settings
    coresets = context.done.get("coresets")
    given = of_text_model(read_sets(settings), settings.students)
    return compare_with_baselines(
        stage,
        {one.named.name: [one.pairs] for one in given},
        features_of(context),
        [settings],
        [read_coresets(coresets.store if coresets else None, settings.evaluation)],
        context.run.store,
        about=_noted(given),
        images={one.named.name: one.images for one in given},
    )


def _figures(context: Context[Evaluate]) -> Figures:
    noted = context.store("set").read_json(SETS)
    return Figures(labels={name: about["label"] for name, about in noted.items()})


STEPS: Steps[Evaluate] = Steps(
    stages=(
        Stage(
            name="set", run=_note_sets, is_current=_are_same_sets
        ),  # first: what is wrong with one shows at once
        FEATURES,
        Stage(
            name="coresets",
            needs=("features", "set"),
            run=_coresets,
            wanted=lambda settings: bool(compared_coresets(settings.evaluation)),
        ),
        audit_stage(audited=lambda context: audited_set(context.settings), needs="set"),
    ),
    compare=Comparison(
        run=_compare,
        cost=lambda settings, pairs, source: evaluation_cost(
            settings.students, settings.evaluation, pairs, given=len(settings.set)
        ),
        is_current=lambda folder, settings: has_all(folder, settings.students, settings.evaluation),
        needs=("features", "set", "coresets"),
    ),
    figures=_figures,
)
