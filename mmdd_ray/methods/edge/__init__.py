"""EDGE: draws images from real captions with a generator that was fine-tuned for it (arXiv 2509.15472)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdd_ray.methods.edge.preflight import check, models, needs
from mmdd_ray.methods.edge.presets import PRESETS
from mmdd_ray.methods.edge.settings import Edge, EdgeSynthesis
from mmdd_ray.methods.method import Method, Steps
from mmdd_ray.storage.store import Store

QUALITY_NOTE = (
    "Alignment: CLIP cosine of image and caption, the higher the better. Similarity: mean cosine between different "
    "samples, lower where they are more diverse. A caption finds its own image where that is the nearest of the set; "
    "this tells of the pairs, not of students."
)


def _steps() -> Steps[Edge]:
    from mmdd_ray.methods.edge.stages import STEPS

    return STEPS


def _words(settings: Edge) -> Mapping[str, str]:
    if settings.refine.iterations:
        return {
            "losses": "Fine-tuning of the generator",
            "refinement": "Refinement: matching, and InfoNCE of encoders that are trained",
            "quality": "Quality of the synthetic pairs, as they were drawn",
            "quality_note": QUALITY_NOTE,
            "examples_note": "The first caption is the one that the pair began as, a real one or one that was written "
            "for the image; the second line, the words that are nearest to the text that was learnt.",
        }
    return {
        "losses": "Fine-tuning of the generator",
        "quality": "Quality of the synthetic pairs",
        "quality_note": QUALITY_NOTE,
        "examples_note": "The first caption is the real one that the image was drawn from; any others were written for "
        "the image.",
    }


def _redraw(draw: Store, settings: Mapping[str, Any]) -> Any:
    from mmdd_ray.diffusion.synthesize import ImageSampler

    return ImageSampler(
        draw,
        draw.child("finetune").child("generator"),
        EdgeSynthesis(**settings["synthesis"]),
        settings["finetune"]["image_px"],
        settings["features"]["clip"],
    )


def _shortened(settings: Edge, batch: Callable[[int], int], folder: Path) -> Edge:
    """One batch of candidates."""
    synthesis = settings.synthesis
    images = max(synthesis.batch_images // synthesis.candidates_per_image, 2)
    return replace(settings, synthesis=replace(synthesis, pairs=images * settings.captions.per_image))


METHOD = Method(
    name="edge",
    job="edge_cc3m",
    settings=Edge,
    presets=PRESETS,
    models=models,
    preflight=check,
    steps=_steps,
    needs=needs,
    size=lambda settings, source: ("synthesis.pairs", settings.synthesis.pairs),
    words=_words,
    redraw=_redraw,
    shortened=_shortened,
)
