"""A map of real and distilled images: their CLIP features on two axes, by principal components."""

from typing import Any

import numpy as np


def feature_map(set_ND: np.ndarray, real_RD: np.ndarray) -> dict[str, Any]:
    """Both on the first two principal components of the two together, for a report.

    The components are those of both kinds with equal weight, so that the larger one does not decide alone.

    Args:
        set_ND: Features of N images of the set, at least one.
        real_RD: Features of R real images, at least one.

    Returns:
        ``set`` and ``real``, [x, y] of each image; ``explained``, the percentage of the variance along each axis; and
        ``variance``, by ``set`` and ``real``, the mean squared distance of the features from their mean.
    """
    from sklearn.decomposition import PCA  # here, because it takes a second that a driver need not wait for

    set_ND, real_RD = np.asarray(set_ND, np.float64), np.asarray(real_RD, np.float64)
    count = max(len(set_ND), len(real_RD), 2)
    # a kind of fewer images is repeated: weights, which PCA has none of
    both = np.concatenate([np.resize(rows, (count, rows.shape[1])) for rows in (set_ND, real_RD)])
    with np.errstate(invalid="ignore"):  # shares of no variance at all, for equal features
        pca = PCA(2, svd_solver="full").fit(both)
    return {
        "set": _points(pca.transform(set_ND)),
        "real": _points(pca.transform(real_RD)),
        "explained": [round(100 * float(share), 1) for share in np.nan_to_num(pca.explained_variance_ratio_)],
        "variance": {"set": _variance(set_ND), "real": _variance(real_RD)},
    }


def _points(place_N2: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in place] for place in place_N2]


def _variance(rows_ND: np.ndarray) -> float:
    return float(np.square(rows_ND - rows_ND.mean(axis=0)).sum(axis=1).mean())
