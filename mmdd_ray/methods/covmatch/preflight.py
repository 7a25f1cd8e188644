"""Checks of a CovMatch run's settings; imports neither torch nor Ray."""

from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.planning.preflight import batch_needs, check_matching, encoder_models


def check(settings: Covmatch) -> None:
    """Looks at what the sections have to agree about, and at the set that `match.init` names.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    check_matching(settings.match, "match.pairs", settings.match.pairs)
    if settings.match.start_set is not None:
        from mmdd_ray.methods.covmatch.start_set import (
            read_start_set,  # half a second that --help need not pay
        )

        read_start_set(settings.match)


def needs(settings: Covmatch) -> dict[str, int]:
    """Real pairs that a run needs, by setting."""
    real = settings.match.start_set is None or settings.evaluation.baselines
    return {"match.pairs": settings.match.pairs if real else 0, **batch_needs(settings.matching)}


def models(settings: Covmatch) -> dict[str, str]:
    """Names of the models that a run loads, by setting."""
    return {"features.clip": settings.features.clip, **encoder_models(settings, "match", "students")}
