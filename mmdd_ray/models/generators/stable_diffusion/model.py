"""A StableDiffusionPipeline as a ``Generator``."""

# B pairs, CHW latent, HW image size, T diffusion steps, L width of the text encoder

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmdd_ray.errors import UserError
from mmdd_ray.models.encoding_cache import EncodingCache
from mmdd_ray.models.generators.generator import Denoising, Drawing, Trained
from mmdd_ray.models.generators.parts import in_parts
from mmdd_ray.models.generators.stable_diffusion.drawing import draw_from_latents, draw_images, is_short
from mmdd_ray.models.generators.stable_diffusion.pipeline import Pipeline
from mmdd_ray.models.generators.stable_diffusion.trainable import (
    save_pipeline,
    trainable_parameters,
)

PredictionType = Literal["epsilon", "v_prediction"]


class StableDiffusion(nn.Module):
    """A StableDiffusionPipeline as a ``Generator``; freezes VAE and text encoder."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.unet: Any = pipeline.unet
        self.vae: Any = pipeline.vae.requires_grad_(False)
        self._half_vae: list[Any] = []  # in a list, since what is saved must not have it among its parts
        self._compiled_images: int | None = None
        self.text_encoder: Any = pipeline.text_encoder.requires_grad_(False)
        self.tokenizer: Any = pipeline.tokenizer
        self.prediction_type: PredictionType = pipeline.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"finetune.generator predicts {self.prediction_type!r}; name one that predicts the noise "
                "(epsilon) or the velocity (v_prediction)"
            )
        self.alpha_bar_T: Tensor
        # a scheduler is no module, so a pipeline that is moved leaves its table where it was
        alpha_bar_T = pipeline.scheduler.alphas_cumprod.float().to(pipeline.device, copy=True)
        self.register_buffer("alpha_bar_T", alpha_bar_T)

    @property
    def device(self) -> torch.device:
        return self.alpha_bar_T.device

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def text_width(self) -> int:
        return self.text_encoder.config.hidden_size

    @property
    def noise_levels(self) -> int:
        return len(self.alpha_bar_T)

    def latent_side(self, image_px: int, setting: str = "finetune.image_px") -> int:
        """Side of the latent; raises ``UserError`` if the VAE cannot halve such images as often as it does."""
        downscale = self.pipeline.vae_scale_factor
        if image_px % downscale:
            raise UserError(
                f"{setting}={image_px} is no multiple of {downscale}, the downscaling of the generator's VAE"
            )
        return image_px // downscale

    def denoise(
        self,
        images_BHW3: NDArray[np.uint8] | Tensor,
        captions: Sequence[str],
        level_B: Tensor,
        generator: torch.Generator,
        kept: EncodingCache,
    ) -> Denoising:
        """Encodes uint8 RGB images, adds the noise of the diffusion steps ``level_B``, and asks the U-Net.

        The noisy latent is z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε; the target is ε, or the velocity √ᾱ_t ε − √(1−ᾱ_t) z_0. The
        noise comes from the CPU's ``generator``, so it is the same on every device. Gradients reach the U-Net only.
        """
        with torch.no_grad():
            (clean_BCHW,) = kept.of_images("latent", images_BHW3, lambda: (self.encode(images_BHW3),))
            states_BSL, text_BL = kept.of_keys("states", captions, lambda: self._encode_texts(captions))
        noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator).to(clean_BCHW.device)
        level_B = level_B.to(clean_BCHW.device)
        alpha_bar_B = self.alpha_bar_T[level_B]
        alpha_bar = alpha_bar_B.view(-1, 1, 1, 1)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy_BCHW = signal * clean_BCHW + noise * noise_BCHW
        prediction_BCHW = self._predict(noisy_BCHW, level_B, states_BSL, text_BL)
        velocity = self.prediction_type == "v_prediction"
        target_BCHW = signal * noise_BCHW - noise * clean_BCHW if velocity else noise_BCHW
        implied_BCHW = clean_estimate(noisy_BCHW, prediction_BCHW, alpha_bar_B, self.prediction_type)
        return Denoising(noisy_BCHW, prediction_BCHW, target_BCHW, implied_BCHW, text_BL)

    def _predict(self, noisy_BCHW: Tensor, level_B: Tensor, states_BSL: Tensor, text_BL: Tensor) -> Tensor:
        """The U-Net's answer."""
        return self.unet(noisy_BCHW, level_B, states_BSL).sample

    def encode(self, images_BHW3: NDArray[np.uint8] | Tensor, *, one_by_one: bool = False) -> Tensor:
        """Scaled latents (B, C, H, W) float32 of uint8 RGB images, which the VAE takes in [-1, 1]."""
        images = torch.as_tensor(images_BHW3).to(self.alpha_bar_T.device).permute(0, 3, 1, 2)

        def latents(part_B3HW: Tensor) -> Tensor:
            with self._vae_as_trained() as vae:
                return vae.encode((part_B3HW.float() / 127.5 - 1).to(vae.dtype)).latent_dist.mode()

        if self._half_vae:
            latent = in_parts(latents, images, images.shape[-1])
        else:
            self.vae.use_slicing = one_by_one
            latent = latents(images)
        return latent.float() * self.vae.config.scaling_factor

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of scaled latents, with the gradient to these."""
        with self._vae_as_trained() as vae:
            signed_B3HW = vae.decode((latent_BCHW / vae.config.scaling_factor).to(vae.dtype)).sample
        return (signed_B3HW.float() / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def _vae_as_trained(self) -> Iterator[Any]:
        """The VAE; in bfloat16 where a training is prepared on a GPU, with no autocast.

        Autocast would cast the frozen weights anew for every part, and norms to float32, whose outputs take twice the
        memory and the time.
        """
        if not self._half_vae:
            yield self.vae
            return
        with torch.autocast(self.device.type, enabled=False):
            yield self._half_vae[0]

    def _encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of all tokens (B, S, L) and the pooled output (B, L); long captions are cut."""
        encoded = self.text_encoder(self._tokens(self.tokenizer, captions))
        return encoded.last_hidden_state, encoded.pooler_output

    def _tokens(self, tokenizer: Any, captions: Sequence[str]) -> Tensor:
        """Token ids (B, S)."""
        return tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.alpha_bar_T.device)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        image_px: int,
        inference_steps: int,
        guidance: float,
    ) -> Drawing:
        """See ``draw_images``."""
        with self._compiled_for(len(prompts)):
            return draw_images(
                self.pipeline,
                prompts,
                seeds,
                image_px=image_px,
                inference_steps=inference_steps,
                guidance=guidance,
            )

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
        """See ``draw_from_latents``."""
        with self._compiled_for(len(prompts), (*prompts, negative_prompt)):
            return draw_from_latents(
                self.pipeline,
                prompts,
                seeds,
                latent_BCHW,
                image_px=image_px,
                inference_steps=inference_steps,
                guidance=guidance,
                strength=strength,
                negative_prompt=negative_prompt,
            )

    def _compiled_for(self, images: int, texts: Sequence[str] = ()) -> AbstractContextManager[Any]:
        """The block runs compiled if that is for as many images, and the texts are short."""
        if self._compiled_images is None:
            return nullcontext()
        fits = images == self._compiled_images and all(is_short(self.pipeline, text) for text in texts)
        return torch.compiler.set_stance("default" if fits else "force_eager")

    def prepare_training(self, kind: Trained, *, rank: int, compiled: bool = False) -> None:
        """Freezes all but what is to be trained of the U-Net; see ``trainable_parameters``.

        Args:
            compiled: Compiles U-Net and VAE (``torch.compile``), with weights in the order that is best for it.
        """
        trainable_parameters(self.unet, kind, rank=rank)
        if self.device.type == "cuda":
            self.unet.enable_gradient_checkpointing()
            self._half_vae = [deepcopy(self.vae).bfloat16()]
        else:  # not on a GPU, whose group norms would copy this layout
            self.unet.to(memory_format=torch.channels_last)
        if compiled:
            # DistributedDataParallel would have graphs cut, which some versions of torch refuse for checkpoints
            torch._dynamo.config.optimize_ddp = False
            vae = self._half_vae[0] if self._half_vae else self.vae
            _compile(self.unet, vae.encoder, vae.decoder)

    def compile_drawing(self, images: int) -> None:
        """Compiles what draws that many images (``torch.compile``), which then has its weights in channels-last order.

        Uncompiled, that order is slower on a GPU, whose norms copy it: 112 ms of an H100 in place of 100 for 32 latents
        of 64 x 64 in Stable Diffusion 1.5; compiled, 70. Other numbers of images, and prompts of more than one chunk,
        are drawn uncompiled, so that an image does not depend on what was drawn before it.
        """
        self._compiled_images = images
        _compile(self.unet, self.vae.decoder)

    def save(self, folder: Path) -> None:
        """See ``save_pipeline``."""
        save_pipeline(self.pipeline, folder)


def _compile(*parts: nn.Module) -> None:
    for part in parts:
        part.to(memory_format=torch.channels_last)
        part.compile()


def clean_estimate(
    noisy_BCHW: Tensor,
    prediction_BCHW: Tensor,
    alpha_bar_B: Tensor,
    prediction_type: PredictionType = "epsilon",
) -> Tensor:
    """The clean latent ẑ_0 that the U-Net's answer implies, (B, C, H, W).

    ``epsilon``: ẑ_0 = (z_t − √(1−ᾱ_t) ε̂)/√ᾱ_t. An error of ε̂ is multiplied by √((1−ᾱ_t)/ᾱ_t), without bound
    as ᾱ_t → 0: with Stable Diffusion 1.5's schedule that is 1.6 at half of its 1,000 steps, 3.3 at 0.7, 5.1 at 0.8, and
    14.6 at the end. ``v_prediction``: ẑ_0 = √ᾱ_t z_t − √(1−ᾱ_t) v̂, for which all t are safe.
    """
    alpha_bar = alpha_bar_B.view(-1, 1, 1, 1)
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        return (noisy_BCHW - noise * prediction_BCHW) / signal
    return signal * noisy_BCHW - noise * prediction_BCHW
