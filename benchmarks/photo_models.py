"""Pretrains the models of the photo benchmarks from nothing, on photographs.

    python benchmarks/photo_models.py --tiny-imagenet FOLDER --photos FOLDER --out runs/photo-models

- ``clip``: a CLIP whose image tower first learns Tiny-ImageNet's classes; then pairs of Flickr8k and names of classes.
- ``sd``: a StableDiffusionPipeline of a new VAE, a new U-Net and CLIP's text tower, on both sets.
- ``captioner``: a BLIP whose image encoder first learns Tiny-ImageNet's classes; then Flickr8k's captions.

Flickr8k's last training shard and both validation splits are left out, for choosing rates and for testing. Minutes on
a GPU, days on a CPU. A killed run goes on, at most two minutes back.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny_imagenet import augmented
from torch import Tensor, nn
from torch.nn import functional as F

from mmdd_ray.data.formats.tar import tar_samples
from mmdd_ray.data.images import decode_image
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.pretrain import captioner, clip, diffusion
from mmdd_ray.pretrain.captioner import Pooled
from mmdd_ray.pretrain.corpus import Corpus
from mmdd_ray.pretrain.loop import Fit
from mmdd_ray.pretrain.naming import normalise
from mmdd_ray.pretrain.tokenizers import bert_tokenizer, clip_tokenizer

CLASSES = 200
TRAIN, HELD_OUT = "flickr8k-train-00[0-4].tar", "flickr8k-val-*.tar"
NAMED = "a photo of a {}"
RARE_WORD = 3  # a word that captions have less often is written in pieces

Model = Literal["clip", "vae", "unet", "captioner"]


@dataclass
class PhotoModels:
    """Trains a CLIP, a generator and a captioner on photographs."""

    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    photos: Path
    """Folder of Flickr8k's shards."""
    out: Path = Path("runs/photo-models")
    """Folder of the models."""
    models: tuple[Model, ...] = ("clip", "vae", "unet", "captioner")
    """Which to train, in this order; unet needs clip and vae."""
    image_px: int = 64
    """Side of the photographs, and of all that the models read and draw."""
    label_epochs: int = 12
    """Passes of both image encoders over Tiny-ImageNet's labels, 256 photographs a step."""
    clip_steps: int = 1500
    """Steps of CLIP, 256 pairs each."""
    vae_steps: int = 4000
    """Steps of the VAE, 64 photographs each."""
    unet_steps: int = 8000
    """Steps of the U-Net."""
    unet_batch: int = 512
    """Pairs of each."""
    captioner_steps: int = 2500
    """Steps of the captioner, 256 pairs each."""
    seed: int = 0
    """Seed of weights, order and noise."""

    @property
    def work(self) -> Path:
        return self.out / ".training" / f"{self.image_px}px"

    def named(self, split: str = "train") -> Corpus:
        """Photographs of Tiny-ImageNet, with the names of their classes."""
        return read_tiny_imagenet(self.tiny_imagenet, self.image_px, split)

    def told(self, shards: str = TRAIN) -> Corpus:
        """Photographs of Flickr8k, with what people wrote of them."""
        return read_flickr8k(self.photos, self.image_px, shards)


def pretrain(asked: PhotoModels) -> dict[str, dict[str, float]]:
    """Trains what is left to train; gives the figures of each model, its seconds among them."""
    torch.set_float32_matmul_precision("high")
    trainers = {"clip": train_clip, "vae": train_vae, "unet": train_unet, "captioner": train_captioner}
    files = {model: asked.out / f"{model}.json" for model in asked.models}
    for file in filter(Path.exists, files.values()):
        if (px := json.loads(file.read_text())["image_px"]) != asked.image_px:
            raise SystemExit(
                f"error: {asked.out} holds models of {px} px; choose another folder for those of {asked.image_px}"
            )
    for model, file in files.items():
        if not file.exists():
            asked.out.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(asked.seed)
            figures = {"image_px": asked.image_px, **trainers[model](asked)}
            file.write_text(json.dumps(figures, indent=2) + "\n")
    return {model: json.loads(file.read_text()) for model, file in files.items()}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def read_tiny_imagenet(folder: Path, image_px: int, split: str) -> Corpus:
    """The images of a split, with the names of their classes as captions."""
    paths = sorted(folder.glob(f"tiny-imagenet32-{split}-*.parquet"))
    if not paths:
        raise SystemExit(
            f"error: {folder} holds no tiny-imagenet32-{split}-*.parquet; set --tiny-imagenet to it"
        )
    columns = pq.read_table(paths, columns=["image", "label", "class_name"])
    captions = [[NAMED.format(name)] for name in columns["class_name"].to_pylist()]
    labels = torch.from_numpy(columns["label"].to_numpy().astype(np.int64))
    return Corpus(_decoded(columns["image"].to_pylist(), image_px), captions, captions, labels)


@cache
def read_flickr8k(folder: Path, image_px: int, pattern: str) -> Corpus:
    """The images of the shards, with five captions each."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise SystemExit(f"error: {folder} holds no {pattern}; set --photos to Flickr8k's folder")
    encoded, captions = [], []
    for path in paths:
        with path.open("rb") as file:
            for sample in tar_samples(file, max_bytes=2**20):
                encoded.append(sample.parts["jpg"])
                captions.append(sample.record()["captions"])
    return Corpus(_decoded(encoded, image_px), captions, captions, torch.full((len(encoded),), -1))


def _decoded(encoded: Sequence[bytes], image_px: int) -> Tensor:
    images = np.empty((len(encoded), image_px, image_px, 3), np.uint8)
    for row, image in enumerate(encoded):
        images[row] = decode_image(image, max_pixels=2**20, image_px=image_px)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def flat(corpus: Corpus) -> list[str]:
    """All captions, image by image."""
    return [caption for own in corpus.captions for caption in own]


def words(*corpora: Corpus) -> list[str]:
    """The words that captions have often enough."""
    captions = (caption for corpus in corpora for caption in flat(corpus))
    counts = Counter(word for caption in captions for word in re.findall("[a-z]+", caption.lower()))
    return sorted(word for word, count in counts.items() if count >= RARE_WORD)


def learn_labels(asked: PhotoModels, name: str, encoder: nn.Module, width: int) -> dict[str, float]:
    """Trains an image encoder, from images to features (B, width), to name Tiny-ImageNet's classes.

    Returns:
        Its top-1 accuracy on the validation split in percent, and the seconds that it took.
    """
    corpus = asked.named()
    namer = nn.Sequential(encoder, nn.Linear(width, CLASSES)).to(device())
    steps = asked.label_epochs * len(corpus) // 256
    fit = Fit(
        name, namer.parameters(), lr=2e-3, steps=steps, seed=asked.seed, weight_decay=0.05, work=asked.work,
        beside={"model": namer},
    )  # fmt: skip
    for rows in fit.batches(len(corpus), 256):
        images_BHW3 = corpus.images[rows].to(device()).permute(0, 2, 3, 1)
        moved = augmented(images_BHW3, np.random.default_rng((asked.seed, fit.done)))
        with autocast(device(), fastest("auto")):
            logits = namer(normalise(moved.permute(0, 3, 1, 2)))
        labels = corpus.labels[rows].to(device())
        fit.step(F.cross_entropy(logits.float(), labels, label_smoothing=0.1))
    return {"label_top1": accuracy(namer, asked), "label_seconds": fit.seconds}


@torch.inference_mode()
def accuracy(namer: nn.Module, asked: PhotoModels) -> float:
    """Top-1 accuracy on Tiny-ImageNet's validation split in percent."""
    test = asked.named("val")
    namer.eval()
    found = [namer(normalise(part).to(device())).argmax(dim=1).cpu() for part in test.images.split(500)]
    namer.train()
    return 100 * (torch.cat(found) == test.labels).float().mean().item()


def train_clip(asked: PhotoModels) -> dict[str, float]:
    """Trains CLIP; gives its retrieval on Flickr8k's dev split and its zero-shot accuracy, in percent."""
    named, told = asked.named(), asked.told()
    tokenizer = clip_tokenizer(words(named, told))
    config = clip.model_config(
        len(tokenizer), image_model="resnet18d", image_px=asked.image_px, width=256, layers=4
    )
    model = clip.new_model(config).to(device())
    figures = learn_labels(asked, "clip-images", model.visual, config["embed_dim"])
    names_NL, captions_NL = (clip.tokenize(tokenizer, flat(corpus)) for corpus in (named, told))
    fit = Fit(
        "clip", model.parameters(), lr=1e-3, steps=asked.clip_steps, seed=asked.seed, weight_decay=0.1,
        work=asked.work, beside={"model": model},
    )  # fmt: skip
    for rows in fit.batches(len(named), 256):
        if fit.done % 4:  # pictures of one kind at a time, most of which are told by sentences
            rows = rows % len(told)
            tokens = captions_NL[5 * rows + torch.randint(5, (len(rows),))]
            clip.contrast(fit, model, told.images[rows], tokens)
        else:
            clip.contrast(fit, model, named.images[rows], names_NL[rows])
    clip.save(model, config, tokenizer, asked.out / "clip")
    held_out = asked.told(HELD_OUT)
    names = dict(zip(named.labels.tolist(), (captions[0] for captions in named.captions), strict=True))
    by_names = clip.ByNames(model.eval(), tokenizer, [names[label] for label in range(CLASSES)])
    return {
        **figures,
        **clip.evaluate(model, tokenizer, held_out, device()),
        "zero_shot_top1": accuracy(by_names, asked),
        "seconds": figures["label_seconds"] + fit.seconds,
    }


def train_vae(asked: PhotoModels) -> dict[str, float]:
    """Trains the VAE; gives how well it restores photographs of validation splits, in dB."""
    named, told = asked.named(), asked.told()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=asked.image_px,
    ).to(device(), memory_format=torch.channels_last)
    # Flickr8k is twenty times smaller, and has finer details
    images = torch.cat([named.images, *[told.images] * 5])
    seconds = diffusion.fit_vae(
        vae, images, "vae", diffusion.l1, steps=asked.vae_steps, lr=1e-3, seed=asked.seed, work=asked.work
    )
    vae.eval()
    diffusion.scale_latents(vae, images[torch.randperm(len(images))[:2048]])
    vae.half().save_pretrained(asked.out / "vae")
    vae.float()
    tests = {
        "tiny_imagenet": asked.named("val"),
        "flickr8k": asked.told(HELD_OUT),
    }
    restored = {f"psnr_db_{name}": diffusion.psnr(vae, test.images[:500]) for name, test in tests.items()}
    return {**restored, "seconds": seconds}


def train_unet(asked: PhotoModels) -> dict[str, float]:
    """Trains the U-Net, saves the pipeline, and gives the last running mean of the loss."""
    named, told = asked.named(), asked.told()
    vae = AutoencoderKL.from_pretrained(asked.out / "vae", torch_dtype=torch.float32).to(device())
    text_encoder, tokenizer = diffusion.clip_text_encoder(asked.out / "clip")
    text_encoder.to(device())
    unet = UNet2DConditionModel(
        sample_size=asked.image_px // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 192, 192),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=8,
        norm_num_groups=32,
    ).to(device(), memory_format=torch.channels_last)
    # every caption once: a fifth of the pairs are of Flickr8k, which has most of the words
    images, captions = torch.cat([named.images, told.images]), [*named.captions, *told.captions]
    pairs = diffusion.encode_pairs(vae, text_encoder, tokenizer, images, captions)
    fit = diffusion.fit_unet(
        unet, "unet", pairs, lr=1e-3, steps=asked.unet_steps, seed=asked.seed, work=asked.work,
        batch=asked.unet_batch,
    )  # fmt: skip
    diffusion.save_generator(asked.out / "sd", vae, text_encoder, tokenizer, unet)
    return {"noise": fit.mean["loss"], "seconds": fit.seconds}


def train_captioner(asked: PhotoModels) -> dict[str, float]:
    """Trains the captioner; gives its loss on Flickr8k's dev split, in nats a token."""
    told = asked.told()
    tokenizer = bert_tokenizer(words(told, asked.named()))
    model = captioner.new_model(tokenizer, width=256, layers=4, image_px=asked.image_px, patch_px=8)
    model.to(device())
    figures = learn_labels(asked, "captioner-images", Pooled(model.vision_model), 256)
    fit = Fit(
        "captioner", model.parameters(), lr=5e-4, steps=asked.captioner_steps, seed=asked.seed,
        weight_decay=0.1, work=asked.work,
    )  # fmt: skip
    loss = partial(captioner.loss, model, tokenizer)
    for rows in fit.batches(len(told), 256):
        with autocast(device(), fastest("auto")):
            nats = loss(told, rows)
        fit.step(nats)
    with torch.inference_mode():
        test = asked.told(HELD_OUT)
        held_out = loss(test, torch.arange(len(test))).item()
    captioner.save(model, tokenizer, asked.out / "captioner")
    return {**figures, "nats_a_token": held_out, "seconds": figures["label_seconds"] + fit.seconds}


if __name__ == "__main__":
    print(json.dumps(pretrain(tyro.cli(PhotoModels)), indent=2))
