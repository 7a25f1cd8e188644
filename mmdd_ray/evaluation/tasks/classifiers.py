"""Trains a classifier from scratch on labelled images by a protocol, and tests it; no Ray."""

# B images of a step, N of a set, C classes

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from mmdd_ray.config import Classifiers
from mmdd_ray.engine.devices import moved
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import draw_shifts, row_batches, shifted
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import TOPS
from mmdd_ray.evaluation.tasks.augment import cropped, draw_crops, jittered
from mmdd_ray.evaluation.tasks.trainer import descend, looking, reproducible
from mmdd_ray.models.classifiers import build_classifier
from mmdd_ray.protocols import LabelProtocol, Training, label_protocol
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET

TEST_ROWS = 64
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its channels
UNIT = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def train_classifier(
    images: LabelledSet,
    settings: Classifiers,
    *,
    learning_rate: float,
    seed: int,
    device: str,
    protocol: LabelProtocol | None = None,
    teacher: nn.Module | None = None,
    look: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, np.ndarray]:
    """A classifier trained on ``images`` by the protocol, and its loss at each step (float32).

    A learning rate that is too high gives losses that are not finite.

    Args:
        learning_rate: of the first steps.
        seed: of the weights, the order of the images and the augmentation.
        protocol: Default: "equal-budget" of the settings.
        teacher: On the same device, where the protocol needs one.
        look: Called on the way with the classifier, in eval mode, and the steps that are done, as often as the protocol
            looks.

    Raises:
        UserError: the images are not of ``settings.image_px``.
    """
    if images.image_px != settings.image_px:
        raise UserError(f"the images have {images.image_px} px, but classifiers.image_px={settings.image_px}")
    protocol = protocol or label_protocol(EQUAL_BUDGET, settings)
    classes = len(images.classes)
    training = protocol.training(images.n_images, classes)
    rng = np.random.default_rng(seed)
    with reproducible(seed, device):
        network = build_classifier(settings, classes, protocol.norm).to(device).train()
        weight_decay = protocol.decay_of(protocol.weight_decay, classes)
        optimizer = _optimizer(network, protocol, learning_rate, weight_decay)
        losses = descend(
            _batch_losses(network, images, settings, protocol, training, teacher, rng, device),
            optimizer,
            training,
            looking(network, look),
        )
    return network.eval(), losses


def _optimizer(
    network: nn.Module, protocol: LabelProtocol, rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), rate, protocol.momentum, weight_decay=weight_decay)
    decayed = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}], lr=rate
    )


def _batch_losses(
    network: nn.Module,
    images: LabelledSet,
    settings: Classifiers,
    protocol: LabelProtocol,
    training: Training,
    teacher: nn.Module | None,
    rng: np.random.Generator,
    device: str,
) -> Iterator[Tensor]:
    label_N = torch.tensor(images.labels, device=device)
    rows = row_batches(images.n_images, training.batch, rng, keeps_rest=training.keeps_rest)
    for row_B in islice(rows, training.steps):
        image_BCHW = augmented(images.images[row_B], protocol, rng, device)
        target_B = label_N[torch.from_numpy(row_B).to(device)]
        other_B, share = target_B, 1.0
        if rng.random() < protocol.cutmix:
            image_BCHW, order, share = cutmix(image_BCHW, rng)
            other_B = target_B[order]
        with autocast(device, fastest(settings.precision)):
            logits_BC = network(image_BCHW).float()
        if protocol.temperature is None:
            yield share * cross_entropy(logits_BC, target_B) + (1 - share) * cross_entropy(logits_BC, other_B)
        else:
            assert teacher is not None
            with torch.no_grad(), autocast(device, fastest(settings.precision)):
                taught_BC = teacher(image_BCHW).float()
            yield soft_loss(logits_BC, taught_BC, protocol.temperature)


def soft_loss(logits_BC: Tensor, taught_BC: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of a student's answers from its teacher's, both softened; a mean over the batch.

    Without the square of the temperature, which RDED (arXiv 2312.03526) leaves out.
    """
    answers_BC = log_softmax(logits_BC / temperature, dim=1)
    return kl_div(answers_BC, softmax(taught_BC / temperature, dim=1), reduction="batchmean")


def augmented(
    image_BHWC: np.ndarray, protocol: LabelProtocol, rng: np.random.Generator, device: str
) -> Tensor:
    """Images (B, 3, H, W) float32 as the protocol changes and normalises them, of uint8 ones (B, H, W, 3)."""
    n, side = image_BHWC.shape[:2]
    moved_BHWC = moved(torch.from_numpy(image_BHWC), device)
    if protocol.augmentation == "shift":
        image_BCHW = normalised(shifted(moved_BHWC, draw_shifts(n, side, rng)), protocol)
        return _mirrored(image_BCHW, rng) if protocol.mirrors else image_BCHW
    image_BCHW = cropped(_floats(moved_BHWC) / 255, draw_crops(n, rng))
    if protocol.mirrors:
        image_BCHW = _mirrored(image_BCHW, rng)
    if protocol.augmentation == "crop-jitter":
        image_BCHW = jittered(image_BCHW, rng)
    return _standardised(image_BCHW, protocol)


def _mirrored(image_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    is_mirrored_B = torch.from_numpy(rng.random(len(image_BCHW)) < 0.5).to(image_BCHW.device)
    return torch.where(is_mirrored_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)


@torch.inference_mode()
def evaluate_classifier(
    network: nn.Module, test: LabelledSet, protocol: LabelProtocol | None = None
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent; 0 where training diverged. With five classes or fewer, top-5 is 100.

    Args:
        protocol: Whose normalisation the classifier was trained with. Default: that of "equal-budget".
    """
    device = next(network.parameters()).device
    hits = dict.fromkeys(TOPS, 0)
    for start in range(0, test.n_images, TEST_ROWS):
        rows = slice(start, start + TEST_ROWS)
        logits_BC = network(normalised(torch.tensor(test.images[rows], device=device), protocol))
        if not logits_BC.isfinite().all():
            return {f"top-{k}": 0.0 for k in TOPS}
        label_B1 = torch.tensor(test.labels[rows], device=device)[:, None]
        order_BC = logits_BC.argsort(dim=1, descending=True)
        for k in hits:
            hits[k] += int((order_BC[:, :k] == label_B1).sum())
    return {f"top-{k}": 100 * found / test.n_images for k, found in hits.items()}


def normalised(image_BHWC: Tensor, protocol: LabelProtocol | None = None) -> Tensor:
    """Images (B, 3, H, W) float32 of uint8 ones (B, H, W, 3): in [-1, 1], or by the protocol's statistics."""
    image_BCHW = _floats(image_BHWC)
    if protocol is None or protocol.statistics == "unit":
        return image_BCHW / 127.5 - 1
    return _standardised(image_BCHW / 255, protocol)


def _floats(image_BHWC: Tensor) -> Tensor:
    """Levels (B, 3, H, W) float32, in the usual memory order, in which norms and poolings are fast on CPUs."""
    return image_BHWC.permute(0, 3, 1, 2).contiguous().float()


def _standardised(image_BCHW: Tensor, protocol: LabelProtocol) -> Tensor:
    """Images in [0, 1] by the protocol's statistics."""
    mean_C11, std_C11 = (
        torch.tensor(values, device=image_BCHW.device)[:, None, None]
        for values in (IMAGENET if protocol.statistics == "imagenet" else UNIT)
    )
    return (image_BCHW - mean_C11) / std_C11


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
