"""Singular values of cross-covariances: in how many directions a set varies, beside the real data."""

import numpy as np

ENERGY = 0.9
NEGLIGIBLE = 1e-6  # of the largest: what rounding leaves of 0


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values of a matrix (V, L), the largest first, without those below ``NEGLIGIBLE`` of it; float64."""
    values_K = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return values_K[values_K > NEGLIGIBLE * values_K.max(initial=0.0)]


def effective_rank(values_K: np.ndarray) -> float:
    """exp of the entropy of singular values that are divided by their sum (Roy & Vetterli, EUSIPCO 2007); 0 for none.

    k for k equal values, and at least 1.
    """
    if not len(values_K):
        return 0.0
    share_K = values_K / values_K.sum()
    return float(np.exp(-(share_K * np.log(share_K)).sum()))


def rank_of_energy(values_K: np.ndarray, energy: float = ENERGY) -> int:
    """The least number of singular values (K,), the largest first, whose squares hold this share of all squares."""
    if not len(values_K):
        return 0
    held_K = np.cumsum(np.square(values_K))
    return int(np.searchsorted(held_K, energy * held_K[-1] * (1 - 1e-12))) + 1


def about_spectrum(matrix: np.ndarray) -> dict[str, object]:
    """``values``, ``effective_rank`` and ``rank_90`` of a cross-covariance, for a report."""
    values_K = singular_values(matrix)
    return {
        "values": [float(f"{value:.4g}") for value in values_K],
        "effective_rank": effective_rank(values_K),
        "rank_90": rank_of_energy(values_K),
    }
