"""Trains a student on a set of pairs by a protocol, and searches it with the pairs of another; no Ray."""

# N images, P captions of them, B images of a step, V and T feature widths, D embedding width

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mmdd_ray.config import Students
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.devices import moved
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import (
    Pairs,
    batches,
    caption_batches,
    draw_shifts,
    redrawn_batches,
    shifted,
)
from mmdd_ray.evaluation.metrics import chance
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.retrieval import retrieval_metrics
from mmdd_ray.evaluation.tasks.task import Trained
from mmdd_ray.evaluation.tasks.texts import Texts, texts_of
from mmdd_ray.evaluation.tasks.trainer import descend, looking, reproducible
from mmdd_ray.models.pair_losses import pair_loss
from mmdd_ray.models.students import (
    ENCODE_ROWS,
    DualEncoder,
    load_student,
    load_text_encoder,
)
from mmdd_ray.protocols import PairProtocol, pair_protocol
from mmdd_ray.protocols.equal_budget import EQUAL_BUDGET


def frozen_text_features(
    pairs: Pairs, settings: Students, device: str, protocol: PairProtocol | None = None
) -> np.ndarray:
    """Features (P, T) float32 of all texts by the pretrained text encoder.

    Where it is frozen they are the same for every student, so whoever trains many computes them once.

    Args:
        protocol: Default: "equal-budget" of the settings.

    Raises:
        ValueError: the text encoder cannot be loaded.
    """
    protocol = protocol or pair_protocol(EQUAL_BUDGET, settings)
    encoder = load_text_encoder(settings, device, protocol.form)
    return texts_of(pairs, encoder, protocol).features(encoder)


def train_student(
    pairs: Pairs,
    settings: Students,
    *,
    learning_rate: float,
    seed: int,
    device: str,
    text_PT: np.ndarray | None = None,
    protocol: PairProtocol | None = None,
    look: Callable[[DualEncoder, int], None] | None = None,
) -> Trained:
    """A student, a ``DualEncoder``, trained on ``pairs`` by the protocol.

    SGD with momentum on InfoNCE. With a frozen text encoder the image encoder and the heads are trained; otherwise the
    text encoder, too, and both encoders get the protocol's share of the heads' rate. Where the protocol says so,
    features are centred first (``DualEncoder.centre``), and images are moved at random.

    Learnt pairs are trained on as they are: their pixels enter the image encoder, and their offsets are added to the
    word embeddings of a text encoder of the same vocabulary; any other one gets the captions that the texts began as.
    Where similarities were learnt with them and the protocol says so, they also bring their own learning rates.

    A learning rate that is too high gives losses that are not finite, and a student that finds nothing.

    Args:
        learning_rate: of the heads, in the first steps.
        seed: of the heads, the order of the pairs, the augmentation and dropout.
        text_PT: ``frozen_text_features`` of the pairs by the same protocol, where they are at hand. Students that
            train the text encoder have no use for them.
        protocol: Default: "equal-budget" of the settings.
        look: Called on the way with the student, in eval mode, and the steps that are done, as often as the protocol
            looks.

    Raises:
        ValueError: the images are not of ``settings.image_px``, or an encoder cannot be loaded.
    """
    if pairs.image_px != settings.image_px:
        raise UserError(
            f"the pairs have images of {pairs.image_px} px, but students.image_px={settings.image_px}"
        )
    protocol = protocol or pair_protocol(EQUAL_BUDGET, settings)
    training = protocol.training(pairs.n_pairs if protocol.by_caption else pairs.n_images)
    student = load_student(settings, seed, device, protocol.form)
    images_NHWC, features_of = _image_source(student, pairs)
    texts = texts_of(pairs, student.text, protocol)
    text_of = _text_source(student, texts, protocol, text_PT)
    learnt_rates, images_seen, rng = None, 0, np.random.default_rng(seed)
    draw = partial(caption_batches if protocol.by_caption else batches, pairs)
    if protocol.as_learnt and texts.similarity_NN is not None and isinstance(pairs, LearntPairs):
        learnt_rates, draw = pairs.rates, partial(redrawn_batches, pairs)

    def batch_losses() -> Iterator[Tensor]:
        nonlocal images_seen
        for image_B, caption_B in draw(training.batch, training.steps, rng):
            images_seen += len(image_B)
            image_BHWC = moved(torch.from_numpy(images_NHWC[image_B]), device)
            if protocol.shifts:
                image_BHWC = shifted(image_BHWC, draw_shifts(len(image_B), pairs.image_px, rng))
            with autocast(device, fastest(settings.precision)):
                image_BD = student.embed_image(features_of(image_BHWC))
                text_BD = student.embed_text(text_of(torch.from_numpy(caption_B).to(device)))
            similarity_BB = None
            if texts.similarity_NN is not None:
                similarity_BB = texts.similarity_NN[image_B][:, caption_B].to(device)
            yield pair_loss(image_BD, text_BD, similarity_BB, protocol.temperature)

    with reproducible(seed, device):  # for dropout
        if protocol.form.centred:
            with torch.no_grad():  # centred on the features of a random sample
                ((image_B, caption_B),) = batches(pairs, ENCODE_ROWS, 1, rng)
                feature_BV = features_of(torch.from_numpy(images_NHWC[image_B]).to(device))
                student.centre(feature_BV, text_of(torch.from_numpy(caption_B).to(device)))
        optimizer = _optimizer(student, protocol, *(learnt_rates or (learning_rate, learning_rate)))
        losses = descend(batch_losses(), optimizer, training, looking(student, look))
    loss = "InfoNCE" if texts.similarity_NN is None else "weighted BCE"
    notes = (texts.note,) if texts.note else ()
    return Trained(student.eval(), losses, images_seen, loss, learnt_rates, notes)


@torch.inference_mode()
def evaluate_student(
    student: DualEncoder, test: PairSet, *, text_PT: np.ndarray | None = None
) -> dict[str, float]:
    """``retrieval_metrics`` of the student on the test pairs, in percent.

    A student whose training diverged (an embedding is not finite) finds nothing: all its recalls are 0.

    Args:
        text_PT: ``frozen_text_features`` of the test pairs, for students that did not train the text encoder.
    """
    student.eval()
    device = student.device
    if text_PT is None:
        text_PT = student.text.encode_captions(test.flat_captions).cpu().numpy()
    chunks = [
        student.embed_image(student.image(torch.tensor(test.images[row : row + ENCODE_ROWS], device=device)))
        for row in range(0, test.n_images, ENCODE_ROWS)
    ]
    image_ND = torch.cat(chunks).cpu().numpy()
    text_PD = student.embed_text(torch.tensor(text_PT, device=device)).cpu().numpy()
    if not (np.isfinite(image_ND).all() and np.isfinite(text_PD).all()):
        return dict.fromkeys(chance(1, 1), 0.0)
    return retrieval_metrics(image_ND, text_PD, test.owner_P, device=str(device))


def _image_source(student: DualEncoder, pairs: Pairs) -> tuple[np.ndarray, Callable[[Tensor], Tensor]]:
    """All images (N, H, W, 3), and what gives the features of some of them."""
    if isinstance(pairs, PairSet):
        return pairs.images, student.image
    pixels_NHWC = pairs.pixels.transpose(0, 2, 3, 1)
    own = (tuple(values.flatten().tolist()) for values in (student.image.mean, student.image.std))
    if (pairs.mean, pairs.std) == tuple(own):
        return pixels_NHWC, lambda image_BHWC: student.image.encode(image_BHWC.permute(0, 3, 1, 2))
    mean, std = (np.array(values, np.float32) for values in (pairs.mean, pairs.std))
    return pixels_NHWC * std + mean, student.image  # which has another normalisation


def _text_source(
    student: DualEncoder, texts: Texts, protocol: PairProtocol, text_PT: np.ndarray | None
) -> Callable[[Tensor], Tensor]:
    """A function from caption rows to text features; sets the text encoder to train or to stand still."""
    student.train()
    if protocol.trained == "both-encoders":
        tokens = texts.tokens(student.text)
        return lambda caption_B: student.text(tokens.rows(caption_B))
    student.text.eval().requires_grad_(False)
    if text_PT is None:
        text_PT = texts.features(student.text)
    feature_PT = torch.tensor(text_PT, device=student.device)
    return lambda caption_B: feature_PT[caption_B]


def _optimizer(
    student: DualEncoder, protocol: PairProtocol, image_rate: float, text_rate: float
) -> torch.optim.Optimizer:
    """SGD of both sides at their rates, those of the heads."""
    trained: list[tuple[nn.Module, float]] = [
        (student.image_head, image_rate),
        (student.text_head, text_rate),
        (student.image, image_rate * protocol.encoder_share),
    ]
    if protocol.trained == "both-encoders":
        trained.append((student.text, text_rate * protocol.encoder_share))
    return torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in trained],
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
    )
