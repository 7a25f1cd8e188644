"""tiny-sd: a real `StableDiffusionPipeline` folder at 32 x 32: VAE, UNet and CLIP's text encoder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mmdd_ray.data.web_scenes import World, scene
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.evaluation.retrieval import retrieval_metrics
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.stable_diffusion import draw_images, load_pipeline
from mmdd_ray.pretrain.clip import tokenize
from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, IMAGE_PX, WEB, draw_broad, draw_corpus
from mmdd_ray.pretrain.loop import Fit

VAE_BATCH = 64
KL_WEIGHT = 1e-5
UNET_BATCH = 64
GUIDANCE = 4.0


def train_vae(
    out: Path,
    *,
    scenes: int,
    steps: int,
    sharpening_steps: int,
    seed: int,
    device: torch.device,
    work: Path | None = None,
) -> dict[str, float]:
    """Train the VAE (32 x 32 x 3 to 8 x 8 x 4 latents), save it, and return held-out PSNR in dB and `seconds`."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_PX,
    ).to(device, memory_format=torch.channels_last)
    corpus = draw_broad(scenes)
    fit = partial(fit_vae, vae, corpus.images, steps=steps, lr=2e-3, work=work)
    seconds = fit("tiny-sd-vae", l1, seed=seed)
    seconds += fit("tiny-sd-vae-sharp", _objects_first, steps=sharpening_steps, seed=seed + 1)
    vae.eval()
    scale_latents(vae, corpus.images[:2048])
    vae.half().save_pretrained(out)
    held_out = draw_corpus(500, seed=HELD_OUT_SEED, world=WEB)
    return {"psnr_db": psnr(vae.float(), held_out.images), "seconds": seconds}


def fit_vae(
    vae: AutoencoderKL,
    images_N3HW: Tensor,
    name: str,
    criterion: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    work: Path | None,
) -> float:
    """Train `vae` on uint8 images, by `criterion` of restored images and originals; return the seconds it took."""
    fit = Fit(name, vae.parameters(), lr=lr, steps=steps, seed=seed, work=work)
    for rows in fit.batches(len(images_N3HW), VAE_BATCH):
        images = signed(images_N3HW[rows]).to(vae.device, memory_format=torch.channels_last)
        with autocast(vae.device, fastest("auto")):
            posterior = vae.encode(images).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        loss = criterion(drawn.float(), images)
        # The weak KL term only keeps latents from drifting apart.
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        fit.step(loss + KL_WEIGHT * kl, kl=kl.item())
    return fit.seconds


def l1(drawn: Tensor, images: Tensor) -> Tensor:
    return F.l1_loss(drawn, images)


def _objects_first(drawn: Tensor, images: Tensor) -> Tensor:
    """Squared error that counts the pixels of objects five times.

    Most pixels are background; an absolute error over all of them alone leaves small shapes without their colour.
    """
    background = images.flatten(2).median(dim=2).values[..., None, None]
    on_object = ((images - background).abs().amax(dim=1, keepdim=True) > 0.3).float()
    return ((1 + 4 * on_object) * (drawn - images).square()).mean()


def signed(images_u8: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1], the range of Stable Diffusion's VAE."""
    return images_u8.float() / 127.5 - 1


def scale_latents(vae: AutoencoderKL, images_N3HW: Tensor) -> None:
    """Set the factor that gives the latents of uint8 images unit variance, which the noise schedule assumes."""
    vae.register_to_config(scaling_factor=round(1 / _latents(vae, images_N3HW).std().item(), 5))


@torch.no_grad()
def _latents(vae: AutoencoderKL, images_N3HW: Tensor) -> Tensor:
    batches_u8 = images_N3HW.split(256)
    return torch.cat([vae.encode(signed(b).to(vae.device)).latent_dist.mean for b in batches_u8])


@torch.no_grad()
def psnr(vae: AutoencoderKL, images_N3HW: Tensor) -> float:
    """How well `vae` restores uint8 images, in dB."""
    images = signed(images_N3HW).to(vae.device)
    drawn = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return -10 * torch.log10(F.mse_loss(drawn, images) / 4).item()


def clip_text_encoder(clip: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """tiny-clip's text tower as the transformers class that Stable Diffusion uses; same weights, same numbers."""
    config = json.loads((clip / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    weights = load_file(clip / "open_clip_model.safetensors")
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    width = config["width"]
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config["vocab_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            max_position_embeddings=config["context_length"],
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    renamed = {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
        "final_layer_norm.weight": weights["ln_final.weight"],
        "final_layer_norm.bias": weights["ln_final.bias"],
    }
    for layer in range(config["layers"]):
        ours, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            joint = weights[f"{ours}attn.in_proj_{kind}"]
            for name, part in zip("qkv", joint.chunk(3), strict=True):
                renamed[f"{theirs}self_attn.{name}_proj.{kind}"] = part
            renamed[f"{theirs}self_attn.out_proj.{kind}"] = weights[f"{ours}attn.out_proj.{kind}"]
            renamed[f"{theirs}layer_norm1.{kind}"] = weights[f"{ours}ln_1.{kind}"]
            renamed[f"{theirs}layer_norm2.{kind}"] = weights[f"{ours}ln_2.{kind}"]
            renamed[f"{theirs}mlp.fc1.{kind}"] = weights[f"{ours}mlp.c_fc.{kind}"]
            renamed[f"{theirs}mlp.fc2.{kind}"] = weights[f"{ours}mlp.c_proj.{kind}"]
    model.load_state_dict({prefix + k: v.float() for k, v in renamed.items()})
    return model.eval(), tokenizer


def train_unet(
    out: Path,
    clip: Path,
    *,
    scenes: int,
    steps: int,
    scene_steps: int,
    seed: int,
    device: torch.device,
    work: Path | None = None,
) -> dict[str, float]:
    """Train the UNet on cached latents and text states of noisy pairs, and save the whole pipeline beside its VAE.

    It learns shapes from pictures of one object, which are half of all for `steps` steps, and then for `scene_steps`
    steps how scenes look; otherwise objects are drawn too large and too near to the middle.

    Returns:
        The last running mean of the loss, and `seconds`.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(device)
    text_encoder, tokenizer = clip_text_encoder(clip)
    text_encoder.to(device)
    unet = UNet2DConditionModel(
        sample_size=IMAGE_PX // 4,
        # Text enters at 4 x 4 only, fine enough for nine places and four times cheaper than at 8 x 8.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 80),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(device, memory_format=torch.channels_last)
    corpus = draw_broad(scenes)
    pairs = encode_pairs(vae, text_encoder, tokenizer, corpus.images, corpus.captions)
    fit = partial(fit_unet, unet, work=work)
    mixed = fit("tiny-sd-unet", pairs, lr=2e-3, steps=steps, seed=seed)
    scenes_alone = pairs.of_first_images(len(corpus) // 2)
    last = fit("tiny-sd-unet-scenes", scenes_alone, lr=1e-3, steps=scene_steps, seed=seed + 1)
    save_generator(out, vae, text_encoder, tokenizer, unet)
    return {"loss": last.mean["loss"], "seconds": mixed.seconds + last.seconds}


@dataclass(frozen=True)
class EncodedPairs:
    """Data that a UNet learns from, P pairs of N images and T texts, see `encode_pairs`."""

    latents: Tensor
    """(N, C, H, W), scaled."""
    states: Tensor
    """(T, context, width) float16 on the CPU: what the UNet attends to."""
    no_text: Tensor
    """(context, width), the same of an empty text."""
    image_P: Tensor
    """The row of each pair's image in ``latents``, int64."""
    text_P: Tensor
    """The row of each pair's text in ``states``, int64."""

    def __len__(self) -> int:
        return len(self.image_P)

    def of_first_images(self, images: int) -> "EncodedPairs":
        first_P = self.image_P < images
        return replace(self, image_P=self.image_P[first_P], text_P=self.text_P[first_P])


def encode_pairs(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    images_N3HW: Tensor,
    captions: Sequence[Sequence[str]],
) -> EncodedPairs:
    """Latents of uint8 images and text states of each one's captions: they are the same in every epoch."""
    latents = _latents(vae, images_N3HW) * vae.config.scaling_factor
    rows: dict[str, int] = {}  # many images are told by the same words
    pairs = [(image, rows.setdefault(text, len(rows))) for image, own in enumerate(captions) for text in own]
    states = _text_states(text_encoder, tokenizer, list(rows))
    (no_text,) = _text_states(text_encoder, tokenizer, [""])
    image_P, text_P = torch.tensor(pairs).T
    return EncodedPairs(latents, states, no_text, image_P, text_P)


def noise_schedule() -> DDPMScheduler:
    """Stable Diffusion's."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


def save_generator(
    out: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Save the parts as a StableDiffusionPipeline in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=DPMSolverMultistepScheduler.from_config(noise_schedule().config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    _forget_folder(out / "vae" / "config.json")


def fit_unet(
    unet: UNet2DConditionModel,
    name: str,
    pairs: EncodedPairs,
    *,
    lr: float,
    steps: int,
    seed: int,
    work: Path | None,
    batch: int = UNET_BATCH,
) -> Fit:
    """Train `unet` to predict the noise of latents; leaves it with the average of its weights."""
    latents, no_text = pairs.latents, pairs.no_text
    device, scheduler = latents.device, noise_schedule()
    average = EMAModel(
        unet.parameters(), decay=0.999, use_ema_warmup=True, power=0.75, foreach=device.type == "cuda"
    )
    fit = Fit(name, unet.parameters(), lr=lr, steps=steps, seed=seed, work=work, beside={"average": average})
    for rows in fit.batches(len(pairs), batch):
        clean = latents[pairs.image_P[rows].to(device)]
        state = pairs.states[pairs.text_P[rows]].to(device, torch.float32)
        # One in ten captions is dropped, which is what classifier-free guidance learns from.
        state[torch.rand(batch) < 0.1] = no_text.to(device, torch.float32)
        noise = torch.randn(clean.shape).to(device)
        t = torch.randint(1000, (batch,)).to(device)
        # Step by step: autocast keeps its copies of the weights until its outermost context ends.
        with autocast(device):
            predicted = unet(scheduler.add_noise(clean, noise, t), t, state).sample
        # Min-SNR weights (Hang et al., 2023): nearly clean latents would dominate otherwise.
        alpha_bar = scheduler.alphas_cumprod.to(device)[t]
        weight = (5 * (1 - alpha_bar) / alpha_bar).clamp(max=1)
        loss = (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
        fit.step(loss)
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    return fit


def _forget_folder(file: Path) -> None:
    """Removes where a model was loaded from, which diffusers keeps in its configuration."""
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def _text_states(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """The text states that the UNet attends to, (N, context, width) float16 on the CPU."""
    tokens = tokenize(tokenizer, captions).split(256)
    return torch.cat([text_encoder(t.to(text_encoder.device)).last_hidden_state.half().cpu() for t in tokens])


def train(
    out: Path,
    clip: Path,
    *,
    scenes: int,
    vae_steps: tuple[int, int],
    unet_steps: tuple[int, int],
    seed: int,
    device: torch.device,
    work: Path | None = None,
) -> dict[str, float]:
    """Train tiny-sd, VAE first.

    Returns:
        Its quality in the web's world (see `evaluate`), the VAE's PSNR, and `seconds`.
    """
    shared: dict[str, Any] = {"scenes": scenes, "seed": seed, "device": device, "work": work}
    plain, sharpening = vae_steps
    vae = train_vae(out / "vae", steps=plain, sharpening_steps=sharpening, **shared)
    mixed, scenes_alone = unet_steps
    unet = train_unet(out, clip, steps=mixed, scene_steps=scenes_alone, **shared)
    return {**vae, **evaluate(out, clip, device), "seconds": vae["seconds"] + unet["seconds"]}


def evaluate(
    out: Path, clip: Path, device: torch.device, *, scenes: int = 500, world: World = WEB
) -> dict[str, float]:
    """Draw one image for a right caption of each held-out scene, and let tiny-clip find the captions again.

    Returns:
        Retrieval metrics in percent, see `mmdd_ray.evaluation.retrieval`.
    """
    pipeline = load_pipeline(str(out), device)
    captions = [scene(i, seed=HELD_OUT_SEED, world=world).true_captions()[0] for i in range(scenes)]
    drawn = [
        draw_images(
            pipeline,
            captions[start : start + 100],
            list(range(start, min(start + 100, scenes))),
            image_px=IMAGE_PX,
            inference_steps=20,
            guidance=GUIDANCE,
        ).images_BHW3
        for start in range(0, scenes, 100)
    ]
    judge = load_clip(str(clip), device)
    images = judge.encode_images(np.concatenate(drawn)).cpu().numpy()
    return retrieval_metrics(images, judge.encode_texts(captions).cpu().numpy(), np.arange(scenes))
