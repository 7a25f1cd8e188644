"""Pretrains the small image encoder of the Flickr8k benchmark on Tiny-ImageNet's labels.

    python benchmarks/tiny_imagenet.py --photos FOLDER --out runs/tiny-imagenet/encoder

It is a normaliser-free ResNet of timm, as the published students are, of 2.0M parameters without its classifier and
for images of 64 px. The result is a timm folder: `--students.image_model FOLDER` loads it. Going on after a kill costs
at most one epoch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from mmdd_ray.data.images import decode_image
from mmdd_ray.engine.precision import autocast, bfloat16_is_fast
from mmdd_ray.evaluation.batches import draw_shifts, shifted

ARCHITECTURE = "nf_resnet26"
MODEL_ARGS = {"depths": [1, 1, 1, 1], "channels": [128, 256, 512, 1024]}
IMAGE_PX = 64
CLASSES = 200
MEAN, STD = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD


@dataclass
class TinyImageNet:
    """Trains the encoder to name the class of a photograph."""

    photos: Path
    """Folder of the Parquet shards."""
    out: Path = Path("runs/tiny-imagenet/encoder")
    """Folder of the encoder."""
    epochs: int = 8
    """Passes over the 100,000 photographs."""
    batch: int = 128
    """Photographs of a step."""
    learning_rate: float = 2e-3
    """Peak of the learning rate."""
    seed: int = 0
    """Seed of weights, order and augmentation."""


def pretrain(asked: TinyImageNet) -> float:
    """Trains what is left to train, saves the encoder, and gives its top-1 accuracy on the val shard in percent."""
    torch.manual_seed(asked.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(ARCHITECTURE, num_classes=CLASSES, **MODEL_ARGS)
    model.to(device, memory_format=torch.channels_last)
    images, labels = read(asked.photos, "train")
    steps = len(images) // asked.batch
    optimizer = AdamW(model.parameters(), lr=asked.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = OneCycleLR(
        optimizer, asked.learning_rate, total_steps=steps * asked.epochs, cycle_momentum=False
    )
    state = asked.out / "state.pt"
    done = 0
    if state.exists():
        held = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        schedule.load_state_dict(held["schedule"])
        done = held["epochs"]
    asked.out.mkdir(parents=True, exist_ok=True)
    for epoch in range(done, asked.epochs):
        rng = np.random.default_rng((asked.seed, epoch))
        order = rng.permutation(len(images))[: steps * asked.batch].reshape(steps, asked.batch)
        bar = tqdm(order, f"epoch {epoch + 1}", mininterval=20, ascii=True)
        for rows in bar:
            batch = augmented(images[rows].to(device), rng)
            with autocast(device, "bfloat16" if bfloat16_is_fast() else "auto"):
                logits = model(normalised(batch))
            loss = F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        part = state.with_suffix(".part")
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epochs": epoch + 1,
            },
            part,
        )
        part.rename(state)  # at once: a kill leaves the old state or the new one
        print(
            f"epoch {epoch + 1}: {accuracy(model, *read(asked.photos, 'val')):.1f} % top-1 on val", flush=True
        )
    save(model, asked.out)
    return accuracy(model, *read(asked.photos, "val"))


def read(photos: Path, split: str) -> tuple[Tensor, Tensor]:
    """All images of a split, (N, 64, 64, 3) uint8, enlarged, and their labels (N,)."""
    tables = [pq.read_table(path) for path in sorted(photos.glob(f"tiny-imagenet32-{split}-*.parquet"))]
    if not tables:
        raise SystemExit(
            f"error: {photos} holds no tiny-imagenet32-{split}-*.parquet; set --photos to their folder"
        )
    images = np.empty((sum(map(len, tables)), IMAGE_PX, IMAGE_PX, 3), np.uint8)
    encoded = (image for table in tables for image in table["image"].to_pylist())
    for row, image in enumerate(encoded):
        images[row] = decode_image(image, max_pixels=2**20, image_px=IMAGE_PX)
    labels = np.concatenate([table["label"].to_numpy() for table in tables])
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def augmented(image_BHWC: Tensor, rng: np.random.Generator) -> Tensor:
    """Images moved a little, half of them mirrored."""
    moved = shifted(image_BHWC, draw_shifts(len(image_BHWC), image_BHWC.shape[1], rng))
    mirrored = torch.from_numpy(rng.random(len(moved)) < 0.5).to(moved.device)
    moved[mirrored] = moved[mirrored].flip(2)
    return moved


def normalised(image_BHWC: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) as the encoder takes them, from uint8 ones (B, H, W, 3)."""
    mean, std = (255 * torch.tensor(values, device=image_BHWC.device) for values in (MEAN, STD))
    return ((image_BHWC - mean) / std).permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    device = next(model.parameters()).device
    found = [model(normalised(part.to(device))).argmax(dim=1).cpu() for part in images.split(256)]
    model.train()
    return 100 * (torch.cat(found) == labels).float().mean().item()


def save(model: torch.nn.Module, out: Path) -> None:
    """Writes the encoder as timm reads it."""
    card = {
        "architecture": ARCHITECTURE,
        "num_classes": CLASSES,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "input_size": [3, IMAGE_PX, IMAGE_PX],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": CLASSES,
            "classifier": "head.fc",
        },
    }
    (out / "config.json").write_text(json.dumps(card, indent=2) + "\n")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    print(f"{pretrain(tyro.cli(TinyImageNet)):.1f} % top-1 on val")


if __name__ == "__main__":
    main()
