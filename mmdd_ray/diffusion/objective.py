"""Ordinary training of a diffusion model: predicting the noise (Ho et al., NeurIPS 2020, equation 14); no Ray."""

# B pairs of a rank, CHW latent

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from mmdd_ray.config import Finetune
from mmdd_ray.models.encoding_cache import EncodingCache
from mmdd_ray.models.generators.generator import Generator


@dataclass(frozen=True)
class NoiseObjective:
    """‖ε̂ − ε‖² at noise levels of the whole schedule; an ``Objective``."""

    settings: Finetune

    def build(self, generator: Generator) -> "NoiseLoss":
        generator.latent_side(self.settings.image_px)  # raises where there is none
        return NoiseLoss(generator, EncodingCache(self.settings.cache_mib * 2**20))


class NoiseLoss(nn.Module):
    """The mean squared error of the generator's answer to noisy latents of real pairs."""

    def __init__(self, generator: Generator, kept: EncodingCache) -> None:
        super().__init__()
        self.generator, self.kept = generator, kept

    def forward(
        self, images_BHW3: NDArray[np.uint8] | Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The term ``noise``, which is ``total``, for uint8 images; noise and levels come from ``generator``."""
        level_B = torch.randint(self.generator.noise_levels, (len(captions),), generator=generator)
        denoising = self.generator.denoise(images_BHW3, captions, level_B, generator, self.kept)
        noise = mse_loss(denoising.prediction_BCHW.float(), denoising.target_BCHW)
        return {"noise": noise, "total": noise}
