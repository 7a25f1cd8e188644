"""The protocol of text-to-image generators, and loading one."""

# B images, CHW latent, HW image size, L width of the text features

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdd_ray.models.encoding_cache import EncodingCache

if TYPE_CHECKING:
    from mmdd_ray.models.generators.stable_diffusion import StableDiffusion

Trained = Literal["difffit", "lora", "full"]


class Denoising(NamedTuple):
    """A denoised batch; all float32, but for the prediction under autocast."""

    noisy_BCHW: Tensor
    """The noisy latents."""
    prediction_BCHW: Tensor
    """The generator's answer."""
    target_BCHW: Tensor
    """The right answer."""
    clean_BCHW: Tensor
    """The latent without noise that its answer implies, with the gradient to the answer."""
    text_BL: Tensor
    """Pooled text features of the captions."""


class Drawing(NamedTuple):
    """Drawn images."""

    images_BHW3: NDArray[np.uint8]
    redrawn_B: NDArray[np.bool_]
    """Those that were not finite in the precision of the weights, and were decoded or drawn again in float32."""


class Generator(Protocol):
    """A text-to-image model that learns by removing noise from latents of images; an ``nn.Module``."""

    @property
    def device(self) -> torch.device: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def text_width(self) -> int:
        """L."""
        ...

    @property
    def noise_levels(self) -> int:
        """How many there are, from almost none to nothing else."""
        ...

    def latent_side(self, image_px: int, setting: str = "finetune.image_px") -> int:
        """Side of the latent of an image of that side; raises ``UserError`` where there is none."""
        ...

    def encode(self, images_BHW3: NDArray[np.uint8] | Tensor, *, one_by_one: bool = False) -> Tensor:
        """Latents (B, C, H, W) float32 of uint8 RGB images; one after the other, where memory is short.

        Once a training is prepared on a GPU, in bfloat16, and as many at a time as it takes.
        """
        ...

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents, with the gradient to these."""
        ...

    def denoise(
        self,
        images_BHW3: NDArray[np.uint8] | Tensor,
        captions: Sequence[str],
        level_B: Tensor,
        generator: torch.Generator,
        kept: EncodingCache,
    ) -> Denoising:
        """Adds noise of these levels to the latents of images, from the CPU's ``generator``, and removes it again.

        What images and captions are encoded as is looked up in ``kept`` first.
        """
        ...

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        image_px: int,
        inference_steps: int,
        guidance: float,
    ) -> Drawing:
        """One image for each prompt, (B, image_px, image_px, 3), from noise of its own seed."""
        ...

    def sample_from(
        self,
        latent_BCHW: Tensor | None,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        image_px: int,
        inference_steps: int,
        guidance: float,
        strength: float,
        negative_prompt: str,
    ) -> Drawing:
        """Like ``sample``, but begins with noisy latents, and prompts of any length count to their end."""
        ...

    def prepare_training(self, kind: Trained, *, rank: int, compiled: bool = False) -> None:
        """Freezes all but what is to be trained, and makes it ready.

        Args:
            compiled: Compiles what a step runs, which takes minutes and makes each step faster.
        """
        ...

    def compile_drawing(self, images: int) -> None:
        """Compiles what draws that many images at once, which takes minutes and makes each of them faster."""
        ...

    def save(self, folder: Path) -> None:
        """Saves it as it is loaded, with what was trained."""
        ...


def load_generator(
    name: str, device: torch.device | str = "cpu", *, half_precision: bool = False
) -> "StableDiffusion":
    """The generator of a zoo name, a hub name or a folder.

    Raises:
        UserError: The model cannot be loaded, or is of no kind that is known.
    """
    from mmdd_ray.models.generators.stable_diffusion import (
        StableDiffusion,
        StableDiffusionXL,
        is_xl,
        load_pipeline,
    )

    pipeline = load_pipeline(name, device, half_precision=half_precision)
    return (StableDiffusionXL if is_xl(pipeline) else StableDiffusion)(pipeline)
