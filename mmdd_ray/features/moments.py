"""Mergeable first and second moments of paired image and text features, exact for any split of the rows.

Two ``Moments`` add with the pairwise update of Chan, Golub & LeVeque (1983), so any tree of workers gives the
one-pass answer to rounding; memory is O(d²) whatever the number of rows. Pairs may have weights: a pair of weight w
counts as w pairs, so that weight 2 is the pair twice and weight 0 leaves it out.
"""

# B rows of a batch, N images, P image-caption pairs, V image-feature width d_v, L text-feature width d_l

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmdd_ray.storage.tensor_file import pack, unpack

# Rows of one float32 matrix product. Rounding grows with the length of the sum; 1,024 terms keep a scatter
# matrix within 1e-7 of float64 while the product still runs at full BLAS speed. Longer sums continue in
# float64.
_PRODUCT_ROWS = 1024
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

        Rows are centred in float64 by the batch's own mean before the float32 products, so features whose
        means are far larger than their spread lose nothing.

        Args:
            weight_B: of each pair, at least 0; default: 1. Rows of weight 0 are not looked at.

        Raises:
            ValueError: if the shapes are not two matrices with equal numbers of rows, or a feature is not
            finite, or the weights are not one finite number of at least 0 for each pair.
        """
        if image_BV.ndim != 2 or text_BL.ndim != 2 or len(image_BV) != len(text_BL):
            raise ValueError(
                f"moments need image (B, d_v) and text (B, d_l) features of the same B pairs, "
                f"got shapes {image_BV.shape} and {text_BL.shape}"
            )
        if weight_B is not None:
            image_BV, text_BL, weight_B = _weighted(image_BV, text_BL, weight_B)
        if len(image_BV) == 0:
            return cls.empty(image_BV.shape[1], text_BL.shape[1])
        mean_v, centred_v = _centre(image_BV, "image", weight_B)
        mean_l, centred_l = _centre(text_BL, "text", weight_B)
        return cls(
            len(image_BV) if weight_B is None else float(weight_B.sum()),
            mean_v,
            mean_l,
            vv=_product(centred_v, centred_v),
            ll=_product(centred_l, centred_l),
            vl=_product(centred_v, centred_l),
        )

    @classmethod
    def of_images(
        cls,
        image_NV: np.ndarray,
        text_PL: np.ndarray,
        captions_N: np.ndarray,
        weight_P: np.ndarray | None = None,
    ) -> "Moments":
        """Moments where image i stands with each of its ``captions_N[i]`` captions: P = Σ captions_N pairs.

        The rows of ``text_PL``, and the weights if there are any, follow the order of the images.

        Raises:
            ValueError: if the counts do not add up to the number of captions.
        """
        if captions_N.sum() != len(text_PL):
            raise ValueError(
                f"the images claim {captions_N.sum()} captions, but there are {len(text_PL)} text features"
            )
        return cls.of(np.repeat(image_NV, captions_N, axis=0), text_PL, weight_P)

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


def _centre(
    features_BD: np.ndarray, modality: str, weight_B: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The float64 mean (D,) and the float32 rows (B, D) without it, times the root of their weights."""
    if weight_B is None:
        mean_D = features_BD.mean(axis=0, dtype=np.float64)
    else:
        mean_D = (weight_B @ features_BD.astype(np.float64)) / weight_B.sum()
    if not np.isfinite(mean_D).all():
        raise ValueError(
            f"the {modality} features hold values that are not finite; drop or re-encode those rows"
        )
    centred_BD = np.subtract(features_BD, mean_D, dtype=np.float64)
    if weight_B is not None:  # the root on either side of a product, so that vv and ll stay symmetric
        centred_BD *= np.sqrt(weight_B)[:, None]
    return mean_D, centred_BD.astype(np.float32)


def _product(left_BD: np.ndarray, right_BE: np.ndarray) -> np.ndarray:
    """left_BDᵀ right_BE as float64 (D, E), summed over short float32 products."""
    total_DE = np.zeros((left_BD.shape[1], right_BE.shape[1]))
    for start in range(0, len(left_BD), _PRODUCT_ROWS):
        rows = slice(start, start + _PRODUCT_ROWS)
        total_DE += left_BD[rows].T @ right_BE[rows]
    return total_DE
