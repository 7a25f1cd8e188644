"""Copies: neighbours are those of brute force, and planted copies are found by their pixels."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmdd_ray.evaluation import copies
from mmdd_ray.evaluation.copies import (
    Nearest,
    beyond,
    closest_by_pixels,
    nearest_rows,
    rms_differences,
    saturated_share,
    small,
    spread_of,
)


def unit_rows(rng: np.random.Generator, n: int, width: int = 32) -> np.ndarray:
    rows = rng.normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def cut(rows: np.ndarray, digests: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size], digests[at : at + size]


def brute_force(query: np.ndarray, rows: np.ndarray, k: int) -> Nearest:
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    norms = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    cosine = query @ rows.T / norms
    order = np.argsort(-np.round(cosine, 12), axis=1, kind="stable")[:, :k]
    return Nearest(order, np.take_along_axis(cosine, order, axis=1))


@pytest.mark.parametrize("block", [1, 7, 50, 203])
def test_neighbours_are_those_of_brute_force_whatever_the_blocks(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    rows, query = unit_rows(rng, 200), unit_rows(rng, 9)
    rows = np.concatenate([rows, rows[[5, 5, 60]]])  # equal ones, of which the lowest row comes first
    query[0] = rows[5]
    digests = np.arange(len(rows))
    monkeypatch.setattr(copies, "BLOCK_SCORES", 9 * 31)
    found = nearest_rows(query, cut(rows, digests, block), 16)
    expected = brute_force(query, rows, 16)
    assert found.row_NK.tolist() == expected.row_NK.tolist()
    np.testing.assert_allclose(found.cosine_NK, expected.cosine_NK, atol=1e-12)
    assert found.row_NK[0, :3].tolist() == [5, 200, 201]
    monkeypatch.setattr(copies, "BLOCK_SCORES", 2**22)
    whole = nearest_rows(query, [(rows, digests)], 16)
    assert np.array_equal(found.cosine_NK, whole.cosine_NK)  # to the last digit


def test_an_image_is_no_neighbour_of_its_own_file() -> None:
    rows = unit_rows(np.random.default_rng(1), 6)
    rows[3] = rows[0]
    digests = np.array([10, 11, 12, 10, 14, 15])  # row 3 is the file of row 0 with another caption
    found = nearest_rows(rows[:1], [(rows, digests)], 8, own_N=digests[:1])
    assert set(found.row_NK[0].tolist()) == {1, 2, 4, 5, -1}
    assert found.row_NK.shape == (1, 6)
    assert np.isneginf(found.cosine_NK[0, 4:]).all()
    assert nearest_rows(rows[:1], [(rows, digests)], 2).row_NK.tolist() == [[0, 3]]


def test_no_neighbours_are_asked_for() -> None:
    rows = unit_rows(np.random.default_rng(1), 2)
    with pytest.raises(ValueError, match="k of at least 1"):
        nearest_rows(rows, [(rows, np.arange(2))], 0)
    with pytest.raises(ValueError, match="need a query"):
        nearest_rows(rows[:0], [(rows, np.arange(2))], 1)


def test_differences_are_those_of_levels_at_the_best_shift() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(10, 245, (32, 32, 3)).astype(np.uint8)
    moved = np.roll(image, (1, -1), (0, 1))
    others = np.stack([image, image + 7, moved, 255 - image])
    found = rms_differences(image, others)
    assert found[:3].tolist() == pytest.approx([0, 7, 0])
    assert found[3] > 50
    far = np.roll(image, 2, 0)
    assert rms_differences(image, far[None])[0] > 50


def photographs(n: int, px: int = 96) -> list[np.ndarray]:
    """Smooth random images with edges, as unlike each other as photographs."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        image = coarse.resize((px, px), Image.Resampling.BICUBIC)
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (int(rng.integers(0, 60)), 20, 90, 70))
        found.append(np.asarray(image.filter(ImageFilter.GaussianBlur(1))))
    return found


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def test_planted_copies_are_counted_and_unrelated_images_are_not() -> None:
    real, others = photographs(60)[:40], photographs(60)[40:]
    exact = real[:4]
    encoded = [jpeg(image, 50) for image in real[4:8]]
    shifted = [np.roll(image, 2, 1) for image in real[8:12]]
    halved = [np.asarray(Image.fromarray(image).resize((48, 48))) for image in real[12:16]]
    planted = [*exact, *encoded, *shifted, *halved]
    smalls = {row: small(image) for row, image in enumerate(real)}
    everyone = np.tile(np.arange(40), (len(planted), 1))
    nearest = Nearest(everyone, np.zeros(everyone.shape))
    found = closest_by_pixels([small(image) for image in planted], nearest, smalls)
    assert found.row_N.tolist() == list(range(16))
    assert found.is_copy_N.all()
    assert (found.rms_N[:4] == 0).all()
    unrelated = closest_by_pixels(
        [small(image) for image in others], nearest.of(slice(0, 1)).of([0] * 20), smalls
    )
    assert not unrelated.is_copy_N.any()
    assert unrelated.rms_N.min() > 2 * copies.COPY_RMS


def test_only_neighbours_that_are_known_are_compared() -> None:
    image = photographs(1)[0]
    nearest = Nearest(np.array([[3, 7], [-1, -1]]), np.array([[0.9, 0.8], [-np.inf, -np.inf]]))
    found = closest_by_pixels([small(image)] * 2, nearest, {7: small(image)})
    assert found.row_N.tolist() == [7, -1]
    assert found.cosine_N[0] == 0.8
    assert found.rms_N.tolist() == [0, np.inf]
    assert found.is_copy_N.tolist() == [True, False]
    assert closest_by_pixels([], nearest.of(slice(0, 0)), {}).is_copy_N.tolist() == []


def test_saturated_levels_are_counted() -> None:
    image = np.full((2, 2, 3), 7, np.uint8)
    image[0, 0] = 0, 255, 254
    assert saturated_share(image) == pytest.approx(2 / 12)


def test_figures_have_a_scale() -> None:
    same = np.arange(1000.0)
    assert beyond(same, same) == pytest.approx(0.01, abs=1e-3)
    assert beyond(same + 2000, same) == 1
    assert spread_of(np.array([1.0, 3.0, np.inf])) == pytest.approx({"1%": 1.02, "50%": 2, "99%": 2.98})
    assert spread_of(np.array([-np.inf])) == {}
