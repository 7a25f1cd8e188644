"""How near images are to real ones: neighbours by CLIP, distances of pixels, and what counts as a copy.

A check for copies and no privacy guarantee. CLIP brings images of one subject together, whether they are copies or not,
so it only finds the candidates, and pixels decide; a copy detector such as SSCD, with which Somepalli et al. look for
copies in what diffusion models draw (CVPR 2023, arXiv 2212.03860, a similarity of 0.5 and above), would find more:
copies of a part, mirrored ones, and those beyond the nearest real images by CLIP. No threshold means much alone, so
every figure has a scale beside it: the same figure of real images among the other real images.
"""

# N images in question, R real images of a block, K neighbours of each, D width of features, H side of small images

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

NEIGHBOURS = 16
"""Real images, nearest by CLIP, whose pixels each image is compared with."""
SMALL_PX = 32
"""Side of the images whose pixels are compared, as in Tiny Images (Torralba et al., PAMI 2008)."""
SHIFT_PX = 1
"""Pixels of the small images by which one may be shifted against the other."""
COPY_RMS = 12.0
"""Levels of 255: at most this root mean square difference makes a copy. Photographs of 128 px that were saved anew as
JPEG of quality 50 differ by 1 to 6 levels and procedural scenes by 3 to 10; the nearest other photograph of 3,000 of
Flickr8k differs by 24 and more. Scenes of few shapes have neighbours within it that are no copies, as the figure of
real images tells."""
BLOCK_SCORES = 2**22  # cosines that are held at once: 32 MiB


class Nearest(NamedTuple):
    """The K nearest real images of each of N images, the nearest first; K is less where there are fewer real ones."""

    row_NK: np.ndarray
    """(N, K) int64: rows of the feature store; -1 where an image has fewer than K that are not itself."""
    cosine_NK: np.ndarray
    """(N, K) float64: -inf beside a row of -1."""

    def of(self, images: np.ndarray | slice) -> "Nearest":
        """Those of some of the images."""
        return Nearest(self.row_NK[images], self.cosine_NK[images])


def nearest_rows(
    query_ND: np.ndarray,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int = NEIGHBOURS,
    own_N: np.ndarray | None = None,
) -> Nearest:
    """The k real images with the highest cosine for each query, by one pass over blocks of real images.

    The same to the last digit whatever the blocks: products of float16 features of unit norm, and their sums, have no
    rounding in float64.
    Of equal ones the lowest row comes first. Holds N × k neighbours, one block, and ``BLOCK_SCORES`` cosines.

    Args:
        query_ND: (N, D) features, rounded to float16 as the stored ones are.
        blocks: of the real images in their order, each (R, D) float16 features and (R,) int64 digests of image files.
        own_N: (N,) int64 digests: a real image whose file is that of the query is none of its neighbours.

    Raises:
        ValueError: ``k`` is below 1, or there is no query.
    """
    if k < 1 or not len(query_ND):
        raise ValueError(f"nearest rows need a query and k of at least 1, got {len(query_ND)} and k={k}")
    query_ND, query_norm_N = _with_norms(query_ND)
    best = Nearest(np.full((len(query_ND), k), -1), np.full((len(query_ND), k), -np.inf))
    start = 0
    for feature_RD, digest_R in _cut(blocks, max(BLOCK_SCORES // len(query_ND), 1)):
        feature_RD, norm_R = _with_norms(feature_RD)
        cosine_NR = (query_ND @ feature_RD.T) / (query_norm_N[:, None] * norm_R)
        if own_N is not None:
            cosine_NR[digest_R == own_N[:, None]] = -np.inf
        best = _merged(best, cosine_NR, start)
        start += len(feature_RD)
    found = max(min(k, start), 1)
    return Nearest(best.row_NK[:, :found], best.cosine_NK[:, :found])


def _with_norms(feature_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of float16 values as float64, and their norms (N,)."""
    feature_ND = feature_ND.astype(np.float16).astype(np.float64)
    return feature_ND, np.maximum(np.sqrt(np.einsum("nd,nd->n", feature_ND, feature_ND)), 1e-12)


def _cut(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for feature_RD, digest_R in blocks:
        for at in range(0, len(feature_RD), rows):
            yield feature_RD[at : at + rows], digest_R[at : at + rows]


def _merged(best: Nearest, cosine_NR: np.ndarray, start: int) -> Nearest:
    """The best of what was found before and of a block whose first row is ``start``."""
    n, k = best.row_NK.shape
    # of equal ones the earlier row stays, so a later one must be above the last that is kept
    query, column = np.nonzero(cosine_NR > best.cosine_NK[:, -1:])
    if not len(query):
        return best
    query_A = np.concatenate([np.repeat(np.arange(n), k), query])
    cosine_A = np.concatenate([best.cosine_NK.ravel(), cosine_NR[query, column]])
    row_A = np.concatenate([best.row_NK.ravel(), start + column])
    order = np.lexsort((row_A, -cosine_A, query_A))
    first_N = np.searchsorted(query_A[order], np.arange(n))
    kept_NK = order[first_N[:, None] + np.arange(k)]
    return Nearest(row_A[kept_NK], cosine_A[kept_NK])


def small(image_HW3: np.ndarray) -> np.ndarray:
    """A square uint8 RGB image as (SMALL_PX, SMALL_PX, 3) uint8."""
    size = (SMALL_PX, SMALL_PX)
    return np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.BICUBIC))


def rms_differences(one_HH3: np.ndarray, others_KHH3: np.ndarray) -> np.ndarray:
    """(K,) float64 root mean square difference of levels, in [0, 255], of an image and each of K others.

    The least over shifts of the others by up to ``SHIFT_PX``, without the margin that a shift moves out.

    Args:
        one_HH3: (H, H, 3) uint8.
        others_KHH3: (K, H, H, 3) uint8.
    """
    h, margin = len(one_HH3), SHIFT_PX
    inner = one_HH3[margin : h - margin, margin : h - margin].astype(np.float32)
    least_K = np.full(len(others_KHH3), np.inf)
    for y in range(2 * margin + 1):
        for x in range(2 * margin + 1):
            window = others_KHH3[:, y : y + h - 2 * margin, x : x + h - 2 * margin].astype(np.float32)
            squares_K = np.square(window - inner).mean(axis=(1, 2, 3), dtype=np.float64)
            least_K = np.minimum(least_K, np.sqrt(squares_K))
    return least_K


Smalls = dict[int, np.ndarray]
"""Small real images by their row."""


class Closest(NamedTuple):
    """The neighbour of each of N images whose pixels are nearest."""

    row_N: np.ndarray
    """(N,) int64; -1 where there is none."""
    cosine_N: np.ndarray
    """(N,) float64: CLIP's cosine with it."""
    rms_N: np.ndarray
    """(N,) float64 levels; inf where there is none."""

    @property
    def is_copy_N(self) -> np.ndarray:
        """(N,) bool."""
        return self.rms_N <= COPY_RMS


def closest_by_pixels(small_NHH3: Sequence[np.ndarray], nearest: Nearest, smalls: Smalls) -> Closest:
    """Of each image's neighbours the one with the least ``rms_differences``, of equal ones the nearest by CLIP.

    Args:
        small_NHH3: N images as ``small`` gives them.
        nearest: Of the same N images.
        smalls: The small real images by row; neighbours without one are passed over.
    """
    columns = []
    for own_HH3, row_K, cosine_K in zip(small_NHH3, nearest.row_NK, nearest.cosine_NK, strict=True):
        known = [at for at, row in enumerate(row_K.tolist()) if row in smalls]
        if not known:
            columns.append((-1, -np.inf, np.inf))
            continue
        rms_K = rms_differences(own_HH3, np.stack([smalls[int(row_K[at])] for at in known]))
        best = int(rms_K.argmin())
        columns.append((int(row_K[known[best]]), float(cosine_K[known[best]]), float(rms_K[best])))
    table_N3 = np.array(columns, np.float64).reshape(-1, 3)
    return Closest(table_N3[:, 0].astype(np.int64), table_N3[:, 1], table_N3[:, 2])


def saturated_share(image_HW3: np.ndarray) -> float:
    """Share of the levels of a uint8 image that are 0 or 255."""
    return float(((image_HW3 == 0) | (image_HW3 == 255)).mean())


def beyond(value_N: np.ndarray, reference_M: np.ndarray, quantile: float = 0.99) -> float:
    """Share of N values above that quantile of M others; 1 - quantile where both are of one kind."""
    return float((value_N > np.quantile(reference_M, quantile)).mean())


def spread_of(value_N: np.ndarray) -> dict[str, float]:
    """Quantiles of values, without those that are not finite: ``{"1%": …, "50%": …, "99%": …}``; empty for none."""
    finite = value_N[np.isfinite(value_N)]
    points = {"1%": 0.01, "50%": 0.5, "99%": 0.99}
    return {name: float(np.quantile(finite, at)) for name, at in points.items()} if len(finite) else {}
