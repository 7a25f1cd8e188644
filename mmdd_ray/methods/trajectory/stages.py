"""The stages of trajectory matching, from shards to report."""

from mmdd_ray.data.inventory import Source
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.sets import check_kept, coreset
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.start import START, learnt_samples
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import (
    FEATURES,
    audit_stage,
    coresets_stage,
    export_stage,
    features_of,
    students_comparison,
)
from mmdd_ray.methods.trajectory.preflight import image_bytes, needs
from mmdd_ray.methods.trajectory.settings import Trajectory
from mmdd_ray.planning.costs import StageCost

TITLE = "Trajectory matching"
NAME = "trajectory"
CAPTIONS_SHOWN = 20_000  # real captions among which the nearest to a learnt vector is looked for


def check_size(features: FeatureStore, settings: Trajectory) -> None:
    """Finds before the experts that there are too few real pairs, or too many to be held.

    Raises:
        UserError: There are.
    """
    held = len(features.addresses) * image_bytes(settings) / 2**20
    if held > settings.experts.max_real_mib:
        raise UserError(
            f"the real images take {held:,.0f} MiB decoded, more than experts.max_real_mib="
            f"{settings.experts.max_real_mib}; raise it where machines have the memory, or set data.limit"
        )
    features.require(needs(settings), settings.data.uri)
    check_kept(features, settings, settings.match.pairs, settings.match.init)


def experts(stage: StageDir, features: FeatureStore, settings: Trajectory) -> StageResult:
    """Trains the experts."""
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.methods.trajectory.learn import train_experts

    return train_experts(stage, features, settings)


def match(stage: StageDir, features: FeatureStore, experts: StageDir, settings: Trajectory) -> StageResult:
    """Learns the pairs, into `learnt_pairs.safetensors`; `start.json` names the real ones that they began as."""
    from mmdd_ray.methods.trajectory.learn import learn

    pairs, evaluation, seed = settings.match, settings.evaluation, settings.run.seed
    start, keys = coreset(features, pairs.init, settings.data, pairs.pairs, pairs.image_px, seed, evaluation)
    stage.store.write_json(START, {"init": pairs.init, "source_keys": keys})
    captions = [own[0] for table in features.tables(["captions"]) for own in table["captions"].to_pylist()]
    return learn(stage, start, captions[:CAPTIONS_SHOWN], experts.store, settings)


def _experts_cost(settings: Trajectory, source: Source) -> StageCost:
    experts, match = settings.experts, settings.match
    return StageCost(
        units=experts.count * experts.epochs * source.rows,
        unit="pairs",
        uses=f"{match.image_model} at {match.image_px} px",
        actors=experts.count,
        gpus_each=experts.gpus_per_expert,
        section="experts",
        leaves_cpu=False,
        passes=1,
        batches=f"{experts.batch_pairs} pairs",
        writes_bytes=None,
    )


def _match_cost(settings: Trajectory, source: Source) -> StageCost:
    match = settings.match
    return StageCost(
        units=match.iterations * match.student_steps * min(match.batch_pairs, match.pairs),
        unit="pairs",
        uses=f"{match.image_model} at {match.image_px} px, {match.student_steps} steps",
        actors=match.workers,
        gpus_each=match.gpus_per_worker,
        section="match",
        batches=f"{match.batch_pairs} pairs, {match.student_steps} steps",
    )


def _figures(context: Context[Trajectory]) -> Figures:
    losses = context.store("match").read_parquet(LOSSES).to_pydict()
    return Figures(losses={"step": losses["step"], "total": losses["total"]}, labels={NAME: TITLE})


STEPS: Steps[Trajectory] = Steps(
    stages=(
        FEATURES,
        Stage(
            name="experts",
            needs=("features",),
            run=lambda stage, context: experts(stage, features_of(context), context.settings),
            cost=_experts_cost,
        ),
        Stage(
            name="match",
            needs=("features", "experts"),
            run=lambda stage, context: match(
                stage, features_of(context), context.done["experts"], context.settings
            ),
            cost=_match_cost,
        ),
        export_stage(
            ("match",),
            lambda context: learnt_samples(context.done["match"], context.settings.run.seed),
            method=lambda settings: TITLE,
            models=lambda settings: {
                "image encoder": settings.match.image_model,
                "text encoder": settings.match.text_model,
            },
        ),
        coresets_stage(lambda settings: settings.match.pairs),
        audit_stage(lambda settings, source: settings.match.pairs),
    ),
    compare=students_comparison(lambda settings: NAME),
    before=lambda context: check_size(features_of(context), context.settings),
    figures=_figures,
)
