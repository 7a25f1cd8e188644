"""Students of sets that are there already, whoever made them, and of real pairs beside them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmdd_ray.data.inventory import Source
from mmdd_ray.methods.evaluate.presets import PRESETS
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.method import Method, Steps
from mmdd_ray.planning.preflight import check_all_match, check_one_draw, encoder_models
from mmdd_ray.storage.store import Store

REHEARSED_PAIRS = 4


def _check(settings: Evaluate) -> None:
    # seconds that --help need not pay
    from mmdd_ray.methods.evaluate.look import look_at_sets

    check_all_match(settings)
    check_one_draw(settings.evaluation)
    look_at_sets(settings)


def _models(settings: Evaluate) -> dict[str, str]:
    return {"features.clip": settings.features.clip, **encoder_models(settings, "students")}


def _steps() -> Steps[Evaluate]:
    from mmdd_ray.methods.evaluate.stages import STEPS

    return STEPS


def _look(settings: Evaluate) -> Source:
    from mmdd_ray.methods.evaluate.look import look_at_data

    return look_at_data(settings)


def _shortened(settings: Evaluate, batch: Callable[[int], int], folder: Path) -> Evaluate:
    """A set of a few scenes in place of those that are given."""
    from mmdd_ray.data import shapes
    from mmdd_ray.data.images import encode_png
    from mmdd_ray.distilled.sample import Sample
    from mmdd_ray.distilled.write import write_distilled

    scenes = [shapes.scene(index, seed=4) for index in range(REHEARSED_PAIRS)]
    samples = [
        Sample(
            key=f"{index:06d}",
            image=encode_png(np.asarray(scene.render(settings.students.image_px))),
            captions=(scene.captions()[0],),
            seed=index,
            source_key="",
        )
        for index, scene in enumerate(scenes)
    ]
    store = Store(str(folder / "set"))
    write_distilled(samples, store, method="scenes", settings={}, seed=0, inputs={})
    return replace(settings, set=(store.uri,), set_split=None, set_image_root=None)


METHOD = Method(
    name="evaluate",
    job="evaluate",
    settings=Evaluate,
    presets=PRESETS,
    models=_models,
    preflight=_check,
    steps=_steps,
    size=lambda settings, source: ("set", source.given),
    look=_look,
    shortened=_shortened,
)
