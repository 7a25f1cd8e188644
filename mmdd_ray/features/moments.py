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

from mmdd_ray.storage.tensor_file import pack, unpack

# Rows of one float32 matrix product. Rounding grows with the length of the sum; 1,024 terms keep a scatter
# matrix within 1e-7 of float64 while the product still runs at full BLAS speed. Longer sums continue in
# float64, which costs a tenth of the product at 512 + 512.
_PRODUCT_ROWS = 1024
# Products that are added up in float32 first.
_PRODUCTS = 4
# Squared distance of rows from their shift, over their squared spread, from which on they get another one.
_FAR = 100.0
# Rows of one float32 sum, whose terms, unlike those of a scatter, may all have one sign.
_SUM_ROWS = 64
# What is left of a sum of weights when all of them are taken out again, relative to the sum: nothing but rounding.
_ROUNDING = 1e-12
_ARRAYS = ("mean_v", "mean_l", "vv", "ll", "vl")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred scatter matrices of pairs (h_v, h_l); all arrays are float64.

    A scatter matrix is the sum, not the mean, of outer products of centred rows: ``vl = Σ w (h_v − μ_v)(h_l −
    μ_l)ᵀ`` with the weights w, which are 1 unless others are given.
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
        return Moments(
            count,
            self.mean_v + gap_v * share,
            self.mean_l + gap_l * share,
            self.vv + other.vv + np.outer(gap_v, gap_v) * weight,
            self.ll + other.ll + np.outer(gap_l, gap_l) * weight,
            self.vl + other.vl + np.outer(gap_v, gap_l) * weight,
        )

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
            ValueError: if the file holds no moments, or ``encoder`` is given and the moments are of another
            one.
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
        self._count: int | float = 0
        self._waiting_count: int | float = 0
        self._sides: tuple[_Side, _Side] | None = None
        self._cross = _Scatter(0, 0)
        self._root_R = np.ones(_PRODUCT_ROWS, np.float32)  # of the weights of the waiting rows
        self._waiting = 0

    def add(self, image_BV: np.ndarray, text_BL: np.ndarray, weight_B: np.ndarray | None = None) -> None:
        """Adds a batch: image (B, d_v) and text (B, d_l) features of the same pairs, any float dtype.

        Features that are not finite are found with the products of their rows, at the latest by ``moments``.

        Args:
            weight_B: of each pair, at least 0; default: 1. Rows of weight 0 are not looked at.

        Raises:
            ValueError: if the shapes are not two matrices with equal numbers of rows and of the widths of earlier
            batches, or a feature is not finite, or the weights are not one finite number of at least 0 for each pair.
        """
        if image_BV.ndim != 2 or text_BL.ndim != 2 or len(image_BV) != len(text_BL):
            raise ValueError(
                f"moments need image (B, d_v) and text (B, d_l) features of the same B pairs, "
                f"got shapes {image_BV.shape} and {text_BL.shape}"
            )
        if self._sides is None:
            self._sides = _Side("image", image_BV.shape[1]), _Side("text", text_BL.shape[1])
            self._cross = _Scatter(image_BV.shape[1], text_BL.shape[1])
        for side, features_BD in zip(self._sides, (image_BV, text_BL), strict=True):
            side.check_width(features_BD)
        if weight_B is not None:
            image_BV, text_BL, weight_B = _weighted(image_BV, text_BL, weight_B)
        root_B = None if weight_B is None else np.sqrt(weight_B).astype(np.float32)
        start = 0
        while start < len(image_BV):
            rows = slice(start, start + _PRODUCT_ROWS - self._waiting)
            place = slice(self._waiting, self._waiting + len(image_BV[rows]))
            self._root_R[place] = 1 if root_B is None else root_B[rows]
            for side, features_BD in zip(self._sides, (image_BV, text_BL), strict=True):
                side.take(place, features_BD[rows], None if root_B is None else root_B[rows])
            self._waiting_count += len(image_BV[rows]) if weight_B is None else float(weight_B[rows].sum())
            start, self._waiting = rows.stop, place.stop
            if self._waiting == _PRODUCT_ROWS:
                self._multiply()

    def moments(self) -> Moments:
        """Moments of all pairs so far.

        Raises:
            ValueError: if nothing was added, or a feature is not finite.
        """
        if self._sides is None:
            raise ValueError("moments of no batch have no widths; add one")
        if self._waiting:
            self._multiply()
        return self._multiplied(*self._sides)

    def _multiplied(self, image: "_Side", text: "_Side") -> Moments:
        """Moments of all pairs but those that wait."""
        current = self._current(image, text)
        return current if self._done is None else self._done + current

    def _current(self, image: "_Side", text: "_Side") -> Moments:
        """Moments of the pairs with the present shifts."""
        if self._count == 0:
            return Moments.empty(len(image.shift_D), len(text.shift_D))
        gap_V, gap_L = image.sum_D / self._count, text.sum_D / self._count  # from the shifts to the means
        return Moments(
            self._count,
            image.shift_D + gap_V,
            text.shift_D + gap_L,
            vv=image.scatter.total() - np.outer(gap_V, gap_V) * self._count,
            ll=text.scatter.total() - np.outer(gap_L, gap_L) * self._count,
            vl=self._cross.total() - np.outer(gap_V, gap_L) * self._count,
        )

    def _multiply(self) -> None:
        """Adds the products of the waiting rows, which then wait no longer."""
        assert self._sides is not None
        root_R, count = self._root_R[: self._waiting], self._waiting_count
        found = [side.products(root_R) for side in self._sides]
        if any(_is_far(sum_D / count, product_DD.diagonal() / count) for sum_D, product_DD in found):
            self._done = self._multiplied(*self._sides)
            for side, (sum_D, _) in zip(self._sides, found, strict=True):
                side.shift_again(sum_D / count, root_R)
            self._cross, self._count = _Scatter(*self._cross.shape), 0
            found = [side.products(root_R) for side in self._sides]
        image, text = self._sides
        for side, (sum_D, product_DD) in zip(self._sides, found, strict=True):
            side.sum_D += sum_D
            side.scatter.add(product_DD)
        self._cross.add(image.waiting(root_R).T @ text.waiting(root_R))
        self._count += count
        self._waiting, self._waiting_count = 0, 0


def _is_far(gap_D: np.ndarray, second_D: np.ndarray) -> bool:
    """Whether rows lie many times their spread away, by their mean and mean square about a shift."""
    distance = float(gap_D @ gap_D)
    return distance > _FAR * max(float(second_D.sum()) - distance, 0.0)


class _Scatter:
    """A sum of float32 products: some of them in float32, then in float64, which takes longer."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = rows, columns
        self._total, self._part, self._parts = np.zeros(self.shape), np.zeros(self.shape, np.float32), 0

    def add(self, product: np.ndarray) -> None:
        self._part += product
        self._parts += 1
        if self._parts == _PRODUCTS:
            self.total()

    def total(self) -> np.ndarray:
        """The sum so far, float64."""
        if self._parts:
            self._total += self._part
            self._part[:], self._parts = 0, 0
        return self._total


class _Side:
    """The sums of one modality."""

    def __init__(self, modality: str, width: int) -> None:
        self.modality = modality
        self._rows_RD = np.empty((_PRODUCT_ROWS, width), np.float32)
        self._is_new = True
        self._begin(np.zeros(width, np.float32))

    def _begin(self, shift_D: np.ndarray) -> None:
        width = len(shift_D)
        self.shift_D = shift_D  # float32, so that rows are shifted by just that
        self.sum_D = np.zeros(width)
        self.scatter = _Scatter(width, width)

    def check_width(self, features_BD: np.ndarray) -> None:
        if features_BD.shape[1] != len(self.shift_D):
            raise ValueError(
                f"{self.modality} features {features_BD.shape[1]} wide do not combine with such of width "
                f"{len(self.shift_D)}; use one encoder for all of the data"
            )

    def take(self, place: slice, features_BD: np.ndarray, root_B: np.ndarray | None) -> None:
        """Puts rows, shifted and times the root of their weights, among those that wait."""
        if self._is_new:
            self.shift_D = features_BD.mean(axis=0, dtype=np.float64).astype(np.float32)
            self._is_new = False
        rows_BD = self._rows_RD[place]
        if features_BD.dtype == np.float64:
            rows_BD[:] = features_BD - self.shift_D
        else:
            rows_BD[:] = features_BD  # exact
            rows_BD -= self.shift_D
        if root_B is not None:  # on either side of a product, so that vv and ll stay symmetric
            rows_BD *= root_B[:, None]

    def shift_again(self, gap_D: np.ndarray, root_R: np.ndarray) -> None:
        """Begins new sums about a shift that lies ``gap_D`` from the present one; rows that wait are moved to it."""
        moved_D = (self.shift_D + gap_D).astype(np.float32)
        self.waiting(root_R)[:] -= root_R[:, None] * (moved_D - self.shift_D)
        self._begin(moved_D)

    def waiting(self, root_R: np.ndarray) -> np.ndarray:
        """The rows that wait, (R, D); as many as have a root of their weight."""
        return self._rows_RD[: len(root_R)]

    def products(self, root_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted sum (D,) float64 and scatter (D, D) float32 of the rows that wait."""
        rows_RD = self.waiting(root_R)
        sum_D = np.zeros(rows_RD.shape[1])
        for start in range(0, len(rows_RD), _SUM_ROWS):
            rows = slice(start, start + _SUM_ROWS)
            sum_D += root_R[rows] @ rows_RD[rows]
        if not np.isfinite(sum_D).all():
            raise ValueError(
                f"the {self.modality} features hold values that are not finite; drop or re-encode those rows"
            )
        return sum_D, rows_RD.T @ rows_RD


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
