"""The cost of learning pairs; imports neither torch nor Ray."""

from functools import partial

from mmdd_ray.config import MatchingSettings
from mmdd_ray.data.inventory import Source
from mmdd_ray.planning.costs import StageCost
from mmdd_ray.planning.memory import matching_bytes


def moments_cost(settings: MatchingSettings, source: Source) -> StageCost:
    """The cost of the pass over all real pairs under the initial encoders."""
    features = settings.features
    return StageCost(
        units=source.rows,
        unit="pairs",
        uses=_encoders(settings),
        actors=features.max_actors,
        gpus_each=features.gpus_per_actor,
        section="features",
        batches=f"{features.chunk_pairs} pairs",
        passes=1,
    )


def learning_cost(settings: MatchingSettings, source: Source, pairs: int) -> StageCost:
    """The cost of all iterations."""
    matching = settings.matching
    synthetic = min(matching.synthetic_batch, pairs)
    real = matching.real_batch if matching.encoder_updates or matching.real_moments == "batches" else 0
    updates = "encoders updated" if matching.encoder_updates else "encoders still"
    # at most: an image stays with one of its captions
    rows = source.rows * min(settings.features.clip_score_fraction * source.captions_per_row, 1)
    is_cached = rows * 3 * matching.image_px**2 <= matching.cache_mib * 2**20
    return StageCost(
        units=matching.iterations * (synthetic + real),
        unit="pairs",
        uses=f"{_encoders(settings)}, {updates}",
        actors=matching.workers,
        gpus_each=matching.gpus_per_worker,
        section=matching.section,
        batches=f"{matching.micro_batch} pairs, {matching.encoder_optimizer}"
        + (", compiled" if matching.compile else ""),
        memory=partial(matching_bytes, matching, pairs),
        passes=1 if is_cached else matching.iterations * real / rows,
    )


def _encoders(settings: MatchingSettings) -> str:
    match = settings.matching
    return f"{match.image_model} and {match.text_model} at {match.image_px} px, {match.max_tokens} tokens"
