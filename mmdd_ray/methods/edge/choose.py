"""Keeping drawn candidates: of those that agree with their captions, the ones with the moments of the real data."""

from typing import Any

import numpy as np
import pyarrow as pa

from mmdd_ray.features.coresets import best_rows, kept_rows, pair_scores
from mmdd_ray.features.moments import Moments
from mmdd_ray.methods.edge.selection import moment_distance, select
from mmdd_ray.methods.edge.settings import Edge


def pair_quality(image_ND: np.ndarray, text_ND: np.ndarray) -> dict[str, float]:
    """How a set of pairs looks to CLIP, from unit-norm features.

    Returns:
        `alignment`: mean cosine between image and caption. `recall`: percent of captions whose own image is the
        nearest of the set. `similarity`: mean cosine between different samples, image and text side by side, the
        quantity that EDGE's diversity loss lowers.
    """
    n = len(image_ND)
    image_ND, text_ND = image_ND.astype(np.float64), text_ND.astype(np.float64)
    cosine_NN = text_ND @ image_ND.T
    joint_NN = (image_ND @ image_ND.T + text_ND @ text_ND.T) / 2
    return {
        "alignment": float(np.diag(cosine_NN).mean()),
        "recall": float(100 * (cosine_NN.argmax(axis=1) == np.arange(n)).mean()),
        "similarity": float((joint_NN.sum() - np.trace(joint_NN)) / max(n * (n - 1), 1)),
    }


def choose_drawn(drawn: pa.Table, target: Moments, settings: Edge) -> dict[str, Any]:
    """Which candidates to keep.

    Args:
        drawn: Candidates as `read_drawn` gives them.
        target: Moments of the real pairs.

    Returns:
        `kept`: sample indices in ascending order; `quality` of the kept pairs; and `moment_distance` of the kept
        and of as many candidates without selection.
    """
    image_MD = np.stack(drawn["image_feature"].to_numpy())
    text_MD = np.stack(drawn["text_feature"].to_numpy())
    count, weight = settings.images, settings.synthesis.mean_weight
    first = np.arange(count)
    kept = first
    if len(drawn) > count:
        agreeing = kept_rows(len(drawn), settings.synthesis.clip_score_fraction)
        best = best_rows(pair_scores(image_MD, text_MD), agreeing)
        selection = select(target, image_MD[best], text_MD[best], count, mean_weight=weight)
        kept = np.sort(best[selection.indices])
    return {
        "kept": drawn["index"].to_numpy()[kept].tolist(),
        "quality": pair_quality(image_MD[kept], text_MD[kept]),
        "moment_distance": {
            "kept": moment_distance(target, image_MD[kept], text_MD[kept], weight),
            "unselected": moment_distance(target, image_MD[first], text_MD[first], weight),
        },
    }
