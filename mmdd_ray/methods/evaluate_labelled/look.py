"""A look at the given labelled sets before a run: they are read whole, and nothing of them is tested with. No Ray."""

from mmdd_ray.data.checks import check_given
from mmdd_ray.methods.evaluate_labelled.reading import GivenImages, read_sets, source_of
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.named_sets import SETTING, refuse_origin
from mmdd_ray.storage.redact import redact


def look_at_sets(settings: EvaluateLabelled) -> list[GivenImages]:
    """Reads each set, and prints what was found.

    Raises:
        UserError: One is missing, damaged or unclear, or has files in common with validation or test images; or was
            distilled from these.
    """
    found = read_sets(settings)
    for one in found:
        one.decoded(tuple(one.counts), settings)  # small; finds what is damaged
        what = "distilled set"
        if one.named.kind == "distilled":
            refuse_origin(one.named, settings.data, settings.evaluation)
        else:
            what = "; ".join(
                check_given(source_of(one.named, settings), SETTING, settings.data, settings.evaluation)
            )
        print(f"{SETTING:<15} {one.named.name}: {redact(what)}; {one.sizes}", flush=True)
    return found
