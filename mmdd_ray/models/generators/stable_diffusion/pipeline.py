"""Loading a pipeline of Stable Diffusion or Stable Diffusion XL."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo

# The classes of diffusers are opaque to type checkers.
Pipeline = Any
"""A ``StableDiffusionPipeline`` or a ``StableDiffusionXLPipeline``."""
UNet = Any
"""A ``UNet2DConditionModel``."""
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}
XL_PARTS = (*PARTS, "text_encoder_2", "tokenizer_2")


def is_xl(pipeline: Pipeline) -> bool:
    """Whether a pipeline is one of Stable Diffusion XL, which has two text encoders."""
    return isinstance(pipeline, StableDiffusionXLPipeline)


def text_towers(pipeline: Pipeline) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders."""
    towers = [(pipeline.tokenizer, pipeline.text_encoder)]
    return [*towers, (pipeline.tokenizer_2, pipeline.text_encoder_2)] if is_xl(pipeline) else towers


def load_pipeline(
    name: str,
    device: torch.device | str = "cpu",
    *,
    half_precision: bool = False,
    setting: str = "finetune.generator",
) -> Pipeline:
    """The pipeline of a zoo name, a hub name or a folder, in eval mode and silent.

    Weights come from safetensors only and are cast to float32, or to float16 with ``half_precision``: the two
    libraries that load them disagree on whether the stored precision is kept.

    The safety checker is left out. It replaces what it takes for unsafe by black images, which would silently enter
    the distilled set, and the prompts are captions of the user's own data. So is the watermark of Stable Diffusion XL.

    Raises:
        ValueError: the pipeline or one of its components cannot be loaded; names ``setting``.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with zoo.loading("generator", name, setting):
        found = zoo.resolve(name)
        variant, local = zoo.variant_of("generator", name, setting), Path(found).is_dir()
        kind = StableDiffusionPipeline.load_config(found, local_files_only=local)["_class_name"]
        is_large = kind == StableDiffusionXLPipeline.__name__
        pipeline = (StableDiffusionXLPipeline if is_large else StableDiffusionPipeline).from_pretrained(
            found,
            dtype=torch.float16 if half_precision else torch.float32,
            use_safetensors=True,
            variant=variant,
            local_files_only=local,
            **({"add_watermarker": False} if is_large else UNCHECKED),
        )
    for part in XL_PARTS if is_large else PARTS:
        if getattr(pipeline, part) is None:
            raise UserError(f"{setting}={name} has no {part}; name a whole {kind}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
