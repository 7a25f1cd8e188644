"""Learnt texts beside the real captions that are nearest to them. Imports torch only to encode."""

# N learnt texts, P captions, T width of a text encoder's features

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmdd_ray.config import EncoderSettings, StudentForm
from mmdd_ray.distilled.learnt import LearntPairs


def nearest_captions(text_NT: np.ndarray, caption_PT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row (N,) int64 of the caption with the highest cosine for each text, and that cosine (N,) float64.

    From the mean of the captions, because text encoders put all texts into a narrow cone: see ``DualEncoder.centre``.
    """
    mean_T = caption_PT.mean(axis=0, dtype=np.float64)
    text_NT, caption_PT = (_unit(rows - mean_T) for rows in (text_NT, caption_PT))
    cosine_NP = text_NT @ caption_PT.T
    row_N = cosine_NP.argmax(axis=1)
    return row_N, cosine_NP[np.arange(len(row_N)), row_N]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def shown_bytes(learnt: LearntPairs) -> int:
    """Bytes of the pairs as images and captions: 8-bit levels and UTF-8, uncompressed, as ``PairSet.n_bytes``."""
    levels = learnt.n_images * 3 * learnt.image_px**2
    return levels + sum(len(caption.encode()) for caption in learnt.flat_captions)


def first_texts(learnt: LearntPairs, count: int) -> dict[str, Any]:
    """What ``encode_learnt`` needs of the first ``count`` texts."""
    return {
        "ids": learnt.ids[:count],
        "mask": learnt.mask[:count],
        "offsets": learnt.offsets[:count],
        "vectors": None if learnt.vectors is None else learnt.vectors[:count],
        "vocabulary": learnt.vocabulary,
        "encoder": learnt.encoder,
        "pooling": learnt.pooling,
    }


def encode_learnt(
    settings: EncoderSettings, texts: dict[str, Any], captions: Sequence[str], device: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Features (N, T) and (P, T) float32 of learnt texts and of captions by the text encoder of ``settings``.

    None where the texts were learnt for another encoder, to which they mean nothing.

    Args:
        texts: What ``first_texts`` gives.
    """
    import torch

    from mmdd_ray.models.students import Tokens, load_text_encoder

    form = StudentForm(pooling=texts["pooling"]) if texts["pooling"] else StudentForm()
    encoder = load_text_encoder(settings, device, form)
    vectors = texts["vectors"]
    if vectors is None and texts["vocabulary"] == encoder.vocabulary_digest():
        tokens = Tokens(*(torch.tensor(texts[name], device=device) for name in ("ids", "mask", "offsets")))
        with torch.no_grad():
            vectors = encoder(tokens).float().cpu().numpy()
    elif vectors is None or texts["encoder"] != encoder.weights_digest():
        return None
    return vectors, encoder.encode_captions(captions).cpu().numpy()
