"""CovMatch from shards to report: the stages of a run, in order (arXiv 2510.18583)."""

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.evaluation.sets import check_kept
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.costs import learning_cost
from mmdd_ray.matching.moments import read_whole
from mmdd_ray.matching.start import LOSS_COLUMNS, START, learnt_samples, require_batch
from mmdd_ray.methods.covmatch.preflight import needs
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.covmatch.start import start_of_real, start_of_set
from mmdd_ray.methods.covmatch.start_set import StartSet, read_start_set
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import (
    FEATURES,
    MOMENTS_OF_ALL,
    audit_stage,
    coresets_stage,
    export_stage,
    features_of,
    students_comparison,
)

TITLE = "CovMatch"
SAMPLING_ERRORS = {
    "cross_sampling_error": "error of C_vl of a real batch",
    "mean_sampling_error": "error of the means of a real batch",
}
SET = "set.json"


def check_size(features: FeatureStore, settings: Covmatch) -> None:
    """Finds before anything is learnt that there are too few real pairs.

    Raises:
        UserError: There are fewer than `match.pairs` or `match.real_batch`, or clip-score keeps fewer than
            `match.pairs`.
    """
    features.require(needs(settings), settings.data.uri)
    require_batch(features, settings)
    check_kept(features, settings, settings.match.pairs, settings.match.init)


def match(
    stage: StageDir,
    features: FeatureStore,
    whole: StageDir | None,
    settings: Covmatch,
    given: StartSet | None = None,
) -> StageResult:
    """Learns the pairs, into `learnt_pairs.safetensors`; `start.json` names the real ones that they began as.

    Args:
        given: The set that `match.init` names, if it names one.
    """
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.matching.learn import learn

    start = start_of_set(given, settings.match) if given else start_of_real(features, settings)
    stage.store.write_json(START, start.about)
    moments = read_whole(whole.store, settings) if whole else None
    return learn(stage, features, start.pairs, moments, settings)


def samples(matched: StageDir, settings: Covmatch) -> tuple[list[Sample], LearntPairs]:
    """Samples and tensors of the learnt pairs, for export."""
    return learnt_samples(matched, settings.run.seed)


def _note_set(stage: StageDir, context: Context[Covmatch]) -> StageResult:
    """Notes which distilled set `match.init` names: another in its place has what follows learnt again."""
    about = read_start_set(context.settings.match).about
    stage.store.write_json(SET, dict(about))
    return StageResult(rows_in=about["pairs"], rows_out=about["pairs"])


def _is_same_set(context: Context[Covmatch]) -> bool:
    noted = context.run.store.child("set")
    about = dict(read_start_set(context.settings.match).about)
    return not noted.exists(SET) or noted.read_json(SET) == about


def _match(stage: StageDir, context: Context[Covmatch]) -> StageResult:
    settings = context.settings
    given = read_start_set(settings.match) if settings.match.start_set else None
    return match(stage, features_of(context), context.done.get("moments"), settings, given)


def _inputs(context: Context[Covmatch]) -> dict[str, object]:
    start = context.store("match").read_json(START)
    return {"start": start["set"]} if "set" in start else {}


def _figures(context: Context[Covmatch]) -> Figures:
    """Curves, and what batches missed, for the report."""
    losses = context.store("match").read_parquet(LOSSES).to_pydict()
    errors = {
        shown: [value for value in losses[name] if value is not None]
        for name, shown in SAMPLING_ERRORS.items()
        if name in losses
    }
    batch = context.settings.match.real_batch
    return Figures(
        losses={name: losses[name] for name in LOSS_COLUMNS if name in losses},
        quality={
            shown: {f"mean over {len(found)} batches of {batch} pairs": sum(found) / len(found)}
            for shown, found in errors.items()
        },
    )


STEPS: Steps[Covmatch] = Steps(
    stages=(
        FEATURES,
        MOMENTS_OF_ALL,
        Stage(
            name="set",
            run=_note_set,
            wanted=lambda settings: settings.match.start_set is not None,
            shared=True,
            is_current=_is_same_set,
        ),
        Stage(
            name="match",
            needs=("features", "moments", "set"),
            run=_match,
            cost=lambda settings, source: learning_cost(settings, source, settings.match.pairs),
        ),
        export_stage(
            ("match",),
            lambda context: samples(context.done["match"], context.settings),
            method=lambda settings: TITLE,
            models=lambda settings: {
                "image encoder": settings.match.image_model,
                "text encoder": settings.match.text_model,
            },
            inputs=_inputs,
        ),
        coresets_stage(lambda settings: settings.match.pairs),
        audit_stage(lambda settings, source: settings.match.pairs),
    ),
    compare=students_comparison(lambda settings: TITLE.lower()),
    before=lambda context: check_size(features_of(context), context.settings),
    figures=_figures,
)
