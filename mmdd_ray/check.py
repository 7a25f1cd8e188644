"""What a run needs to be possible at all, looked at before anything expensive; imports neither torch nor Ray."""

from dataclasses import asdict

from mmdd_ray.config import Covmatch, Edge, Evaluate, PairLearning, Pool, Precompute, Vlcp
from mmdd_ray.coresets import kept_rows
from mmdd_ray.data.class_names import read_class_names
from mmdd_ray.data.shards import check_data, list_shards
from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo

Settings = Edge | Covmatch | Vlcp | Precompute | Evaluate


def check(settings: Settings) -> None:
    """Finds what would otherwise fail only hours later: settings, models and sources that cannot be.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    _check_ranges(settings)
    _check_pools(settings)
    if isinstance(settings, Edge):
        _check_shares(settings)
        _check_candidates(settings)
        if settings.refine.iterations:
            _check_match(settings.refine, "synthesis.pairs", settings.synthesis.pairs)
    if isinstance(settings, Covmatch):
        _check_match(settings.match, "match.pairs", settings.match.pairs)
        if settings.match.start_set is not None:
            from mmdd_ray.data.start_set import check_start_set  # half a second that --help need not pay

            check_start_set(settings.match)
    _check_fraction(settings)
    if isinstance(settings, Vlcp):
        _check_vlcp(settings)
    elif not settings.data.needs_captions:
        raise UserError("data.needs_captions=False, but only VLCP can do without captions")
    if isinstance(settings, Evaluate) and settings.evaluation.draws > 1:
        raise UserError(
            f"evaluation.draws={settings.evaluation.draws}, but a set that is there already cannot be drawn again; "
            "leave it at 1, or give it to the job that distils"
        )
    zoo.check(_models(settings))
    if isinstance(settings, Precompute):
        list_shards(settings.data)
    else:
        check_data(settings.data, settings.evaluation, labelled=isinstance(settings, Vlcp))


def _check_ranges(settings: Settings) -> None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(type(settings)).validate_python(asdict(settings))
    except ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, found['loc']))}={found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
            for found in error.errors()
        ]
        raise UserError("; ".join(complaints)) from error


def _check_shares(settings: Edge) -> None:
    if settings.synthesis.pairs % settings.captions.per_image or settings.images < 1:
        raise UserError(
            f"synthesis.pairs={settings.synthesis.pairs} is not a multiple of "
            f"captions.per_image={settings.captions.per_image}; change one of them"
        )
    _ = settings.finetune.pairs_per_worker  # raises where the batch cannot be shared


def _check_pools(settings: Settings) -> None:
    for name, pool in vars(settings).items():
        if isinstance(pool, Pool) and pool.min_actors > pool.max_actors:
            raise UserError(
                f"{name}.min_actors={pool.min_actors} is above {name}.max_actors={pool.max_actors}"
            )


def _check_vlcp(settings: Vlcp) -> None:
    _ = settings.finetune.pairs_per_worker  # raises where the batch cannot be shared
    _ = settings.classifiers.poolings  # raises where the images are too small
    if settings.describe.class_names is not None:
        read_class_names(settings.describe.class_names)
    if len(settings.classifiers.learning_rates) > 1 and settings.evaluation.val is None:
        raise UserError(
            f"classifiers.learning_rates={settings.classifiers.learning_rates} are several to choose from; name images "
            "to choose with as evaluation.val, or give one rate"
        )
    if not settings.data.needs_captions and settings.describe.class_names is None:
        raise UserError(
            "data.needs_captions=False, so nothing says what classes are called; name a text file with the name of a "
            "class on each line as describe.class_names"
        )
    if not settings.data.needs_captions and settings.describe.source == "captions":
        raise UserError(
            "describe.source=captions, but data.needs_captions=False; have images described by vlm or template"
        )
    if "{class_name}" not in settings.describe.template:
        raise UserError(
            f"describe.template={settings.describe.template!r} does not have {{class_name}}: it would say the same of "
            "all classes"
        )


def _check_match(matching: PairLearning, pairs_setting: str, pairs: int) -> None:
    _ = matching.real_pairs_per_worker  # raises where the batch cannot be shared
    section = matching.section
    if matching.workers > min(pairs, matching.synthetic_batch):
        raise UserError(
            f"{section}.workers={matching.workers} is above {pairs_setting}={pairs} or {section}.synthetic_batch="
            f"{matching.synthetic_batch}, which they share; lower {section}.workers"
        )


def _check_fraction(settings: Settings) -> None:
    """Refuses a share of the pairs to match where nothing ever is."""
    fraction = settings.features.clip_score_fraction
    if fraction < 1 and isinstance(settings, Vlcp | Evaluate):
        raise UserError(
            f"features.clip_score_fraction={fraction:g}, but nothing is matched here; leave it at 1"
        )


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


def _models(settings: Settings) -> dict[str, str]:
    """Names of the models that will be loaded, by setting."""
    models = {"features.clip": settings.features.clip}
    if isinstance(settings, Edge):
        models |= {
            "finetune.generator": settings.finetune.generator,
            "captions.model": settings.captions.model,
        }
    if isinstance(settings, Covmatch) or (isinstance(settings, Edge) and settings.refine.iterations):
        matching = settings.matching
        models |= {
            f"{matching.section}.image_model": matching.image_model,
            f"{matching.section}.text_model": matching.text_model,
        }
    if isinstance(settings, Vlcp):
        models["finetune.generator"] = settings.finetune.generator
        if settings.describe.source == "vlm":
            models["describe.model"] = settings.describe.model
    if isinstance(settings, Edge | Covmatch | Evaluate):
        models |= {
            "students.image_model": settings.students.image_model,
            "students.text_model": settings.students.text_model,
        }
    return models
