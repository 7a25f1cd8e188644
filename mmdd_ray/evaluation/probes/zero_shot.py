"""Zero-shot classification: an image is of the class whose prompts are nearest to it."""

# N images, C classes, T templates, D embedding width

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd_ray.evaluation.metrics import TOPS, ZERO_SHOT
from mmdd_ray.evaluation.retrieval import TIE


def class_embeddings(embed: Callable[[list[str]], Tensor], prompts: Sequence[Sequence[str]]) -> Tensor:
    """Unit-norm embedding (C, D) of each class: the mean of the unit-norm embeddings of its prompts, renormalised.

    That ensembles templates in the space of embeddings (Radford et al., ICML 2021, arXiv 2103.00020, section 3.1.4).

    Args:
        embed: Gives embeddings (texts, D) of any norm.
        prompts: C lists of T texts each.
    """
    text_D = F.normalize(embed([text for own in prompts for text in own]), dim=1)
    return F.normalize(text_D.reshape(len(prompts), -1, text_D.shape[1]).mean(dim=1), dim=1)


def zero_shot_accuracy(image_ND: Tensor, class_CD: Tensor, label_N: Tensor) -> dict[str, float]:
    """Share of images, in percent, whose own class is among the k of highest cosine.

    Classes that are as near as the own one stand before it, so a student that tells nothing apart scores 0.

    Args:
        image_ND: Of any norm, and so is ``class_CD``.
        label_N: int64, rows of ``class_CD``.
    """
    score_NC = F.normalize(image_ND.double(), dim=1) @ F.normalize(class_CD.double(), dim=1).T
    own_N1 = score_NC.gather(1, label_N[:, None])
    others_NC = score_NC.scatter(1, label_N[:, None], -torch.inf)
    before_N = (others_NC > own_N1 - TIE).sum(dim=1)
    return {ZERO_SHOT.format(f"top-{k}"): 100 * (before_N < k).double().mean().item() for k in TOPS}
