"""Image-text retrieval: recall at 1, 5 and 10 in both directions, for images that have several captions each.

Ties are counted against the model: every other candidate that scores as high as the right one stands before
it, so a collapsed model, for which all candidates are alike, scores 0 and not 100.
"""

# N images, P captions, D embedding width, C captions of a chunk

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd_ray.evaluation.metrics import RANKS, with_mean_recall

TIE = 1e-6  # cosines closer than this are equal: float32 embeddings are not known better


def retrieval_metrics(
    image_ND: np.ndarray,
    text_PD: np.ndarray,
    text_to_image: np.ndarray,
    *,
    device: str = "cpu",
    chunk_captions: int = 1024,
) -> dict[str, float]:
    """Recalls in percent [0, 100], by cosine similarity, of embeddings of any norm.

    ``ir@k`` (text to image): share of captions whose image is among the k best of all images. ``tr@k`` (image
    to text): share of images that find any of their own captions among the k best of all captions.
    ``mean_recall`` is the mean of the six. Memory is chunk_captions · N float64 scores.

    Examples:
        >>> recalls = retrieval_metrics(np.eye(3), np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]))
        >>> round(recalls["ir@1"], 1), round(recalls["tr@1"], 1)
        (66.7, 33.3)

    Args:
        image_ND: image embeddings.
        text_PD: caption embeddings.
        text_to_image: (P,) integers, the image row of each caption.
        device: torch device of the products.
        chunk_captions: captions that are scored against all images at once.

    Raises:
        ValueError: if the shapes do not fit, an image has no caption, or an embedding is not finite.
    """
    _check(image_ND, text_PD, text_to_image)
    # float64, because a float32 product is a TF32 one (errors of 1e-3) where a training script allowed that
    image = F.normalize(torch.from_numpy(image_ND).to(device, torch.float64), dim=1)
    text = F.normalize(torch.from_numpy(text_PD).to(device, torch.float64), dim=1)
    owner_P = torch.from_numpy(text_to_image).to(device, torch.int64)

    own_P = torch.linalg.vecdot(text, image[owner_P])
    lowest_N = torch.full((len(image),), -torch.inf, device=device, dtype=torch.float64)
    best_own_N = lowest_N.scatter_reduce(0, owner_P, own_P, "amax")

    images_before: list[Tensor] = []
    captions_before_N = torch.zeros(len(image), dtype=torch.int64, device=device)
    for chunk_CD, owner_C, own_C in zip(
        text.split(chunk_captions), owner_P.split(chunk_captions), own_P.split(chunk_captions), strict=True
    ):
        score_CN = chunk_CD @ image.T
        score_CN.scatter_(1, owner_C[:, None], -torch.inf)  # the right answer does not stand before itself
        images_before.append((score_CN > own_C[:, None] - TIE).sum(dim=1))
        captions_before_N += (score_CN > best_own_N - TIE).sum(dim=0)

    return with_mean_recall(
        {f"ir@{k}": _percent_within(torch.cat(images_before), k) for k in RANKS},
        {f"tr@{k}": _percent_within(captions_before_N, k) for k in RANKS},
    )


def _percent_within(before: Tensor, k: int) -> float:
    return 100 * (before < k).double().mean().item()


def _check(image_ND: np.ndarray, text_PD: np.ndarray, text_to_image: np.ndarray) -> None:
    if image_ND.ndim != 2 or text_PD.ndim != 2 or image_ND.shape[1] != text_PD.shape[1]:
        raise ValueError(
            f"image {image_ND.shape} and text {text_PD.shape} embeddings must be (rows, D) of one D"
        )
    if text_to_image.shape != (len(text_PD),):
        raise ValueError(
            f"text_to_image has shape {text_to_image.shape}, but there are {len(text_PD)} captions"
        )
    if len(text_PD) == 0 or not np.array_equal(np.unique(text_to_image), np.arange(len(image_ND))):
        raise ValueError(
            f"text_to_image must name every one of the {len(image_ND)} images and no other; "
            f"drop images without captions"
        )
    for name, rows in (("image", image_ND), ("text", text_PD)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} embeddings hold values that are not finite; the model has diverged")
