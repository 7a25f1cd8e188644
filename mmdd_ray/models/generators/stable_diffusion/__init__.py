"""Stable Diffusion."""

from mmdd_ray.models.generators.stable_diffusion.drawing import draw_from_latents, draw_images, encode_prompts
from mmdd_ray.models.generators.stable_diffusion.model import StableDiffusion, clean_estimate
from mmdd_ray.models.generators.stable_diffusion.model_xl import StableDiffusionXL
from mmdd_ray.models.generators.stable_diffusion.pipeline import is_xl, load_pipeline
from mmdd_ray.models.generators.stable_diffusion.trainable import (
    Scale,
    merge_trained,
    save_pipeline,
    trainable_parameters,
)

__all__ = [
    "Scale",
    "StableDiffusion",
    "StableDiffusionXL",
    "clean_estimate",
    "draw_from_latents",
    "draw_images",
    "encode_prompts",
    "is_xl",
    "load_pipeline",
    "merge_trained",
    "save_pipeline",
    "trainable_parameters",
]
