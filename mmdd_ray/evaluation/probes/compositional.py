"""Compositional test: is the true caption of an image nearer to it than a hard negative?"""

# K images, M contrasts of them, D embedding width

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdd_ray.evaluation.metrics import compositional_scores
from mmdd_ray.evaluation.retrieval import TIE


def compositional_accuracy(
    image_KD: Tensor, caption_MD: Tensor, negative_MD: Tensor, owner_M: np.ndarray, kinds: Sequence[str]
) -> dict[str, float]:
    """Share of contrasts, in percent, whose caption has the higher cosine with the image, by kind, and their mean.

    As SugarCrepe scores (Hsieh et al., NeurIPS 2023, arXiv 2306.14610), but ties count against the student: one that
    reads captions as bags of words finds no swap.

    Args:
        image_KD: Of any norm, as all embeddings here.
        owner_M: Image row of each contrast.
        kinds: Of each contrast.
    """
    unit_KD, caption, negative = (
        F.normalize(one.double(), dim=1) for one in (image_KD, caption_MD, negative_MD)
    )
    image_MD = unit_KD[torch.tensor(owner_M, device=unit_KD.device)]
    gain_M = torch.linalg.vecdot(image_MD, caption) - torch.linalg.vecdot(image_MD, negative)
    is_right_M, kind_M = (gain_M > TIE).cpu().numpy(), np.array(kinds)
    return compositional_scores(
        {str(kind): 100 * float(is_right_M[kind_M == kind].mean()) for kind in np.unique(kind_M)}
    )
