"""Checks of a VLCP run's settings; imports neither torch nor Ray."""

from mmdd_ray.data.class_names import read_class_names
from mmdd_ray.errors import UserError
from mmdd_ray.methods.vlcp.settings import Vlcp
from mmdd_ray.planning.preflight import check_all_match, check_classifiers, check_template


def check(settings: Vlcp) -> None:
    """Looks at what the sections have to agree about.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    check_all_match(settings)
    _ = settings.finetune.pairs_per_worker  # raises where the batch cannot be shared
    check_classifiers(settings)
    if settings.describe.class_names is not None:
        read_class_names(settings.describe.class_names)
    if not settings.data.needs_captions and settings.describe.class_names is None:
        raise UserError(
            "data.needs_captions=False, so nothing says what classes are called; name a text file with the name of a "
            "class on each line as describe.class_names"
        )
    if not settings.data.needs_captions and settings.describe.source == "captions":
        raise UserError(
            "describe.source=captions, but data.needs_captions=False; have images described by vlm or template"
        )
    check_template("describe.template", settings.describe.template)


def needs(settings: Vlcp) -> dict[str, int]:
    """Real pairs that a run needs, by setting."""
    return {"finetune.batch_pairs": settings.finetune.batch_pairs}


def models(settings: Vlcp) -> dict[str, str]:
    """Names of the models that a run loads, by setting."""
    found = {"features.clip": settings.features.clip, "finetune.generator": settings.finetune.generator}
    return found | ({"describe.model": settings.describe.model} if settings.describe.source == "vlm" else {})
