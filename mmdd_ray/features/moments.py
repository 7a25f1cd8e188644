"""Mergeable first and second moments of paired image and text features, exact for any split of the rows.

``MomentsSum`` adds up batches in one pass, at the speed of their matrix products. Two ``Moments`` add with the pairwise
update of Chan, Golub & LeVeque (1983), so any tree of workers gives the one-pass answer to rounding; memory is O(d²)
whatever the number of rows. Pairs may have weights: a pair of weight w counts as w pairs, so that weight 2 is the pair
twice and weight 0 leaves it out.
"""

# B rows of a batch, N images, P image-caption pairs, V image-feature width d_v, L text-feature width d_l

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg.blas import ssyrk

from mmdd_ray.storage.tensor_file import pack, unpack

# Rows of one float32 matrix product, which stay in a core's cache at 512 + 512.
_PRODUCT_ROWS = 512
# Products that are added up in float32; longer sums continue in float64. Rounding grows with the length of the sum:
# 4,096 terms keep a scatter matrix within 1e-6 of its spread.
_PRODUCTS = 8
# Squared distance of rows from their shift, over their squared spread, from which on they get another one.
_FAR = 100.0
# Rows of one float32 sum, whose terms, unlike those of a scatter, may all have one sign.
_SUM_ROWS = 64
# What is left of a sum of weights when all of them are taken out again, relative to the sum: nothing but rounding.
_ROUNDING = 1e-12
_MODALITIES = ("image", "text")
_ARRAYS = ("mean_v", "mean_l", "vv", "ll", "vl")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred scatter matrices of pairs (h_v, h_l); all arrays are float64.

    A scatter matrix is the sum, not the mean, of outer products of centred rows: ``vl = Σ w (h_v − μ_v)(h_l −
    μ_l)ᵀ`` with the weights w, which are 1 unless others are given. Moments of parts add up to those of the whole:

    Examples:
        >>> image, text = np.array([[1.0], [2.0], [6.0]]), np.array([[0.0], [1.0], [2.0]])
        >>> parts = Moments.of(image[:1], text[:1]) + Moments.of(image[1:], text[1:])
        >>> parts.count, parts.mean_v.tolist(), parts.vl.tolist()
        (3, [3.0], [[5.0]])
    """

    count: int | float
    """Number of pairs, or the sum of their weights."""
    mean_v: np.ndarray
    """Mean image feature, (d_v,)."""
    mean_l: np.ndarray
    """Mean text feature, (d_l,)."""
    vv: np.ndarray
    """Image scatter, (d_v, d_v)."""
    ll: np.ndarray
    """Text scatter, (d_l, d_l)."""
    vl: np.ndarray
    """Cross scatter, (d_v, d_l)."""

    @classmethod
    def empty(cls, d_v: int, d_l: int) -> "Moments":
        """Moments of no pairs, the neutral element of ``+``."""
        return cls(
            0, np.zeros(d_v), np.zeros(d_l), np.zeros((d_v, d_v)), np.zeros((d_l, d_l)), np.zeros((d_v, d_l))
        )

    @classmethod
    def of(cls, image_BV: np.ndarray, text_BL: np.ndarray, weight_B: np.ndarray | None = None) -> "Moments":
        """Moments of a batch: image (B, d_v) and text (B, d_l) features of the same pairs, any float dtype.

        As ``MomentsSum`` adds them up.

        Raises:
            ValueError: as ``MomentsSum.add``.
        """
        total = MomentsSum()
        total.add(image_BV, text_BL, weight_B)
        return total.moments()

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the pairs of both."""
        self._check_widths(other)
        count = self.count + other.count
        if count == 0:
            return self
        gap_v, gap_l = other.mean_v - self.mean_v, other.mean_l - self.mean_l
        share, weight = other.count / count, self.count * other.count / count
        vv, ll, vl = self.vv + other.vv, self.ll + other.ll, self.vl + other.vl
        for scatter, left, right in ((vv, gap_v, gap_v), (ll, gap_l, gap_l), (vl, gap_v, gap_l)):
            scatter += _outer(left, right, weight)
        return Moments(count, self.mean_v + gap_v * share, self.mean_l + gap_l * share, vv, ll, vl)

    def __sub__(self, other: "Moments") -> "Moments":
        """Moments without ``other``, whose pairs had been counted in ``self`` (duplicates found later).

        Raises:
            ValueError: if ``other`` holds more pairs than ``self``.
        """
        self._check_widths(other)
        count = self.count - other.count
        if count < -_ROUNDING * self.count:
            raise ValueError(f"cannot remove {other.count} pairs from moments of {self.count}")
        if count <= _ROUNDING * self.count:
            return Moments.empty(len(self.mean_v), len(self.mean_l))
        mean_v = self.mean_v + (self.mean_v - other.mean_v) * (other.count / count)
        mean_l = self.mean_l + (self.mean_l - other.mean_l) * (other.count / count)
        gap_v, gap_l = other.mean_v - mean_v, other.mean_l - mean_l
        weight = count * other.count / self.count
        return Moments(
            count,
            mean_v,
            mean_l,
            self.vv - other.vv - np.outer(gap_v, gap_v) * weight,
            self.ll - other.ll - np.outer(gap_l, gap_l) * weight,
            self.vl - other.vl - np.outer(gap_v, gap_l) * weight,
        )

    def covariance(self, which: Literal["vv", "ll", "vl"], ddof: int = 0) -> np.ndarray:
        """One of the covariance matrices, scatter / (count − ddof); ddof=1 is the unbiased one of CovMatch.

        Raises:
            ValueError: if there are no more than ``ddof`` pairs.
        """
        if self.count <= ddof:
            raise ValueError(f"a covariance with ddof={ddof} needs more than {ddof} pairs, got {self.count}")
        scatter = {"vv": self.vv, "ll": self.ll, "vl": self.vl}[which]
        return scatter / (self.count - ddof)

    @property
    def covariance_vv(self) -> np.ndarray:
        """C_vv, (d_v, d_v), normalised by 1/n."""
        return self.covariance("vv")

    @property
    def covariance_ll(self) -> np.ndarray:
        """C_ll, (d_l, d_l), normalised by 1/n."""
        return self.covariance("ll")

    @property
    def cross_covariance(self) -> np.ndarray:
        """C_vl, (d_v, d_l), normalised by 1/n."""
        return self.covariance("vl")

    def to_bytes(self, encoder: str, feature_dtype: str) -> bytes:
        """The moments as safetensors; count, encoder's name and features' dtype stand in the metadata."""
        facts = {"count": self.count, "encoder": encoder, "feature_dtype": feature_dtype}
        return pack("moments", {name: getattr(self, name) for name in _ARRAYS}, facts)

    @classmethod
    def from_bytes(cls, data: bytes, encoder: str | None = None) -> "Moments":
        """Reads what ``to_bytes`` wrote.

        Raises:
            ValueError: if the file holds no moments, or those of another encoder than ``encoder``.
        """
        arrays, facts = unpack("moments", data)
        if encoder is not None and facts["encoder"] != encoder:
            raise ValueError(
                f"the moments are of encoder {facts['encoder']!r}, not {encoder!r}; "
                f"recompute the features or set that encoder"
            )
        return cls(facts["count"], **arrays)

    def _check_widths(self, other: "Moments") -> None:
        if self.vl.shape != other.vl.shape:
            raise ValueError(
                f"moments of feature widths {self.vl.shape} and {other.vl.shape} do not combine; "
                f"use one encoder for all of the data"
            )


class MomentsSum:
    """Adds up the moments of batches of pairs.

    Rows are shifted by the mean of those that came first before their float32 products. Where rows lie so far from it
    that the products would lose digits, the sum goes on with a shift of its own, and both are merged as moments are.
    """

    def __init__(self) -> None:
        self._done: Moments | None = None  # with earlier shifts
        self._sums: _Sums | None = None  # with the present one
        self._sides: tuple[slice, slice] | None = None  # columns of image and text features
        self._waiting = 0
        self._waiting_count: int | float = 0

    def add(self, image_BV: np.ndarray, text_BL: np.ndarray, weight_B: np.ndarray | None = None) -> None:
        """Adds a batch: image (B, d_v) and text (B, d_l) features of the same pairs, any float dtype.

        Features that are not finite are found with the products of their rows, at the latest by ``moments``.

        Args:
            weight_B: of each pair, at least 0; default: 1. Rows of weight 0 are not looked at.

        Raises:
            ValueError: if the shapes are not two matrices with equal numbers of rows and of the widths of earlier
            batches, or a feature is not finite, or the weights are not one finite number of at least 0 for each pair.
        """
        sides = self._columns(image_BV, text_BL)
        if weight_B is not None:
            image_BV, text_BL, weight_B = _weighted(image_BV, text_BL, weight_B)
        if not len(image_BV):
            return
        if self._sums is None:
            first = (rows[:_PRODUCT_ROWS].mean(axis=0, dtype=np.float64) for rows in (image_BV, text_BL))
            self._sums = _Sums(np.concatenate(list(first)).astype(np.float32))
            self._rows_RD = np.empty((_PRODUCT_ROWS, len(self._sums.shift_D)), np.float32)
            self._root_R = np.empty(_PRODUCT_ROWS, np.float32)  # of the weights of the waiting rows
        root_B = None if weight_B is None else np.sqrt(weight_B).astype(np.float32)
        start = 0
        while start < len(image_BV):
            rows = slice(start, start + _PRODUCT_ROWS - self._waiting)
            place = slice(self._waiting, self._waiting + len(image_BV[rows]))
            for side, features_BD in zip(sides, (image_BV, text_BL), strict=True):
                shift_D = self._sums.shift_D[side]  # float32 at least, in which float16 is exact
                np.subtract(features_BD[rows], shift_D, out=self._rows_RD[place, side], casting="same_kind")
            self._root_R[place] = 1 if root_B is None else root_B[rows]
            if root_B is not None:  # on either side of a product
                self._rows_RD[place] *= root_B[rows, None]
            self._waiting_count += len(image_BV[rows]) if weight_B is None else float(weight_B[rows].sum())
            start, self._waiting = rows.stop, place.stop
            if self._waiting == _PRODUCT_ROWS:
                self._multiply(self._sums)

    def moments(self) -> Moments:
        """Moments of all pairs so far.

        Raises:
            ValueError: if nothing was added, or a feature is not finite.
        """
        if self._sides is None:
            raise ValueError("moments of no batch have no widths; add one")
        if self._sums is None:
            return Moments.empty(*(side.stop - side.start for side in self._sides))
        if self._waiting:
            self._multiply(self._sums)
        return self._so_far(self._sums)

    def _columns(self, image_BV: np.ndarray, text_BL: np.ndarray) -> tuple[slice, slice]:
        """Where the features of a batch stand; raises ``ValueError`` unless they fit one another and earlier ones."""
        if image_BV.ndim != 2 or text_BL.ndim != 2 or len(image_BV) != len(text_BL):
            raise ValueError(
                f"moments need image (B, d_v) and text (B, d_l) features of the same B pairs, "
                f"got shapes {image_BV.shape} and {text_BL.shape}"
            )
        d_v, d_l = image_BV.shape[1], text_BL.shape[1]
        if self._sides is None:
            self._sides = slice(0, d_v), slice(d_v, d_v + d_l)
        for name, side, width in zip(_MODALITIES, self._sides, (d_v, d_l), strict=True):
            if width != side.stop - side.start:
                raise ValueError(
                    f"{name} features {width} wide do not combine with such of width {side.stop - side.start}; "
                    f"use one encoder for all of the data"
                )
        return self._sides

    def _so_far(self, sums: "_Sums") -> Moments:
        """Moments of all pairs but those that wait."""
        assert self._sides is not None
        current = sums.moments(*self._sides)
        return current if self._done is None else self._done + current

    def _multiply(self, sums: "_Sums") -> None:
        """Adds the products of the waiting rows, which then wait no longer."""
        assert self._sides is not None
        rows_RD, root_R, count = (
            self._rows_RD[: self._waiting],
            self._root_R[: self._waiting],
            self._waiting_count,
        )
        sum_D = _sum_of(rows_RD, root_R)
        for name, side in zip(_MODALITIES, self._sides, strict=True):
            if not np.isfinite(sum_D[side]).all():
                raise ValueError(
                    f"the {name} features hold values that are not finite; drop or re-encode those rows"
                )
        if any(_is_far(rows_RD[:, side], sum_D[side], count) for side in self._sides):
            self._done = self._so_far(sums)
            moved_D = (sums.shift_D + sum_D / count).astype(np.float32)
            rows_RD -= root_R[:, None] * (moved_D - sums.shift_D)
            self._sums = sums = _Sums(moved_D)
            sum_D = _sum_of(rows_RD, root_R)
        sums.add(rows_RD, sum_D, count)
        self._waiting, self._waiting_count = 0, 0


def _sum_of(rows_RD: np.ndarray, root_R: np.ndarray) -> np.ndarray:
    """Weighted sum (D,) float64 of rows that are multiplied by the roots of their weights already."""
    sum_D = np.zeros(rows_RD.shape[1])
    for start in range(0, len(rows_RD), _SUM_ROWS):
        rows = slice(start, start + _SUM_ROWS)
        sum_D += root_R[rows] @ rows_RD[rows]
    return sum_D


def _is_far(rows_RD: np.ndarray, sum_D: np.ndarray, count: int | float) -> bool:
    """Whether rows lie many times their spread away from their shift."""
    gap_D = sum_D / count
    distance, second = float(gap_D @ gap_D), float(np.einsum("rd,rd->", rows_RD, rows_RD)) / count
    return distance > _FAR * max(second - distance, 0.0)


class _Sums:
    """Sums of shifted rows, image and text features side by side: one product of a matrix with itself has all three
    scatters, and adds to its upper triangle in place."""

    def __init__(self, shift_D: np.ndarray) -> None:
        self.shift_D = shift_D  # float32, so that rows are shifted by just that
        self._sum_D = np.zeros(len(shift_D))
        self._count: int | float = 0
        # Fortran's order, which the product writes to without a copy; below the diagonal both stay 0
        self._total_DD = np.zeros((len(shift_D), len(shift_D)), order="F")
        self._part_DD = np.zeros_like(self._total_DD, np.float32)
        self._parts = 0

    def add(self, rows_RD: np.ndarray, sum_D: np.ndarray, count: int | float) -> None:
        """Adds rows whose sum is known."""
        adds = float(self._parts > 0)
        self._part_DD = ssyrk(1.0, rows_RD.T, beta=adds, c=self._part_DD, overwrite_c=True)
        self._parts += 1
        if self._parts == _PRODUCTS:
            self._carry()
        self._sum_D += sum_D
        self._count += count

    def _carry(self) -> None:
        """Adds what was added up in float32 to the float64 sum."""
        if self._parts:
            self._total_DD += self._part_DD
            self._parts = 0

    def moments(self, image: slice, text: slice) -> Moments:
        """Moments of the rows, whose features stand in these columns."""
        self._carry()
        count = self._count or 1
        gap_D = self._sum_D / count  # from the shift to the mean
        mean_D = self.shift_D + gap_D
        vv, ll = (_mirrored(self._total_DD[side, side]) for side in (image, text))
        vl = self._total_DD[image, text].copy(order="C")
        for scatter, left, right in ((vv, image, image), (ll, text, text), (vl, image, text)):
            scatter -= _outer(gap_D[left], gap_D[right], count)
        return Moments(self._count, mean_D[image], mean_D[text], vv, ll, vl)


def _outer(left_D: np.ndarray, right_D: np.ndarray, weight: float) -> np.ndarray:
    """weight · left rightᵀ, which is symmetric where both are the same."""
    root = np.sqrt(weight)
    return np.outer(left_D * root, right_D * root)


def _mirrored(upper_DD: np.ndarray) -> np.ndarray:
    """The symmetric matrix with this upper triangle, below which there are zeros."""
    both_DD = upper_DD + upper_DD.T
    np.fill_diagonal(both_DD, upper_DD.diagonal())
    return both_DD


def _weighted(
    image_BV: np.ndarray, text_BL: np.ndarray, weight_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The rows that have a weight, and their float64 weights; None where all are 1, which need no arithmetic."""
    if weight_B.shape != (len(image_BV),) or not (np.isfinite(weight_B).all() and (weight_B >= 0).all()):
        raise ValueError(
            f"moments of {len(image_BV)} pairs need as many finite weights of at least 0, got shape {weight_B.shape}"
        )
    counted = weight_B > 0
    weights = weight_B[counted].astype(np.float64)
    return image_BV[counted], text_BL[counted], None if (weights == 1).all() else weights
