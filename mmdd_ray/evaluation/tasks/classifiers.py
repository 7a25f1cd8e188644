"""Trains a classifier from scratch on labelled images by the field's protocol, and tests it; no Ray.

The "hard-label" protocol of Minimax Diffusion (Gu et al., CVPR 2024) and its followers: SGD with momentum, CutMix, and
a learning rate that falls to a fifth at two thirds and at five sixths of the steps. Budgets are in steps, so that every
set gets the same one.
"""

# B images of a step, N of a set, C classes

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmdd_ray.config import Classifiers
from mmdd_ray.engine.devices import moved
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import draw_shifts, shifted
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import TOPS
from mmdd_ray.evaluation.tasks.trainer import descend, reproducible
from mmdd_ray.models.classifiers import build_classifier

DECAY, DECAYED_AT = 0.2, (2 / 3, 5 / 6)
TEST_ROWS = 64


def train_classifier(
    images: LabelledSet, settings: Classifiers, *, learning_rate: float, seed: int, device: str
) -> tuple[nn.Module, np.ndarray]:
    """A classifier trained on ``images`` with cross-entropy, and its loss at each step (float32).

    Images are shifted by up to a sixteenth of their side, mirrored, and mixed. A learning rate that is too high gives
    losses that are not finite.

    Args:
        learning_rate: of the first two thirds of the steps.
        seed: of the weights, the order of the images and the augmentation.

    Raises:
        UserError: the images are not of ``settings.image_px``.
    """
    if images.image_px != settings.image_px:
        raise UserError(f"the images have {images.image_px} px, but classifiers.image_px={settings.image_px}")
    rng = np.random.default_rng(seed)
    with reproducible(seed, device):
        network = build_classifier(settings, len(images.classes)).to(device).train()
        optimizer = torch.optim.SGD(
            network.parameters(), learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        milestones = [round(share * settings.steps) for share in DECAYED_AT]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=DECAY)
        losses = descend(_batch_losses(network, images, settings, rng, device), optimizer, schedule)
    return network.eval(), losses


def _batch_losses(
    network: nn.Module, images: LabelledSet, settings: Classifiers, rng: np.random.Generator, device: str
) -> Iterator[Tensor]:
    label_N = torch.tensor(images.labels, device=device)
    for row_B in _batches(images.n_images, settings.batch_images, settings.steps, rng):
        shift_2B = draw_shifts(len(row_B), images.image_px, rng)
        image_BHWC = shifted(moved(torch.from_numpy(images.images[row_B]), device), shift_2B)
        image_BCHW = normalised(image_BHWC)
        if settings.flip:
            mirrored = torch.from_numpy(rng.random(len(row_B)) < 0.5).to(device)
            image_BCHW = torch.where(mirrored[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
        target_B = label_N[torch.from_numpy(row_B).to(device)]
        other_B, share = target_B, 1.0
        if rng.random() < settings.cutmix:
            image_BCHW, order, share = cutmix(image_BCHW, rng)
            other_B = target_B[order]
        with autocast(device, fastest(settings.precision)):
            logits_BC = network(image_BCHW).float()
        yield share * cross_entropy(logits_BC, target_B) + (1 - share) * cross_entropy(logits_BC, other_B)


@torch.inference_mode()
def evaluate_classifier(network: nn.Module, test: LabelledSet) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent; 0 where training diverged. With five classes or fewer, top-5 is 100."""
    device = next(network.parameters()).device
    hits = dict.fromkeys(TOPS, 0)
    for start in range(0, test.n_images, TEST_ROWS):
        rows = slice(start, start + TEST_ROWS)
        logits_BC = network(normalised(torch.tensor(test.images[rows], device=device)))
        if not logits_BC.isfinite().all():
            return {f"top-{k}": 0.0 for k in TOPS}
        label_B1 = torch.tensor(test.labels[rows], device=device)[:, None]
        order_BC = logits_BC.argsort(dim=1, descending=True)
        for k in hits:
            hits[k] += int((order_BC[:, :k] == label_B1).sum())
    return {f"top-{k}": 100 * found / test.n_images for k, found in hits.items()}


def normalised(image_BHWC: Tensor) -> Tensor:
    """Images (B, 3, H, W) float32 in [-1, 1] of uint8 ones (B, H, W, 3)."""
    return image_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def cutmix(image_BCHW: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """CutMix (Yun et al., ICCV 2019, α = 1): a rectangle of each image comes from another one of the batch.

    Returns:
        The images; the row (B,) that each rectangle is from; and the share of the pixels that an image keeps.
    """
    height, width = image_BCHW.shape[-2:]
    side = np.sqrt(1 - rng.uniform())
    centre_y, centre_x = rng.integers(height), rng.integers(width)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    top, bottom = np.clip([centre_y - half_y, centre_y + half_y], 0, height).tolist()
    left, right = np.clip([centre_x - half_x, centre_x + half_x], 0, width).tolist()
    order_B = torch.from_numpy(rng.permutation(len(image_BCHW))).to(image_BCHW.device)
    mixed_BCHW = image_BCHW.clone()
    mixed_BCHW[..., top:bottom, left:right] = image_BCHW[order_B, :, top:bottom, left:right]
    return mixed_BCHW, order_B, 1 - (bottom - top) * (right - left) / (height * width)


def _batches(n_images: int, batch_images: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Image rows of each step; the rest of a permutation that fills no batch is dropped."""
    batch = min(batch_images, n_images)
    waiting = np.empty(0, np.int64)
    for _ in range(steps):
        if len(waiting) < batch:
            waiting = rng.permutation(n_images)
        row_B, waiting = waiting[:batch], waiting[batch:]
        yield row_B
