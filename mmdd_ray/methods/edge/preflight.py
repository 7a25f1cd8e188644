"""Checks of an EDGE run's settings; imports neither torch nor Ray."""

from mmdd_ray.errors import UserError
from mmdd_ray.features.coresets import kept_rows
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.planning.preflight import batch_needs, check_matching, encoder_models


def check(settings: Edge) -> None:
    """Looks at what the sections have to agree about.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    if settings.synthesis.pairs % settings.captions.per_image or settings.images < 1:
        raise UserError(
            f"synthesis.pairs={settings.synthesis.pairs} is not a multiple of "
            f"captions.per_image={settings.captions.per_image}; change one of them"
        )
    _ = settings.finetune.pairs_per_worker  # raises where the batch cannot be shared
    _check_candidates(settings)
    if settings.refine.iterations:
        check_matching(settings.refine, "synthesis.pairs", settings.synthesis.pairs)


def _check_candidates(settings: Edge) -> None:
    """Refuses a share of the candidates that leaves fewer than are kept; one candidate an image is not chosen among."""
    synthesis, images = settings.synthesis, settings.images
    if synthesis.candidates_per_image == 1:
        return
    drawn = settings.candidates
    left = kept_rows(drawn, synthesis.clip_score_fraction)
    if left < images:
        raise UserError(
            f"synthesis.clip_score_fraction={synthesis.clip_score_fraction:g} leaves {left:,} of {drawn:,} drawn "
            f"images, but {images:,} are kept; raise it, or synthesis.candidates_per_image"
        )


def needs(settings: Edge) -> dict[str, int]:
    """Real pairs that a run needs, by setting."""
    return {
        "synthesis.pairs": settings.synthesis.pairs if settings.evaluation.baselines else 0,
        "finetune.batch_pairs": settings.finetune.batch_pairs,
        **batch_needs(settings.matching),
    }


def models(settings: Edge) -> dict[str, str]:
    """Names of the models that a run loads, by setting."""
    refined = ("refine",) if settings.refine.iterations else ()
    return {
        "features.clip": settings.features.clip,
        "finetune.generator": settings.finetune.generator,
        "captions.model": settings.captions.model,
        **encoder_models(settings, *refined, "students"),
    }
