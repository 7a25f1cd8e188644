"""VLCP: draws images of each class from prototypes of its latents and of its descriptions (arXiv 2506.23580)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdd_ray.data.class_names import read_class_names
from mmdd_ray.data.inventory import Source, look_at
from mmdd_ray.methods.method import Method, Steps
from mmdd_ray.methods.vlcp.preflight import check, models, needs
from mmdd_ray.methods.vlcp.presets import PRESETS
from mmdd_ray.methods.vlcp.settings import Vlcp, VlcpSynthesis
from mmdd_ray.storage.store import Store

WORDS = {
    "losses": "Fine-tuning of the generator",
    "examples_note": "The caption is the prompt: the text prototype, a description of a real image, unless "
    "text prototypes were left out.",
}


def _steps() -> Steps[Vlcp]:
    from mmdd_ray.methods.vlcp.stages import STEPS

    return STEPS


def _size(settings: Vlcp, source: Source) -> tuple[str, int]:
    return "prototypes.images_per_class", source.classes * settings.prototypes.images_per_class


def _look(settings: Vlcp) -> Source:
    """The source, with as many classes as the file of their names has lines."""
    source, names = look_at(settings.data), settings.describe.class_names
    return source if names is None else replace(source, classes=len(read_class_names(names)))


def _redraw(draw: Store, settings: Mapping[str, Any]) -> Any:
    from mmdd_ray.diffusion.synthesize import ImageSampler
    from mmdd_ray.methods.vlcp.synthesize import guided

    synthesis = VlcpSynthesis(**settings["synthesis"])
    return ImageSampler(
        draw,
        draw.child("finetune").child("generator"),
        synthesis,
        settings["finetune"]["image_px"],
        guided=guided(synthesis, draw.child("prototypes")),
    )


def _shortened(settings: Vlcp, batch: Callable[[int], int], folder: Path) -> Vlcp:
    """One image of each class, and the names that scenes have."""
    return replace(
        settings,
        describe=replace(settings.describe, class_names=None),
        prototypes=replace(settings.prototypes, images_per_class=1),
    )


METHOD = Method(
    name="vlcp",
    job="vlcp_imagenette",
    settings=Vlcp,
    presets=PRESETS,
    models=models,
    preflight=check,
    steps=_steps,
    needs=needs,
    size=_size,
    look=_look,
    words=lambda settings: WORDS,
    redraw=_redraw,
    shortened=_shortened,
    labelled=True,
)
