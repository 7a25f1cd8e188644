"""Checks of a run's settings; imports neither torch nor Ray."""

from mmdd_ray.errors import UserError
from mmdd_ray.methods.trajectory.settings import Trajectory
from mmdd_ray.planning.preflight import check_all_match, encoder_models


def check(settings: Trajectory) -> None:
    """Looks at what the sections have to agree about.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    check_all_match(settings)
    match, experts = settings.match, settings.experts
    if match.max_start_epoch + match.expert_epochs > experts.epochs:
        raise UserError(
            f"match.max_start_epoch={match.max_start_epoch} and match.expert_epochs={match.expert_epochs} need more "
            f"epochs than experts.epochs={experts.epochs}; raise experts.epochs, or lower one of them"
        )
    if match.protocol not in settings.evaluation.protocols:
        raise UserError(
            f"pairs are learnt for students of match.protocol={match.protocol}, and those of evaluation.protocols="
            f"{' '.join(settings.evaluation.protocols)} cannot use their texts; name it there, too, or choose another "
            "match.protocol"
        )
    if match.workers > 1:
        raise UserError(
            f"match.workers={match.workers}, but pairs are learnt by one worker here; set it to 1"
        )
    if match.similarity == "low-rank" and match.rank > match.pairs:
        raise UserError(f"match.rank={match.rank} is above match.pairs={match.pairs}; lower it")


def image_bytes(settings: Trajectory) -> int:
    """Bytes of a decoded real image, of which experts hold all."""
    return 3 * settings.match.image_px**2


def needs(settings: Trajectory) -> dict[str, int]:
    """Real pairs that a run needs, by setting."""
    return {"match.pairs": settings.match.pairs, "experts.batch_pairs": settings.experts.batch_pairs}


def models(settings: Trajectory) -> dict[str, str]:
    """Names of the models that a run loads, by setting."""
    return {"features.clip": settings.features.clip, **encoder_models(settings, "match", "students")}
