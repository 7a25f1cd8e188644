"""Learning to name one object, with which every image encoder of the zoo begins."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, WEB, Corpus, draw_corpus
from mmdd_ray.pretrain.loop import Fit

MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
BATCH = 128
HELD_OUT = 2000


def normalise(images_u8: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32, shifted and scaled as all encoders of the zoo expect."""
    mean, std = (torch.tensor(v, device=images_u8.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images_u8.float() / 255 - mean) / std


def learn_names(
    name: str, model: nn.Module, corpus: Corpus, *, steps: int, seed: int, work: Path | None = None
) -> float:
    """Train `model`, from images to logits (B, 48) of the classes, on labelled scenes; return the seconds it took."""
    device = next(model.parameters()).device
    fit = Fit(
        name, model.parameters(), lr=2e-3, steps=steps, seed=seed, weight_decay=0.02, work=work,
        beside={"model": model},
    )  # fmt: skip
    for rows in fit.batches(len(corpus), BATCH):
        logits = model(normalise(corpus.images[rows]).to(device))
        fit.step(F.cross_entropy(logits, corpus.labels[rows].to(device), label_smoothing=0.05))
    return fit.seconds


def begin_with_names(
    name: str, encoder: nn.Module, width: int, broad: Corpus, *, steps: int, seed: int, work: Path | None
) -> float:
    """Train an image encoder, from images to features (B, width), to name the objects of `draw_broad`'s second half.

    Returns:
        The seconds it took.
    """
    device = next(encoder.parameters()).device
    namer = nn.Sequential(encoder, nn.Linear(width, len(CLASS_NAMES))).to(device)
    return learn_names(name, namer, broad[len(broad) // 2 :], steps=steps, seed=seed, work=work)


@torch.inference_mode()
def named_right(logits: nn.Module) -> float:
    """Percent of held-out labelled scenes of the web's world whose class is the one of the highest logit."""
    device = next(logits.parameters()).device
    held_out = draw_corpus(HELD_OUT, seed=HELD_OUT_SEED, world=WEB, labelled=True)
    found = [
        logits.eval()(normalise(images).to(device)).argmax(dim=1).cpu()
        for images in held_out.images.split(500)
    ]
    return 100 * (torch.cat(found) == held_out.labels).float().mean().item()
