"""Losses of dual encoders on pairs: InfoNCE, and LoRS' where it is known how similar pairs are."""

# B pairs of a batch, D width of the shared space

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVE = 0.5  # similarity of pairs above which they are positive (beta of LoRS)


def info_nce(image_BD: Tensor, text_BD: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding each image's caption and each caption's image in the batch; scalar.

    Embeddings of unit norm.
    """
    logits_BB = image_BD @ text_BD.T / temperature
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


def weighted_bce(logits_BB: Tensor, similarity_BB: Tensor) -> Tensor:
    """Binary cross-entropy of σ(logits) with how similar pairs are: half of the mean over positives and half of that
    over negatives.

    Positive are those of a similarity above ``POSITIVE``. Both kinds weigh the same, whatever their numbers (LoRS,
    Xu et al., ICML 2024, arXiv 2406.01112; halved as in its release).
    """
    each_BB = F.binary_cross_entropy_with_logits(logits_BB, similarity_BB, reduction="none")
    positive_BB = similarity_BB > POSITIVE
    parts = [each_BB[mask] for mask in (positive_BB, ~positive_BB) if mask.any()]
    return torch.stack([part.mean() for part in parts]).sum() / 2


def pair_loss(image_BD: Tensor, text_BD: Tensor, similarity_BB: Tensor | None, temperature: float) -> Tensor:
    """InfoNCE; or, where it is known how similar pairs are, ``weighted_bce``. Embeddings of unit norm."""
    if similarity_BB is None:
        return info_nce(image_BD, text_BD, temperature)
    return weighted_bce(image_BD @ text_BD.T / temperature, similarity_BB)
