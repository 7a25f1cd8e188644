"""A StableDiffusionXLPipeline as a ``Generator``."""

# B pairs, CHW latent, S tokens, L width of the text encoders together

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdd_ray.models.generators.stable_diffusion.drawing import token_states
from mmdd_ray.models.generators.stable_diffusion.model import StableDiffusion
from mmdd_ray.models.generators.stable_diffusion.pipeline import Pipeline, text_towers


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al., ICLR 2024): two text encoders, and a U-Net that is told the size of an image.

    Images of a training are squares, whole and not enlarged, so that their size is that of what is drawn, and nothing
    is cropped.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self.text_encoder_2: Any = pipeline.text_encoder_2.requires_grad_(False)

    @property
    def text_width(self) -> int:
        return self.text_encoder_2.config.projection_dim

    def _encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        states = [
            token_states(self.pipeline, encoder, self._tokens(tokenizer, captions))
            for tokenizer, encoder in text_towers(self.pipeline)
        ]
        pooled_BL = self.text_encoder_2(self._tokens(self.pipeline.tokenizer_2, captions)).text_embeds
        return torch.cat(states, dim=-1), pooled_BL

    def _predict(self, noisy_BCHW: Tensor, level_B: Tensor, states_BSL: Tensor, text_BL: Tensor) -> Tensor:
        px = noisy_BCHW.shape[-1] * self.pipeline.vae_scale_factor
        # the size that the image had, the corner from which it was cropped, and the size that it has
        size_B6 = text_BL.new_tensor([px, px, 0, 0, px, px]).expand(len(text_BL), 6)
        conditions = {"text_embeds": text_BL, "time_ids": size_B6}
        return self.unet(noisy_BCHW, level_B, states_BSL, added_cond_kwargs=conditions).sample
