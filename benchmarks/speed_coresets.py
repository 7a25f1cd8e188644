"""Herding and k-center over 100,000 pairs of features: how often faster than plain NumPy and scikit-learn.

    python benchmarks/speed_coresets.py
    python benchmarks/speed_coresets.py --picks 500 --repetitions 1

Arms, all on one core:

- ours: float16 rows of a mapped file, as a run has them.
- plain herding: float32 rows in memory; each pick is the least norm of t·μ - Σ picks - x over all rows x (NumPy).
- herding by products: float32 rows in memory, whose squares are known; one matrix-vector product a pick (NumPy), and
  whatever rounding makes of copies.
- plain k-center: float32 rows in memory; each pick is the farthest by ``pairwise_distances`` to the last one
  (scikit-learn), kept as a running minimum.

The choices have to be the same.
"""

import tempfile
from dataclasses import dataclass

import numpy as np
import tyro
from sklearn.metrics import pairwise_distances
from speed import Speed, faster, in_turns, record

from mmdd_ray.features.coresets import herding, joint_features, k_center

ROWS = {"tiny": 1_000, "cpu": 100_000, "gpu": 100_000}
DIM = 512


@dataclass(kw_only=True)
class CoresetsSpeed(Speed):
    """Times the choice of coresets."""

    picks: int = 50
    """Rows that are chosen. The time of all arms grows with it, and the share of what is done once shrinks."""


def plain_herding(rows_ND: np.ndarray, picks: int) -> list[int]:
    mean, total, taken = rows_ND.mean(axis=0, dtype=np.float64), np.zeros(rows_ND.shape[1]), []
    for t in range(1, picks + 1):
        gap_N = np.linalg.norm((t * mean - total).astype(np.float32) - rows_ND, axis=1)
        gap_N[taken] = np.inf
        taken.append(int(gap_N.argmin()))
        total += rows_ND[taken[-1]]
    return taken


def by_products(rows_ND: np.ndarray, picks: int) -> list[int]:
    mean, half_N = rows_ND.mean(axis=0, dtype=np.float64), np.einsum("nd,nd->n", rows_ND, rows_ND) / 2
    wanted, taken = mean.copy(), []
    for _ in range(picks):
        taken.append(int((rows_ND @ wanted.astype(np.float32) - half_N).argmax()))
        half_N[taken[-1]] = np.inf
        wanted += mean - rows_ND[taken[-1]]
    return taken


def plain_k_center(rows_ND: np.ndarray, picks: int, first: int) -> list[int]:
    taken, nearest_N = [first], np.full(len(rows_ND), np.inf, np.float32)
    while len(taken) < picks:
        nearest_N = np.minimum(nearest_N, pairwise_distances(rows_ND, rows_ND[taken[-1:]])[:, 0])
        taken.append(int(nearest_N.argmax()))
    return taken


def main() -> None:
    asked = tyro.cli(CoresetsSpeed)
    rows, rng = ROWS[asked.size], np.random.default_rng(0)
    image_ND, noise_ND = rng.standard_normal((2, rows, DIM), np.float32)
    stored_ND = joint_features(image_ND, 0.3 * image_ND + noise_ND).astype(np.float16)
    rows_ND = stored_ND.astype(np.float32)
    first = int(k_center([stored_ND], 1, seed=0)[0])
    with tempfile.TemporaryFile() as file:
        file.write(stored_ND.data)
        file.flush()
        mapped = [np.memmap(file, np.float16, "r+", shape=stored_ND.shape)]
        choices: dict[str, list[int]] = {}
        arms = {
            "herding": lambda: choices.update(ours=herding(mapped, asked.picks).tolist()),
            "plain herding": lambda: choices.update(plain=plain_herding(rows_ND, asked.picks)),
            "herding by products": lambda: by_products(rows_ND, asked.picks),
            "k-center": lambda: choices.update(ours2=k_center(mapped, asked.picks, seed=0).tolist()),
            "plain k-center": lambda: choices.update(plain2=plain_k_center(rows_ND, asked.picks, first)),
        }
        herding(mapped, 1)  # imports
        seconds = in_turns(arms, asked.repetitions, warm_up=False)
    assert choices["ours"] == choices["plain"]
    assert choices["ours2"] == choices["plain2"]
    ratios = [
        faster("herding: over plain NumPy, same choice", seconds, "herding", "plain herding", 5),
        faster("herding: over one matrix-vector product a pick", seconds, "herding", "herding by products"),
        faster("k-center: over scikit-learn, same choice", seconds, "k-center", "plain k-center", 5),
    ]
    record("coresets", asked, ratios, rows=rows, width=2 * DIM, picks=asked.picks, seconds=seconds)


if __name__ == "__main__":
    main()
