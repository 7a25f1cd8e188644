"""EDGE's objective, from real pairs to loss terms (arXiv 2509.15472, section 3); no Ray."""

# B pairs of a rank, V and L embedding widths, CHW latent

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmdd_ray.methods.edge.losses import edge_objective, sample_timesteps
from mmdd_ray.methods.edge.settings import EdgeFinetune
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.encoding_cache import EncodingCache
from mmdd_ray.models.generators.generator import Generator
from mmdd_ray.models.generators.parts import in_parts

LATENT_DIM = 256  # width of the space "latent"


@dataclass(frozen=True)
class EdgeObjective:
    """EDGE's loss with the weights of ``settings``; an ``Objective``."""

    settings: EdgeFinetune
    clip: str
    """Name of the CLIP model of the space "clip"."""

    def build(self, generator: Generator) -> "EdgeLoss":
        return EdgeLoss(generator, self.settings, self.clip)


class EdgeLoss(nn.Module):
    """L = λ_C L_C + λ_D L_D + λ_N ‖ε̂ − ε‖² of a batch of real pairs, by ``losses.edge_objective``.

    A batch is encoded, made noisy and denoised in one step. The denoised latents ẑ_0 and the captions are
    embedded in one of two spaces:

    - ``clip``: the decoded image by CLIP's image tower, the caption by its text tower. Both are frozen.
    - ``latent``: linear projections of ẑ_0 and of the pooled output of the generator's text encoder, which
      are trained along and then dropped. Cheaper, since nothing is decoded.
    """

    def __init__(self, generator: Generator, settings: EdgeFinetune, clip: str) -> None:
        super().__init__()
        self.settings, self.generator = settings, generator
        self.kept = EncodingCache(settings.cache_mib * 2**20)
        side, device = generator.latent_side(settings.image_px), generator.device
        if settings.space == "clip":
            # no submodule: a frozen model needs neither DDP nor a place among the parameters
            self.clip = load_clip(clip, device)
        else:
            self.image_head = nn.Linear(generator.latent_channels * side**2, LATENT_DIM, device=device)
            self.text_head = nn.Linear(generator.text_width, LATENT_DIM, device=device)

    def forward(
        self, images_BHW3: NDArray[np.uint8] | Tensor, captions: list[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms of ``losses.edge_objective`` for uint8 images; the noise comes from ``generator``.

        Raises:
            ValueError: there are fewer than two pairs over all workers.
        """
        settings = self.settings
        level_B = sample_timesteps(
            len(captions), self.generator.noise_levels, settings.max_timestep_fraction, generator
        )
        denoising = self.generator.denoise(images_BHW3, captions, level_B, generator, self.kept)
        latent_BCHW = denoising.clean_BCHW
        if settings.space == "clip":
            image_BV = self._look(latent_BCHW)
            (text_BL,) = self.kept.of_keys(
                "clip", captions, lambda: (self.clip.encode_texts(captions, whole=True),)
            )
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

    def _look(self, latent_BCHW: Tensor) -> Tensor:
        """CLIP's features (B, V) of the decoded latents."""

        def look(part_BCHW: Tensor) -> Tensor:
            return self.clip.embed_pixels(self.generator.decode(part_BCHW))

        on_gpu = latent_BCHW.device.type == "cuda"
        return in_parts(look, latent_BCHW, self.settings.image_px) if on_gpu else look(latent_BCHW)
