"""Covariance-guided selection: of many synthetic candidates keep those with the moments of the real data.

``J(S) = ‖C_vl(T) − C_vl(S)‖²_F + λ Σ_m ‖μ_m(T) − μ_m(S)‖²``, the objective of CovMatch (Lee & Chung, NeurIPS
2025, arXiv 2510.18583) over a choice of pairs instead of over pixels; by greedy addition, then by swaps.
"""

# M candidates, N selected, V and L image- and text-feature widths

from dataclasses import dataclass

import numpy as np

from mmdd_ray.features.moments import Moments


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen candidates and how the objective fell."""

    indices: np.ndarray
    """(N,) int64 candidate rows, in order of greedy choice; a swap takes the place of what it removes."""
    history: np.ndarray
    """(N + swaps,) float64: J after each greedy addition (of the subset so far), then after each swap."""


def moment_distance(target: Moments, image_NV: np.ndarray, text_NL: np.ndarray, mean_weight: float) -> float:
    """J of a set of pairs, straight from its definition in float64; covariances are normalised by 1/n."""
    image_NV, text_NL = image_NV.astype(np.float64), text_NL.astype(np.float64)
    mean_v, mean_l = image_NV.mean(axis=0), text_NL.mean(axis=0)
    cross_VL = (image_NV - mean_v).T @ (text_NL - mean_l) / len(image_NV)
    mean_gap = ((mean_v - target.mean_v) ** 2).sum() + ((mean_l - target.mean_l) ** 2).sum()
    return float(((cross_VL - target.cross_covariance) ** 2).sum() + mean_weight * mean_gap)


def select(
    target: Moments,
    image_MV: np.ndarray,
    text_ML: np.ndarray,
    n_select: int,
    *,
    mean_weight: float,
    max_swaps: int | None = None,
) -> Selection:
    """Chooses ``n_select`` of M candidate pairs: greedy additions, then best swaps until none lowers J.

    Deterministic; ties go to the lowest index. One step costs O(M (d_v + d_l)); memory is O(M²), about 400 MB
    for 4,000 candidates.

    Args:
        target: moments of the real pairs, by the same encoder.
        image_MV: image features of the candidates, any float dtype.
        text_ML: text features of the candidates.
        n_select: N.
        mean_weight: λ.
        max_swaps: stop after so many swaps; None runs until no swap of one pair lowers J.

    Raises:
        ValueError: if there are fewer than N candidates, or they do not fit the target's widths, or are not
        finite.
    """
    expected = (len(image_MV), len(target.mean_v)), (len(image_MV), len(target.mean_l))
    if (image_MV.shape, text_ML.shape) != expected:
        raise ValueError(
            f"candidate features {image_MV.shape} and {text_ML.shape} do not fit real moments of widths "
            f"{target.vl.shape}; encode the candidates with the encoder of the moments"
        )
    if not 1 <= n_select <= len(image_MV):
        raise ValueError(
            f"cannot select {n_select} of {len(image_MV)} candidates; select fewer or synthesise more"
        )
    if not (np.isfinite(image_MV).all() and np.isfinite(text_ML).all()):
        raise ValueError("the candidate features hold values that are not finite; drop those candidates")

    subset = _Subset(target, image_MV, text_ML, mean_weight)
    history = []
    for _ in range(n_select):
        objective_M = subset.objective_with_each()
        best = int(objective_M.argmin())
        history.append(objective_M[best])
        subset.add(best)
    history += _swap_until_stuck(subset, history[-1], max_swaps)
    return Selection(np.array(subset.members, dtype=np.int64), np.array(history))


def _swap_until_stuck(subset: "_Subset", objective: float, max_swaps: int | None) -> list[float]:
    """Offers each place its best candidate, in turn, until all places keep theirs; J after each swap."""
    history: list[float] = []
    place, kept = 0, 0
    while kept < len(subset.members) and len(history) != max_swaps:
        member = subset.members[place]
        subset.remove(place)
        objective_M = subset.objective_with_each()
        best = int(objective_M.argmin())
        # a gain below the rounding of the running sums could be swapped to and fro for ever
        if objective_M[best] < objective - 1e-12 * subset.magnitude:
            objective, kept = float(objective_M[best]), 0
            history.append(objective)
            subset.add(best, place)
        else:
            kept += 1
            subset.add(member, place)
        place = (place + 1) % len(subset.members)
    return history


class _Subset:
    """A changing subset S of the candidates, and J of S with each one candidate more.

    With a_i, b_i the features of candidate i without the *real* means (no covariance changes by a shift) and
    n = |S|, C_vl(S) = Σ a bᵀ/n − ā b̄ᵀ, so that J needs inner products only, K_ij = a_i·a_j, L_ij = b_i·b_j,
    Q_ij = a_iᵀ C b_j:

        J = ‖C‖² − 2(ΣQ_ii/n − ΣΣQ/n²) + ΣΣ(K∘L)/n² − 2 Σ(k_i l_i)/n³ + (ΣΣK)(ΣΣL)/n⁴ + λ(ΣΣK + ΣΣL)/n²

    over i, j in S, with C = C_vl(T), k_i = Σ_j K_ij and l_i = Σ_j L_ij.
    """

    def __init__(
        self, target: Moments, image_MV: np.ndarray, text_ML: np.ndarray, mean_weight: float
    ) -> None:
        self.image_MV = image_MV.astype(np.float64) - target.mean_v
        self.text_ML = text_ML.astype(np.float64) - target.mean_l
        self.K_MM = self.image_MV @ self.image_MV.T
        self.L_MM = self.text_ML @ self.text_ML.T
        Q_MM = self.image_MV @ target.cross_covariance @ self.text_ML.T
        self.K_M, self.L_M, self.Q_M = self.K_MM.diagonal(), self.L_MM.diagonal(), Q_MM.diagonal().copy()
        self.QQ_MM = Q_MM + Q_MM.T
        self.target_norm = float((target.cross_covariance**2).sum())
        self.mean_weight = mean_weight
        # about the largest that a term of J can be, to which its rounding is relative
        self.magnitude = self.target_norm + float(
            (self.K_M * self.L_M + mean_weight * (self.K_M + self.L_M)).max()
        )

        self.members: list[int] = []
        # sums over the members i of K_ij, L_ij, K_ij L_ij and Q_ij + Q_ji, for every candidate j
        self.k_M, self.l_M, self.kl_M, self.q_M = np.zeros((4, len(image_MV)))

    def add(self, candidate: int, place: int | None = None) -> None:
        """Takes a candidate in, at the end or at its place among the members."""
        self.members.insert(len(self.members) if place is None else place, candidate)
        self._count(candidate, +1)

    def remove(self, place: int) -> None:
        """Puts out the member at this place."""
        self._count(self.members.pop(place), -1)

    def _count(self, candidate: int, sign: int) -> None:
        K_M, L_M = self.K_MM[candidate], self.L_MM[candidate]
        self.k_M += sign * K_M
        self.l_M += sign * L_M
        self.kl_M += sign * K_M * L_M
        self.q_M += sign * self.QQ_MM[candidate]

    def objective_with_each(self) -> np.ndarray:
        """J(S ∪ {j}) for every candidate j, infinite for members; (M,) float64, in O(M (d_v + d_l))."""
        S, n = self.members, len(self.members) + 1
        k_S, l_S = self.k_M[S], self.l_M[S]
        sum_k = k_S.sum() + 2 * self.k_M + self.K_M
        sum_l = l_S.sum() + 2 * self.l_M + self.L_M
        sum_kl = self.kl_M[S].sum() + 2 * self.kl_M + self.K_M * self.L_M
        sum_q = self.q_M[S].sum() / 2 + self.q_M + self.Q_M
        # Σ_i (k_i + K_ij)(l_i + L_ij), with the middle terms Σ_i k_i L_ij = b_j·Σ_i k_i b_i and its mirror
        middle = self.text_ML @ (k_S @ self.text_ML[S]) + self.image_MV @ (l_S @ self.image_MV[S])
        rows = k_S @ l_S + middle + self.kl_M + (self.k_M + self.K_M) * (self.l_M + self.L_M)
        objective_M = (
            self.target_norm
            - 2 * ((self.Q_M[S].sum() + self.Q_M) / n - sum_q / n**2)
            + sum_kl / n**2
            - 2 * rows / n**3
            + sum_k * sum_l / n**4
            + self.mean_weight * (sum_k + sum_l) / n**2
        )
        objective_M[S] = np.inf
        return objective_M
