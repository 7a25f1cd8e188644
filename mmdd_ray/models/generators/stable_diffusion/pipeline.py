"""Loading a StableDiffusionPipeline, and saving one."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo

# The classes of diffusers are opaque to type checkers.
Pipeline = Any
"""A ``StableDiffusionPipeline``."""


UNet = Any
"""A ``UNet2DConditionModel``."""


def load_pipeline(
    name: str,
    device: torch.device | str = "cpu",
    *,
    half_precision: bool = False,
    setting: str = "finetune.generator",
) -> Pipeline:
    """The pipeline of a zoo name, a hub name or a StableDiffusionPipeline folder, in eval mode and silent.

    Weights come from safetensors only and are cast to float32, or to float16 with ``half_precision``: the two
    libraries that load them disagree on whether the stored precision is kept.

    The safety checker is left out. It replaces what it takes for unsafe by black images, which would silently
    enter the distilled set, and the prompts are captions of the user's own data.

    Raises:
        ValueError: the pipeline or one of its components cannot be loaded; names ``setting``.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with zoo.loading("generator", name, setting):
        found = zoo.resolve(name)
        pipeline = StableDiffusionPipeline.from_pretrained(
            found,
            dtype=torch.float16 if half_precision else torch.float32,
            use_safetensors=True,
            variant=zoo.variant_of("generator", name, setting),
            local_files_only=Path(found).is_dir(),
            safety_checker=None,
            requires_safety_checker=False,
        )
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipeline, part) is None:
            raise UserError(f"{setting}={name} has no {part}; name a whole StableDiffusionPipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
