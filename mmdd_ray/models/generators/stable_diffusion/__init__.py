"""Stable Diffusion."""

from mmdd_ray.models.generators.stable_diffusion.drawing import draw_from_latents, draw_images, encode_prompts
from mmdd_ray.models.generators.stable_diffusion.model import StableDiffusion, clean_estimate
from mmdd_ray.models.generators.stable_diffusion.pipeline import load_pipeline
from mmdd_ray.models.generators.stable_diffusion.trainable import (
    Scale,
    merge_trained,
    save_pipeline,
    trainable_parameters,
)

__all__ = [
    "Scale",
    "StableDiffusion",
    "clean_estimate",
    "draw_from_latents",
    "draw_images",
    "encode_prompts",
    "load_pipeline",
    "merge_trained",
    "save_pipeline",
    "trainable_parameters",
]
