"""Pairs as the parameters that learning starts with; no Ray."""

from collections.abc import Sequence

import numpy as np
import torch

from mmdd_ray.config import PairLearning
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.models.students import DualEncoder


def start_from(
    encoders: DualEncoder, image_NHWC: np.ndarray, captions: Sequence[str], settings: PairLearning
) -> LearntPairs:
    """Pairs of images and captions as the parameters that they start as: normalised pixels, and words with offsets of
    zero. Captions longer than ``settings.max_tokens`` are cut, as they are for students.

    Args:
        image_NHWC: uint8 images of ``settings.image_px``.
    """
    text = encoders.text
    with torch.no_grad():
        device = encoders.device
        pixels = encoders.image.normalise(torch.tensor(image_NHWC, device=device))
    tokens = text.tokenize(captions)
    words = tokens.ids_BL.cpu().numpy()
    mean, std = _statistics(encoders)
    return LearntPairs(
        pixels.contiguous().cpu().numpy(),
        words,
        tokens.mask_BL.cpu().numpy(),
        np.zeros((*words.shape, text.vocabulary.shape[1]), np.float32),
        mean=mean,
        std=std,
        vocabulary=text.vocabulary_digest(),
        captions=[[caption] for caption in captions],
        nearest=text.nearest_words(tokens),
    )


def start_from_learnt(encoders: DualEncoder, learnt: LearntPairs, settings: PairLearning) -> LearntPairs:
    """Learnt pairs as the parameters that others start as: their words and offsets, and their pixels as these encoders
    take them; bit by bit the same where size and normalisation are.

    Raises:
        UserError: their texts are of other words than the text encoder's, or longer than ``max_tokens``.
    """
    section, text = settings.section, encoders.text
    if learnt.vocabulary != text.vocabulary_digest():
        raise UserError(
            f"{section}.init names texts that were learnt with other words than those of {section}.text_model="
            f"{settings.text_model!r}; has the model changed?"
        )
    longest = int(learnt.mask.sum(axis=1).max())
    if longest > text.max_tokens:
        raise UserError(
            f"{section}.max_tokens={text.max_tokens}, but the longest of the learnt texts to start from has {longest} "
            f"tokens; raise {section}.max_tokens to {longest}"
        )
    return learnt.resized(settings.image_px).normalised(*_statistics(encoders))


def _statistics(encoders: DualEncoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that the image encoder's pixels are normalised by."""
    image = encoders.image
    return tuple(image.mean.flatten().tolist()), tuple(image.std.flatten().tolist())
