"""Drawing with a pipeline, from noise or from latents, with prompts of any length.

float16 overflows in some U-Nets and in more VAEs, and a value that is not finite would become a black pixel. So images
are looked at before they are rounded, and those that are not finite are decoded, and if need be drawn, in float32.
"""

# B images

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from mmdd_ray.errors import UserError
from mmdd_ray.models.generators.generator import Drawing
from mmdd_ray.models.generators.stable_diffusion.pipeline import Pipeline, is_xl, text_towers


@torch.inference_mode()
def draw_images(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    image_px: int,
    inference_steps: int,
    guidance: float,
) -> Drawing:
    """One image for each prompt, of side ``image_px``, by DPM-Solver++ (arXiv 2211.01095).

    The initial noise of each image comes from its own seed and the CPU's generator in float32, the same on every device
    and in every precision.

    Raises:
        UserError: An image is not finite in float32.
    """
    _use_solver(pipeline)

    def latents(rows: Sequence[int]) -> Tensor:
        return _from_noise(
            pipeline,
            [seeds[row] for row in rows],
            image_px,
            prompt=[prompts[row] for row in rows],
            num_inference_steps=inference_steps,
            guidance_scale=guidance,
        )

    return _finite(pipeline, range(len(prompts)), latents)


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
) -> Drawing:
    """Images of side ``image_px`` that begin as noisy latents: image-to-image (SDEdit, ICLR 2022).

    Like ``draw_images``, but prompts of any length count to their end.

    Args:
        latent_BCHW: what to begin with, as ``StableDiffusion.encode`` gives it; None begins with noise alone.
        strength: share of the schedule that is drawn again; at least one of the steps is.
        negative_prompt: what guidance leads away from.
    """
    _use_solver(pipeline)
    to_image = _image_to_image(pipeline)

    def latents(rows: Sequence[int]) -> Tensor:
        settings = {
            **_prompt_settings(pipeline, [prompts[row] for row in rows], negative_prompt),
            "num_inference_steps": inference_steps,
            "guidance_scale": guidance,
        }
        own_seeds = [seeds[row] for row in rows]
        if latent_BCHW is None:
            return _from_noise(pipeline, own_seeds, image_px, **settings)
        steps = max(1, int(inference_steps * strength))
        # of which diffusers makes the same number of steps again
        share = min((steps + 0.5) / inference_steps, 1.0)
        begun = {"image": latent_BCHW[rows], "strength": share, "generator": _generators(own_seeds)}
        return _denoised(to_image, **begun, **settings)

    images = np.empty((len(prompts), image_px, image_px, 3), np.uint8)
    redrawn = np.zeros(len(prompts), bool)
    # Prompts of one length at a time: an image must not depend on how long its neighbours' prompts are.
    length_B = [len(_chunks(pipeline, prompt)) for prompt in prompts]
    for length in sorted(set(length_B)):
        rows = [row for row, own in enumerate(length_B) if own == length]
        images[rows], redrawn[rows] = _finite(pipeline, rows, latents)
    return Drawing(images, redrawn)


def _prompt_settings(pipeline: Pipeline, prompts: Sequence[str], negative_prompt: str) -> dict[str, Tensor]:
    """Encoded prompts as a pipeline takes them."""
    text_BSL, negative_1SL = encode_prompts(pipeline, prompts, negative_prompt)
    found = {"prompt_embeds": text_BSL, "negative_prompt_embeds": negative_1SL.expand_as(text_BSL)}
    if not is_xl(pipeline):
        return found
    tokenizer, encoder = text_towers(pipeline)[-1]
    first = [_chunks(pipeline, text)[:1] for text in (*prompts, negative_prompt)]
    pooled_BL = encoder(
        _padded(tokenizer, [chunk for own in first for chunk in own]).to(pipeline.device)
    ).text_embeds
    found |= {
        "pooled_prompt_embeds": pooled_BL[:-1],
        "negative_pooled_prompt_embeds": pooled_BL[-1:].expand_as(pooled_BL[:-1]),
    }
    if (
        not negative_prompt and pipeline.config.force_zeros_for_empty_prompt
    ):  # as it was trained without a caption
        found |= {
            name: torch.zeros_like(value) for name, value in found.items() if name.startswith("negative")
        }
    return found


def encode_prompts(pipeline: Pipeline, prompts: Sequence[str], negative_prompt: str) -> tuple[Tensor, Tensor]:
    """States of all tokens of the prompts (B, S, L) and of the negative one (1, S, L).

    A text encoder reads 77 tokens at a time. Longer texts are cut into chunks of 75, each is encoded between its own
    begin and end, and the states follow one another; shorter texts are filled up with empty chunks. The states of two
    text encoders stand side by side.
    """
    texts = [_chunks(pipeline, text) for text in (*prompts, negative_prompt)]
    longest = max(map(len, texts))
    pieces = [piece for own in texts for piece in own + [[]] * (longest - len(own))]
    states = [
        token_states(pipeline, encoder, _padded(tokenizer, pieces).to(pipeline.device))
        for tokenizer, encoder in text_towers(pipeline)
    ]
    state_PSL = torch.cat(states, dim=-1)
    state_BSL = state_PSL.reshape(len(texts), -1, state_PSL.shape[-1])
    return state_BSL[:-1], state_BSL[-1:]


def token_states(pipeline: Pipeline, encoder: Any, ids_PS: Tensor) -> Tensor:
    """Hidden states that the U-Net attends to: the last ones, or with Stable Diffusion XL those before the last."""
    if is_xl(pipeline):
        return encoder(ids_PS, output_hidden_states=True).hidden_states[-2]
    return encoder(ids_PS).last_hidden_state


def _padded(tokenizer: Any, pieces: Sequence[list[int]]) -> Tensor:
    """Token ids (P, S) of chunks between begin and end."""
    begun = [[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id] for piece in pieces]
    size = tokenizer.model_max_length
    return tokenizer.pad(
        {"input_ids": begun}, padding="max_length", max_length=size, return_tensors="pt"
    ).input_ids


def _chunks(pipeline: Pipeline, text: str) -> list[list[int]]:
    """Token ids of the text in runs that the text encoder can read; one empty run of an empty text."""
    size = pipeline.tokenizer.model_max_length - 2
    # quietly: transformers warns of texts that are too long for one run
    ids = pipeline.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return [ids[start : start + size] for start in range(0, max(len(ids), 1), size)]


def is_short(pipeline: Pipeline, text: str) -> bool:
    """Whether the text encoder reads a text at once."""
    return len(_chunks(pipeline, text)) == 1


def _use_solver(pipeline: Pipeline) -> None:
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", use_karras_sigmas=True
    )


def _image_to_image(pipeline: Pipeline) -> Pipeline:
    if is_xl(pipeline):
        found = _FromLatentsXL(**pipeline.components, add_watermarker=False)
    else:
        found = _FromLatents(**pipeline.components, requires_safety_checker=False)
    found.set_progress_bar_config(disable=True)
    return found


class _NoiseInFloat32:
    """A pipeline that begins with noisy latents, and draws their noise in float32 whatever its weights are in."""

    def prepare_latents(
        self,
        image: Tensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        """In half precision torch may draw other numbers."""
        whole: Any = super()
        arguments = (image, timestep, batch_size, num_images_per_prompt, torch.float32, *others)
        return whole.prepare_latents(*arguments, **named).to(dtype)


class _FromLatents(_NoiseInFloat32, StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    pass


class _FromLatentsXL(_NoiseInFloat32, StableDiffusionXLImg2ImgPipeline):  # type: ignore[misc]
    pass


def _from_noise(pipeline: Pipeline, seeds: Sequence[int], image_px: int, **settings: Any) -> Tensor:
    """Denoised latents (B, C, H, W) that begin as noise, which is drawn in float32 whatever the weights are in."""
    side = image_px // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)
    noise = torch.stack(
        [torch.randn(shape, generator=own, dtype=torch.float32) for own in _generators(seeds)]
    )
    size = {"height": image_px, "width": image_px}
    return _denoised(pipeline, latents=noise.to(pipeline.device, pipeline.dtype), **size, **settings)


def _denoised(pipeline: Pipeline, **settings: Any) -> Tensor:
    return pipeline(output_type="latent", **settings).images


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _decoded(pipeline: Pipeline, latent_BCHW: Tensor) -> NDArray[np.float32]:
    if is_xl(pipeline) and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
        with _in_float32(pipeline.vae):  # its VAE overflows as a rule
            return _decoded(pipeline, latent_BCHW.float())
    signed_B3HW = pipeline.vae.decode(latent_BCHW / pipeline.vae.config.scaling_factor).sample
    return pipeline.image_processor.postprocess(signed_B3HW, output_type="np")


def _finite(pipeline: Pipeline, rows: Sequence[int], latents: Callable[[Sequence[int]], Tensor]) -> Drawing:
    """The images of these rows, whose latents are drawn by ``latents``."""
    latent_BCHW = latents(rows)
    drawn = _decoded(pipeline, latent_BCHW)
    redrawn = _is_broken(drawn)
    if redrawn.any() and pipeline.dtype != torch.float32:
        # uncompiled, since a few images in float32 are rare, and compiling takes minutes
        with torch.compiler.set_stance("force_eager"), _in_float32(pipeline):
            drawn[redrawn] = _decoded(pipeline, latent_BCHW[torch.from_numpy(redrawn)].float())
            if (still := _is_broken(drawn)).any():
                drawn[still] = _decoded(
                    pipeline, latents([rows[at] for at in np.flatnonzero(still).tolist()])
                )
    if _is_broken(drawn).any():
        raise UserError(
            "the generator draws values that are not finite, in float32, too: its weights are broken; if it was "
            "fine-tuned, lower finetune.learning_rate"
        )
    return Drawing((drawn * 255).round().astype(np.uint8), redrawn)


def _is_broken(drawn: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.logical_not(np.isfinite(drawn).reshape(len(drawn), -1).all(axis=1))


@contextmanager
def _in_float32(part: Any) -> Iterator[None]:
    """Casts all weights of a pipeline or of a part to float32, and back again, which leaves them as they were."""
    stored = part.dtype
    with torch.inference_mode(False):
        part.to(torch.float32)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            part.to(stored)
