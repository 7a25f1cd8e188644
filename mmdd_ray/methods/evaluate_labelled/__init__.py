"""Classifiers of labelled sets that are there already, and of real images beside them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmdd_ray.config import Data
from mmdd_ray.data.inventory import Source, look_at
from mmdd_ray.errors import UserError
from mmdd_ray.methods.evaluate_labelled.presets import PRESETS
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.method import Method, Steps
from mmdd_ray.planning.preflight import check_all_match, check_classifiers, check_one_draw, check_template
from mmdd_ray.storage.store import Store


def _check(settings: EvaluateLabelled) -> None:
    # seconds that --help need not pay
    from mmdd_ray.data.checks import probed
    from mmdd_ray.methods.evaluate_labelled.classes import check_classes, seen_classes
    from mmdd_ray.methods.evaluate_labelled.look import look_at_sets

    check_all_match(settings)
    check_classifiers(settings)
    check_template("template", settings.template)
    check_one_draw(settings.evaluation)
    if "prompts" in settings.evaluation.baselines:
        raise UserError(
            "evaluation.baselines has prompts, but this job has no generator to draw from them; leave it out"
        )
    sets = look_at_sets(settings)
    listing, rows = probed(settings.data, labelled=True)
    check_classes(sets, seen_classes(settings, rows, listing.classes), settings)


def _steps() -> Steps[EvaluateLabelled]:
    from mmdd_ray.methods.evaluate_labelled.stages import STEPS

    return STEPS


def _look(settings: EvaluateLabelled) -> Source:
    from mmdd_ray.methods.evaluate_labelled.reading import source_of
    from mmdd_ray.methods.named_sets import count_of, named_sets

    first = named_sets(settings.set[:1])[0]
    return replace(look_at(settings.data), given=count_of(first, "images", source_of(first, settings)))


def _shortened(settings: EvaluateLabelled, batch: Callable[[int], int], folder: Path) -> EvaluateLabelled:
    """A set of one scene for each class that the scenes of the rehearsal have, in place of those that are given."""
    from mmdd_ray.data.readers import iter_shard
    from mmdd_ray.data.shapes import CLASS_NAMES
    from mmdd_ray.data.shards import list_shards
    from mmdd_ray.distilled.sample import Sample
    from mmdd_ray.distilled.write import write_distilled
    from mmdd_ray.methods.rehearsal import training_scenes

    data = Data(uri=training_scenes(settings, labelled=True))
    rows = [row for shard in list_shards(data) for row in iter_shard(shard, data)]
    by_label = {row.label: row.image for row in rows if row.label is not None and row.image is not None}
    samples = [
        Sample(
            key=f"{label:06d}",
            image=image,
            captions=(CLASS_NAMES[label],),
            seed=0,
            source_key="",
            label=label,
        )
        for label, image in sorted(by_label.items())
    ]
    store, names = Store(str(folder / "set")), dict(enumerate(CLASS_NAMES))
    write_distilled(samples, store, method="scenes", settings={}, seed=0, inputs={}, class_names=names)
    return replace(settings, set=(store.uri,), set_split=None, class_names=None)


METHOD = Method(
    name="evaluate-labelled",
    job="evaluate_labelled",
    settings=EvaluateLabelled,
    presets=PRESETS,
    models=lambda settings: {"features.clip": settings.features.clip},
    preflight=_check,
    steps=_steps,
    size=lambda settings, source: ("set", source.given),
    look=_look,
    shortened=_shortened,
    labelled=True,
)
