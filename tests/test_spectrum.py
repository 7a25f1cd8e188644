"""The spectrum of a covariance: known singular values, ranks and energies."""

import numpy as np
import pytest

from mmdd_ray.evaluation.spectrum import about_spectrum, effective_rank, rank_of_energy, singular_values


def matrix_of(values: list[float], rows: int = 7, columns: int = 5) -> np.ndarray:
    """A matrix with these singular values."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (rows, columns))
    return left[:, : len(values)] @ np.diag(values) @ right[:, : len(values)].T


def test_singular_values_are_the_known_ones_without_those_of_rounding() -> None:
    assert singular_values(matrix_of([5, 3, 1])) == pytest.approx([5, 3, 1])
    assert len(singular_values(np.zeros((3, 2)))) == 0


def test_the_effective_rank_is_that_of_roy_and_vetterli() -> None:
    assert effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.array([9.0])) == pytest.approx(1)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(np.exp(entropy))
    assert effective_rank(np.array([])) == 0


@pytest.mark.parametrize(("values", "rank"), [([3, 1], 1), ([2, 1], 2), ([1] * 10, 9), ([], 0)])
def test_the_rank_of_energy_counts_squares(values: list[float], rank: int) -> None:
    assert rank_of_energy(np.array(values)) == rank


def test_a_spectrum_is_said_in_three_figures() -> None:
    assert about_spectrum(matrix_of([4, 4])) == {
        "values": [4, 4],
        "effective_rank": pytest.approx(2),
        "rank_90": 2,
    }
