"""The map of real and distilled images: components of known points, and the same weight of both kinds."""

import numpy as np
import pytest

from mmdd_ray.evaluation.feature_map import feature_map


def test_points_on_two_axes_keep_their_distances() -> None:
    rng = np.random.default_rng(0)
    flat_N2 = rng.normal(size=(40, 2)) * [3.0, 1.0]
    axes_2D = np.linalg.qr(rng.normal(size=(7, 2)))[0].T
    points = flat_N2 @ axes_2D + 5
    found = feature_map(points[:10], points[10:])
    placed = np.array(found["set"] + found["real"])
    expected = np.linalg.norm(flat_N2[:, None] - flat_N2, axis=2)
    assert np.linalg.norm(placed[:, None] - placed, axis=2) == pytest.approx(expected, abs=5e-3)
    assert sum(found["explained"]) == pytest.approx(100, abs=0.2)
    assert found["variance"]["set"] == pytest.approx(points[:10].var(axis=0).sum())


def test_few_images_weigh_as_much_as_many() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(500, 3)) * [1.0, 0.9, 0.01]
    ours = rng.normal(size=(5, 3)) * 0.01 + [0, 0, 10]  # far along an axis on which real images do not differ
    found = feature_map(ours, real)
    first_ours, first_real = (np.array(found[name])[:, 0] for name in ("set", "real"))
    assert abs(first_ours.mean() - first_real.mean()) == pytest.approx(10, rel=0.02)


def test_one_image_alone_has_a_place() -> None:
    found = feature_map(np.ones((1, 4)), np.ones((1, 4)))
    assert found["set"] == found["real"] == [[0, 0]]
    assert found["variance"] == {"set": 0, "real": 0}
