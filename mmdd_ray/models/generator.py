"""Stable Diffusion: loading it, what fine-tuning trains of it, denoising real pairs, saving a folder."""

# B pairs, CHW latent, HW image size, T diffusion steps, L width of the text encoder

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.utils import logging as transformers_logging

from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo

# The classes of diffusers are opaque to type checkers.
Pipeline = Any
"""A ``StableDiffusionPipeline``."""
UNet = Any
"""A ``UNet2DConditionModel``."""
Trained = Literal["difffit", "lora", "full"]

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention layers, as in the diffusers examples


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
            local_files_only=Path(found).is_dir(),
            safety_checker=None,
            requires_safety_checker=False,
        )
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipeline, part) is None:
            raise UserError(f"{setting}={name} has no {part}; name a whole StableDiffusionPipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def check_image_px(pipeline: Pipeline, image_px: int, setting: str = "finetune.image_px") -> None:
    """Raises ``UserError`` if the VAE cannot halve images of that side as often as it does."""
    if image_px % pipeline.vae_scale_factor:
        raise UserError(
            f"{setting}={image_px} is no multiple of {pipeline.vae_scale_factor}, the downscaling of the "
            "generator's VAE"
        )


def save_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Saves a plain StableDiffusionPipeline in safetensors; merges what was trained into the U-Net first."""
    merge_trained(pipeline.unet)
    pipeline.save_pretrained(folder, safe_serialization=True)


class Scale(nn.Module):
    """γW with a learned γ that starts at 1: DiffFit's scale factor, for the last layer of a branch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones((), device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gamma * weight


def trainable_parameters(unet: UNet, kind: Trained, *, rank: int = 8) -> list[nn.Parameter]:
    """Prepares the U-Net for training, freezes the rest of it, and returns the parameters to train.

    - ``difffit`` (Xie et al., ICCV 2023, arXiv 2304.06648): all biases, all normalisation layers, and a new
      scale factor γ for the output of each attention, feed-forward and residual block.
    - ``lora``: new low-rank adapters of the attention layers; draws from torch's global generator.
    - ``full``: everything.

    ``merge_trained`` turns the result into a plain U-Net again.
    """
    unet.requires_grad_(kind == "full")
    if kind == "lora":
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))
    elif kind == "difffit":
        for module in unet.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.requires_grad_(True)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.requires_grad_(True)
        for layer in _branch_outputs(unet):
            # The bias is trained anyway, so that only the weight needs the factor.
            parametrize.register_parametrization(layer, "weight", Scale(layer.weight))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def merge_trained(unet: UNet) -> None:
    """Multiplies scale factors and adds adapters into the weights they belong to, and removes them."""
    if getattr(unet, "peft_config", None):
        unet.fuse_lora()
        unet.unload_lora()
    for module in list(unet.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _branch_outputs(unet: UNet) -> list[Any]:
    """The layer of each residual branch whose output is added to the trunk."""
    layers: list[Any] = []
    for module in unet.modules():
        if isinstance(module, Attention):
            layers.append(module.to_out[0])
        elif isinstance(module, FeedForward):
            layers.append([layer for layer in module.net if isinstance(layer, nn.Linear)][-1])
        elif isinstance(module, ResnetBlock2D):
            layers.append(module.conv2)
    return layers


class Denoising(NamedTuple):
    """What the U-Net made of a noisy batch; all float32, but for the prediction under autocast."""

    noisy_BCHW: Tensor
    """z_t = √ᾱ_t z_0 + √(1−ᾱ_t) ε, what the U-Net saw."""
    prediction_BCHW: Tensor
    """What it answered."""
    target_BCHW: Tensor
    """What it should have: the noise ε, or the velocity √ᾱ_t ε − √(1−ᾱ_t) z_0 for v-prediction."""
    alpha_bar_B: Tensor
    """ᾱ_t."""
    text_BL: Tensor
    """Pooled output of the generator's text encoder, τ(x_l)."""


class Denoiser(nn.Module):
    """The parts of a pipeline that training needs; freezes VAE and text encoder."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.unet: Any = pipeline.unet
        self.vae: Any = pipeline.vae.requires_grad_(False)
        self.text_encoder: Any = pipeline.text_encoder.requires_grad_(False)
        self.tokenizer: Any = pipeline.tokenizer
        self.downscale: int = pipeline.vae_scale_factor
        """Pixels along a side of the image for one of the latent."""
        self.prediction_type: Literal["epsilon", "v_prediction"] = pipeline.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"finetune.generator predicts {self.prediction_type!r}; name one that predicts the noise "
                "(epsilon) or the velocity (v_prediction)"
            )
        self.alpha_bar_T: Tensor
        self.register_buffer("alpha_bar_T", pipeline.scheduler.alphas_cumprod.float().clone())

    def forward(
        self,
        images_BHW3: NDArray[np.uint8] | Tensor,
        captions: Sequence[str],
        steps_B: Tensor,
        generator: torch.Generator,
    ) -> Denoising:
        """Encodes uint8 RGB images, adds the noise of the diffusion steps ``steps_B``, and asks the U-Net.

        The noise comes from the CPU's ``generator``, so it is the same on every device. Gradients reach the
        U-Net only.
        """
        with torch.no_grad():
            clean_BCHW = self.encode(images_BHW3)
            states_BSL, text_BL = self._encode_texts(captions)
        noise_BCHW = torch.randn(clean_BCHW.shape, generator=generator).to(clean_BCHW.device)
        steps_B = steps_B.to(clean_BCHW.device)
        alpha_bar_B = self.alpha_bar_T[steps_B]
        alpha_bar = alpha_bar_B.view(-1, 1, 1, 1)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noisy_BCHW = signal * clean_BCHW + noise * noise_BCHW
        prediction_BCHW = self.unet(noisy_BCHW, steps_B, states_BSL).sample
        velocity = self.prediction_type == "v_prediction"
        target_BCHW = signal * noise_BCHW - noise * clean_BCHW if velocity else noise_BCHW
        return Denoising(noisy_BCHW, prediction_BCHW, target_BCHW, alpha_bar_B, text_BL)

    def encode(self, images_BHW3: NDArray[np.uint8] | Tensor) -> Tensor:
        """Scaled latents (B, C, H, W) float32 of uint8 RGB images, which the VAE takes in [-1, 1]."""
        images = torch.as_tensor(images_BHW3).to(self.alpha_bar_T.device).permute(0, 3, 1, 2)
        latent = self.vae.encode(images.float() / 127.5 - 1).latent_dist.mode()
        return latent.float() * self.vae.config.scaling_factor

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of scaled latents, with the gradient to these."""
        signed_B3HW = self.vae.decode(latent_BCHW / self.vae.config.scaling_factor).sample
        return (signed_B3HW.float() / 2 + 0.5).clamp(0, 1)

    def _encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States of all tokens (B, S, L) and the pooled output (B, L); long captions are cut."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoded = self.text_encoder(tokens.input_ids.to(self.alpha_bar_T.device))
        return encoded.last_hidden_state, encoded.pooler_output


@torch.inference_mode()
def draw_images(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    image_px: int,
    inference_steps: int,
    guidance: float,
) -> NDArray[np.uint8]:
    """One image for each prompt, (B, image_px, image_px, 3) uint8, by DPM-Solver++ (arXiv 2211.01095).

    The initial noise of each image comes from its own seed and the CPU's generator, the same on every device.
    """
    return _draw(
        _with_solver(pipeline),
        seeds,
        prompt=list(prompts),
        height=image_px,
        width=image_px,
        num_inference_steps=inference_steps,
        guidance_scale=guidance,
    )


@torch.inference_mode()
def draw_from_latents(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    latent_BCHW: Tensor | None,
    *,
    image_px: int,
    inference_steps: int,
    guidance: float,
    strength: float,
    negative_prompt: str,
) -> NDArray[np.uint8]:
    """Images (B, image_px, image_px, 3) uint8 that begin as noisy latents: image-to-image (SDEdit, ICLR 2022).

    Like ``draw_images``, but prompts of any length count to their end.

    Args:
        latent_BCHW: what to begin with, as ``Denoiser.encode`` gives it; None begins with noise alone.
        strength: share of the schedule that is drawn again; at least one of the steps is.
        negative_prompt: what guidance leads away from.
    """
    pipeline = _with_solver(pipeline)
    to_image = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    to_image.set_progress_bar_config(disable=True)
    drawn_BHWC = np.empty((len(prompts), image_px, image_px, 3), np.uint8)
    # Prompts of one length at a time: an image must not depend on how long its neighbours' prompts are.
    length_B = [len(_chunks(pipeline, prompt)) for prompt in prompts]
    for length in sorted(set(length_B)):
        rows = [row for row, own in enumerate(length_B) if own == length]
        text_BSL, negative_1SL = encode_prompts(pipeline, [prompts[row] for row in rows], negative_prompt)
        settings = {
            "prompt_embeds": text_BSL,
            "negative_prompt_embeds": negative_1SL.expand_as(text_BSL),
            "num_inference_steps": inference_steps,
            "guidance_scale": guidance,
        }
        own_seeds = [seeds[row] for row in rows]
        if latent_BCHW is None:
            drawn = _draw(pipeline, own_seeds, height=image_px, width=image_px, **settings)
        else:
            steps = max(1, int(inference_steps * strength))
            share = min(
                (steps + 0.5) / inference_steps, 1.0
            )  # which diffusers makes the same number of steps again
            drawn = _draw(to_image, own_seeds, image=latent_BCHW[rows], strength=share, **settings)
        drawn_BHWC[rows] = drawn
    return drawn_BHWC


def encode_prompts(pipeline: Pipeline, prompts: Sequence[str], negative_prompt: str) -> tuple[Tensor, Tensor]:
    """States of all tokens of the prompts (B, S, L) and of the negative one (1, S, L).

    A text encoder reads 77 tokens at a time. Longer texts are cut into chunks of 75, each is encoded between its own
    begin and end, and the states follow one another; shorter texts are filled up with empty chunks.
    """
    tokenizer = pipeline.tokenizer
    texts = [_chunks(pipeline, text) for text in (*prompts, negative_prompt)]
    longest = max(map(len, texts))
    pieces = [piece for own in texts for piece in own + [[]] * (longest - len(own))]
    padded = tokenizer.pad(
        {"input_ids": [[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id] for piece in pieces]},
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    state_PSL = pipeline.text_encoder(padded.input_ids.to(pipeline.device)).last_hidden_state
    state_BSL = state_PSL.reshape(len(texts), -1, state_PSL.shape[-1])
    return state_BSL[:-1], state_BSL[-1:]


def _chunks(pipeline: Pipeline, text: str) -> list[list[int]]:
    """Token ids of the text in runs that the text encoder can read; one empty run of an empty text."""
    size = pipeline.tokenizer.model_max_length - 2
    # quietly: transformers warns of texts that are too long for one run
    ids = pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return [ids[start : start + size] for start in range(0, max(len(ids), 1), size)]


def _with_solver(pipeline: Pipeline) -> Pipeline:
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", use_karras_sigmas=True
    )
    return pipeline


def _draw(pipeline: Pipeline, seeds: Sequence[int], **settings: Any) -> NDArray[np.uint8]:
    drawn = pipeline(
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="np", **settings
    ).images
    return (drawn * 255).round().astype(np.uint8)
