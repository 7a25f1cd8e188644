"""Ordinary training of a diffusion model: predicting the noise (Ho et al., NeurIPS 2020, equation 14); no Ray."""

# B pairs of a rank, CHW latent

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

if TYPE_CHECKING:  # imports diffusers, 8 s
    from mmdd_ray.models.generator import Pipeline


@dataclass(frozen=True)
class NoiseObjective:
    """‖ε̂ − ε‖² at noise levels of the whole schedule; an ``Objective``."""

    image_px: int

    def build(self, pipeline: "Pipeline") -> "NoiseLoss":
        from mmdd_ray.models.generator import check_image_px

        check_image_px(pipeline, self.image_px)
        return NoiseLoss(pipeline)


class NoiseLoss(nn.Module):
    """The mean squared error of the U-Net's answer to noisy latents of real pairs."""

    def __init__(self, pipeline: "Pipeline") -> None:
        from mmdd_ray.models.generator import Denoiser

        super().__init__()
        self.denoiser = Denoiser(pipeline)

    def forward(
        self, images_BHW3: NDArray[np.uint8] | Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The term ``noise``, which is ``total``, for uint8 images; noise and levels come from ``generator``."""
        steps_B = torch.randint(len(self.denoiser.alpha_bar_T), (len(captions),), generator=generator)
        denoising = self.denoiser(images_BHW3, captions, steps_B, generator)
        noise = mse_loss(denoising.prediction_BCHW.float(), denoising.target_BCHW)
        return {"noise": noise, "total": noise}
