"""What EDGE's fine-tuning minimises, from real pairs to loss terms (arXiv 2509.15472, section 3); no Ray."""

# B pairs of a rank, V and L embedding widths, CHW latent

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmdd_ray.config import EdgeFinetune
from mmdd_ray.edge.losses import denoised_latent, edge_objective, sample_timesteps
from mmdd_ray.models.clip import load_clip

if TYPE_CHECKING:  # imports diffusers, 8 s
    from mmdd_ray.models.generator import Pipeline

LATENT_DIM = 256  # width of the space "latent"


@dataclass(frozen=True)
class EdgeObjective:
    """EDGE's loss with the weights of ``settings``; an ``Objective``."""

    settings: EdgeFinetune
    clip: str
    """Name of the CLIP model of the space "clip"."""

    def build(self, pipeline: "Pipeline") -> "EdgeLoss":
        return EdgeLoss(pipeline, self.settings, self.clip)


class EdgeLoss(nn.Module):
    """L = λ_C L_C + λ_D L_D + λ_N ‖ε̂ − ε‖² of a batch of real pairs, by ``losses.edge_objective``.

    A batch is encoded, made noisy and denoised in one step. The denoised latents ẑ_0 and the captions are
    embedded in one of two spaces:

    - ``clip``: the decoded image by CLIP's image tower, the caption by its text tower. Both are frozen.
    - ``latent``: linear projections of ẑ_0 and of the pooled output of the generator's text encoder, which
      are trained along and then dropped. Cheaper, since nothing is decoded.
    """

    def __init__(self, pipeline: "Pipeline", settings: EdgeFinetune, clip: str) -> None:
        from mmdd_ray.models.generator import Denoiser, check_image_px

        super().__init__()
        self.settings = settings
        self.denoiser = Denoiser(pipeline)
        check_image_px(pipeline, settings.image_px)
        if settings.space == "clip":
            # no submodule: a frozen model needs neither DDP nor a place among the parameters
            self.clip = load_clip(clip, pipeline.device)
        else:
            side = settings.image_px // self.denoiser.downscale
            latent_dim = pipeline.vae.config.latent_channels * side**2
            self.image_head = nn.Linear(latent_dim, LATENT_DIM, device=pipeline.device)
            self.text_head = nn.Linear(
                pipeline.text_encoder.config.hidden_size, LATENT_DIM, device=pipeline.device
            )

    def forward(
        self, images_BHW3: NDArray[np.uint8] | Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms of ``losses.edge_objective`` for uint8 images; the noise comes from ``generator``.

        Raises:
            ValueError: there are fewer than two pairs over all workers.
        """
        settings = self.settings
        steps_B = sample_timesteps(
            len(captions), len(self.denoiser.alpha_bar_T), settings.max_timestep_fraction, generator
        )
        denoising = self.denoiser(images_BHW3, captions, steps_B, generator)
        latent_BCHW = denoised_latent(
            denoising.noisy_BCHW,
            denoising.prediction_BCHW,
            denoising.alpha_bar_B,
            self.denoiser.prediction_type,
        )
        if settings.space == "clip":
            image_BV = self.clip.embed_pixels(self.denoiser.decode(latent_BCHW))
            text_BL = self.clip.encode_texts(captions)
        else:
            image_BV = self.image_head(latent_BCHW.flatten(1))
            text_BL = self.text_head(denoising.text_BL)
        return edge_objective(
            image_BV,
            text_BL,
            denoising.prediction_BCHW,
            denoising.target_BCHW,
            contrastive_weight=settings.contrastive_weight,
            diversity_weight=settings.diversity_weight,
            noise_weight=settings.noise_weight,
            temperature=settings.temperature,
        )
