"""Pretrains the generator and the captioner of the VLCP benchmark, on photographs of 32 x 32.

    python benchmarks/photo_models.py --tiny-imagenet FOLDER --photos FOLDER --out runs/photo-models

- ``sd``: a StableDiffusionPipeline. tiny-sd's VAE is trained further, on Tiny-ImageNet; then a new U-Net and tiny-sd's
  text tower, on Tiny-ImageNet with class names as captions and on Flickr8k with its own.
- ``captioner``: a small BLIP, on Flickr8k.

A killed run goes on from its last checkpoint, at most ``CHECKPOINT_STEPS`` back.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from mmdd_ray.data.images import decode_image
from mmdd_ray.data.schema import tar_samples
from mmdd_ray.models.generator import Pipeline, load_pipeline

IMAGE_PX = 32
CHECKPOINT_STEPS = 250
KL_WEIGHT = 1e-5
UNCONDITIONAL = 0.1  # share of captions left out, which guidance learns from
CAPTION_TOKENS = 32
WORDS = 3000
MEAN = STD = [0.5, 0.5, 0.5]


@dataclass
class PhotoModels:
    """Trains a small generator and a small captioner on photographs."""

    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    photos: Path
    """Folder of Flickr8k's shards."""
    out: Path = Path("runs/photo-models")
    """Folder of both models."""
    vae_steps: int = 2000
    """Steps of the VAE, 32 images each."""
    unet_steps: int = 3000
    """Steps of U-Net and text tower, 64 images each."""
    captioner_steps: int = 800
    """Steps of the captioner, 64 images each."""
    seed: int = 0
    """Seed of weights, order and noise."""


@dataclass(frozen=True)
class Photos:
    """N images (N, 32, 32, 3) uint8 with captions of each."""

    images: Tensor
    captions: list[list[str]]


def pretrain(asked: PhotoModels) -> dict[str, float]:
    """Trains what is left to train; gives the last losses and the VAE's PSNR in dB."""
    generator, captioner = asked.out / "sd", asked.out / "captioner"
    figures = asked.out / "quality.json"
    if not figures.exists():
        asked.out.mkdir(parents=True, exist_ok=True)
        named, told = read_tiny_imagenet(asked.tiny_imagenet), read_flickr8k(asked.photos)
        found = train_generator(asked, named, told, generator) | train_captioner(asked, told, captioner)
        figures.write_text(json.dumps(found, indent=2) + "\n")
    return json.loads(figures.read_text())


def read_tiny_imagenet(folder: Path) -> Photos:
    """The training images, with the names of their classes as captions."""
    paths = sorted(folder.glob("tiny-imagenet32-train-*.parquet"))
    if not paths:
        raise SystemExit(
            f"error: {folder} holds no tiny-imagenet32-train-*.parquet; set --tiny-imagenet to it"
        )
    columns = pq.read_table(paths, columns=["image", "class_name"])
    names = columns["class_name"].to_pylist()
    return Photos(_decoded(columns["image"].to_pylist()), [[f"a photo of a {name}"] for name in names])


def read_flickr8k(folder: Path) -> Photos:
    """The training images, with their captions."""
    paths = sorted(folder.glob("flickr8k-train-*.tar"))
    if not paths:
        raise SystemExit(f"error: {folder} holds no flickr8k-train-*.tar; set --photos to it")
    encoded, captions = [], []
    for path in paths:
        with path.open("rb") as file:
            for sample in tar_samples(file, max_bytes=2**20):
                encoded.append(sample.parts["jpg"])
                captions.append(sample.record()["captions"])
    return Photos(_decoded(encoded), captions)


def _decoded(encoded: list[bytes]) -> Tensor:
    images = np.empty((len(encoded), IMAGE_PX, IMAGE_PX, 3), np.uint8)
    for row, image in enumerate(encoded):
        images[row] = decode_image(image, max_pixels=2**20, image_px=IMAGE_PX)
    return torch.from_numpy(images)


def signed(image_BHWC: Tensor) -> Tensor:
    """Images (B, 3, H, W) float32 in [-1, 1]."""
    return image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def fit(
    name: str,
    modules: dict[str, nn.Module],
    loss_of: Callable[[np.random.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    seed: int,
) -> float:
    """AdamW with a warm-up and a cosine decay; gives the mean loss of the last hundred steps.

    ``loss_of`` draws its batch and noise from the generator it is given, which depends on seed and step alone.
    """
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    optimizer = AdamW(parameters, learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
    )
    state, losses = folder / f"{name}.pt", []
    if state.exists():
        held = torch.load(state, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(held["modules"][key])
        optimizer.load_state_dict(held["optimizer"])
        schedule.load_state_dict(held["schedule"])
        losses = held["losses"]
    for step in tqdm(
        range(len(losses), steps), name, initial=len(losses), total=steps, mininterval=20, ascii=True
    ):
        loss = loss_of(np.random.default_rng((seed, step)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % CHECKPOINT_STEPS == 0 or len(losses) == steps:
            part = state.with_suffix(".part")
            torch.save(
                {
                    "modules": {key: module.state_dict() for key, module in modules.items()},
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "losses": losses,
                },
                part,
            )
            part.rename(state)  # at once: a kill leaves the old state or the new one
    return float(np.mean(losses[-100:]))


def train_generator(asked: PhotoModels, named: Photos, told: Photos, out: Path) -> dict[str, float]:
    """Trains the pipeline and saves it."""
    torch.manual_seed(asked.seed)
    pipeline = load_pipeline("tiny-sd")
    vae, text_encoder = pipeline.vae.train(), pipeline.text_encoder.train()

    def vae_loss(rng: np.random.Generator) -> Tensor:
        image_BCHW = signed(named.images[torch.from_numpy(rng.integers(len(named.images), size=32))])
        posterior = vae.encode(image_BCHW).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32))
        drawn_BCHW = vae.decode(posterior.mean + posterior.std * noise).sample
        # the weak KL term only keeps latents from drifting apart
        return (
            F.l1_loss(drawn_BCHW, image_BCHW) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )

    settings: dict[str, Any] = {"folder": asked.out, "seed": asked.seed}
    loss = fit("vae", {"vae": vae}, vae_loss, steps=asked.vae_steps, learning_rate=1e-3, **settings)
    vae.eval().requires_grad_(False)
    latents = [_latents(vae, photos.images) for photos in (named, told)]
    vae.register_to_config(scaling_factor=round(1 / latents[0].std().item(), 5))
    found = {"vae_l1": loss, "vae_psnr_db": _psnr(vae, named.images[:1000])}

    unet = UNet2DConditionModel(
        sample_size=IMAGE_PX // 4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    clean_NCHW = torch.cat(latents) * vae.config.scaling_factor
    captions = named.captions + told.captions
    alpha_bar_T = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    # a quarter of the images are of Flickr8k, which is sixteen times smaller, but has most of the words
    first_told = len(named.captions)

    def unet_loss(rng: np.random.Generator) -> Tensor:
        row_B = np.where(
            rng.random(64) < 0.75,
            rng.integers(first_told, size=64),
            rng.integers(first_told, len(captions), size=64),
        )
        clean_BCHW = clean_NCHW[torch.from_numpy(row_B)]
        texts = [
            "" if rng.random() < UNCONDITIONAL else captions[row][rng.integers(len(captions[row]))]
            for row in row_B.tolist()
        ]
        noise_BCHW = torch.from_numpy(rng.standard_normal(clean_BCHW.shape, np.float32))
        step_B = torch.from_numpy(rng.integers(len(alpha_bar_T), size=64))
        alpha_bar = alpha_bar_T[step_B].view(-1, 1, 1, 1)
        noisy_BCHW = alpha_bar.sqrt() * clean_BCHW + (1 - alpha_bar).sqrt() * noise_BCHW
        predicted_BCHW = unet(noisy_BCHW, step_B, _states(pipeline, texts)).sample
        return F.mse_loss(predicted_BCHW, noise_BCHW)

    modules = {"unet": unet, "text_encoder": text_encoder}
    found["noise"] = fit("unet", modules, unet_loss, steps=asked.unet_steps, learning_rate=1e-3, **settings)
    pipeline.unet = unet
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(out, safe_serialization=True)
    return found


@torch.no_grad()
def _latents(vae: Any, images: Tensor) -> Tensor:
    return torch.cat([vae.encode(signed(part)).latent_dist.mode() for part in images.split(500)])


@torch.no_grad()
def _psnr(vae: Any, images: Tensor) -> float:
    image_BCHW = signed(images)
    drawn_BCHW = vae.decode(vae.encode(image_BCHW).latent_dist.mode()).sample.clamp(-1, 1)
    return -10 * torch.log10(F.mse_loss(drawn_BCHW, image_BCHW) / 4).item()


def _states(pipeline: Pipeline, texts: list[str]) -> Tensor:
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return pipeline.text_encoder(tokens.input_ids).last_hidden_state


def train_captioner(asked: PhotoModels, told: Photos, out: Path) -> dict[str, float]:
    """Trains the captioner and saves it."""
    torch.manual_seed(asked.seed)
    tokenizer = _words(told, out)
    width = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 6}
    text = {
        **width,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 192,
        "num_hidden_layers": 2,
        "max_position_embeddings": CAPTION_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **width,
        "image_size": IMAGE_PX,
        "patch_size": 4,
        "num_hidden_layers": 3,
        "initializer_range": 192**-0.5,  # transformers' default, 1e-10, hardly trains
    }
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=192)
    )

    def loss_of(rng: np.random.Generator) -> Tensor:
        row_B = rng.integers(len(told.captions), size=64)
        captions = [told.captions[row][rng.integers(5)] for row in row_B.tolist()]
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        tokens.input_ids[:, 0] = tokenizer.bos_token_id  # BLIP's decoder starts with [DEC]
        return model(
            pixel_values=signed(told.images[torch.from_numpy(row_B)]),
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            labels=tokens.input_ids.masked_fill(tokens.attention_mask == 0, -100),
        ).loss

    loss = fit(
        "captioner",
        {"model": model.train()},
        loss_of,
        steps=asked.captioner_steps,
        learning_rate=1e-3,
        folder=asked.out,
        seed=asked.seed,
    )
    model.generation_config.max_new_tokens = CAPTION_TOKENS - 2
    model.save_pretrained(out)
    square = {"height": IMAGE_PX, "width": IMAGE_PX}
    BlipProcessor(BlipImageProcessor(size=square, image_mean=MEAN, image_std=STD), tokenizer).save_pretrained(
        out
    )
    return {"caption": loss}


def _words(told: Photos, out: Path) -> BertTokenizer:
    """A WordPiece vocabulary of the captions."""
    learnt = BertWordPieceTokenizer(lowercase=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    texts = [caption for own in told.captions for caption in own]
    learnt.train_from_iterator(texts, vocab_size=WORDS, special_tokens=special, show_progress=False)
    return BertTokenizer(
        vocab=learnt.get_vocab(), model_max_length=CAPTION_TOKENS, bos_token="[DEC]", eos_token="[SEP]"
    )


if __name__ == "__main__":
    print(json.dumps(pretrain(tyro.cli(PhotoModels)), indent=2))
