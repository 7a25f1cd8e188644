"""Pairs whose pixels and texts were learnt: the tensors that a student trains on. Imports no torch.

A learnt text is the words of a caption and an offset of each word's embedding. Stored as embeddings, as published
(arXiv 2510.18583), a text would be a constant, and a student that trains its text encoder could not train its word
embeddings; so it reached 12 % mean recall on a hundred real pairs of `shapes` stored as embeddings and 20 % on the same
pairs as captions.
"""

# N pairs, L tokens, T width of a token embedding, HW image size

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import inf
from typing import Any

import numpy as np
from PIL import Image

from mmdd_ray.errors import UserError
from mmdd_ray.storage.tensor_file import pack, unpack

KIND = "learnt_pairs"
FORMAT_VERSION = 2  # of sets with vectors; all others are of version 1, which older readers take
_ARRAYS = ("pixels", "ids", "mask", "offsets")
_OPTIONAL = ("vectors", "similarity")


@dataclass(frozen=True, eq=False)
class LearntPairs:
    """N images as normalised pixels, each with one text as words and offsets of their embeddings.

    Raises:
        ValueError: the arrays do not describe the same N pairs.
    """

    pixels: np.ndarray
    """(N, 3, H, W) float32, ``(level − mean) / std`` of levels in [0, 255] that need not be whole numbers."""
    ids: np.ndarray
    """(N, L) int64, the words of a text encoder's vocabulary."""
    mask: np.ndarray
    """(N, L) int64: 1 for tokens, 0 for padding."""
    offsets: np.ndarray
    """(N, L, T) float32, added to the embeddings of the words."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vocabulary: str
    """Digest of the word embeddings that ids and offsets are of, ``TextEncoder.vocabulary_digest``."""
    captions: list[list[str]]
    """For each pair the one caption that its text began as, for other text encoders."""
    nearest: list[str]
    """The words nearest to each text, for people."""
    vectors: np.ndarray | None = None
    """(N, F) float32: what a text encoder that stands still would give of each text, where that was learnt."""
    encoder: str = ""
    """Digest of that text encoder, ``TextEncoder.weights_digest``; all others get the words."""
    pooling: str = ""
    """How `vectors` were made from the encoder's last hidden states: "cls", that of the first token; "" as
    ``TextEncoder`` makes them."""
    similarity: np.ndarray | None = None
    """(N, N) float32: how similar images (rows) and texts are, where that was learnt. None: each to its own alone."""
    rates: tuple[float, float] | None = None
    """Learning rates of a student's image side and text side, where they were learnt with the pairs."""

    def __post_init__(self) -> None:
        n, *image = self.pixels.shape
        if len(image) != 3 or image[0] != 3 or image[1] != image[2] or n == 0:
            raise ValueError(f"pixels must be (N, 3, px, px), N > 0, not {self.pixels.shape}")
        shapes = self.ids.shape, self.mask.shape, self.offsets.shape[:-1]
        if any(shape != (n, self.ids.shape[-1]) for shape in shapes):
            raise ValueError(
                f"ids, mask and offsets must be (N, L), (N, L) and (N, L, T) of {n} pairs, not {shapes}"
            )
        if [len(own) for own in self.captions] != [1] * n:
            raise ValueError(f"each of {n} pairs needs the one caption that its text began as")
        if self.vectors is not None and (self.vectors.ndim, len(self.vectors)) != (2, n):
            raise ValueError(f"vectors must be (N, F) of {n} pairs, not {self.vectors.shape}")
        if self.vectors is None and not self.has_words:
            raise ValueError(f"the texts of {n} pairs have neither words nor vectors")
        if self.similarity is not None and self.similarity.shape != (n, n):
            raise ValueError(f"similarity must be (N, N) of {n} pairs, not {self.similarity.shape}")
        if len(self.nearest) != n:
            raise ValueError(f"each of {n} pairs needs the words nearest to its text")
        if self.rates is not None and not all(0 < rate < inf for rate in self.rates):
            raise ValueError(f"learning rates must be positive and finite, not {self.rates}")

    @property
    def n_images(self) -> int:
        return len(self.pixels)

    @property
    def n_pairs(self) -> int:
        return len(self.pixels)

    @property
    def has_words(self) -> bool:
        """Whether the texts are words, too; otherwise they are ``vectors`` alone, and L is 0."""
        return self.ids.shape[1] > 0

    @property
    def image_px(self) -> int:
        """Side of the images."""
        return self.pixels.shape[2]

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays, as they are stored."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def flat_captions(self) -> list[str]:
        """The N captions."""
        return [caption for own in self.captions for caption in own]

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        return blake2b(self.to_bytes(), digest_size=16).hexdigest()

    def levels(self) -> np.ndarray:
        """The pixels as levels, (N, 3, H, W) float32; learnt ones may lie outside [0, 255]."""
        return self.pixels * _of_channels(self.std) + _of_channels(self.mean)

    def share_in_range(self) -> float:
        """Share of the levels in [0, 255], but for rounding."""
        levels = self.levels()
        return float(((levels > -0.5) & (levels < 255.5)).mean())

    def images(self) -> np.ndarray:
        """The images as people see them, (N, H, W, 3) uint8: levels rounded, and cut to [0, 255]."""
        return self.levels().round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def resized(self, image_px: int) -> "LearntPairs":
        """The same texts with images of another side, made from the 8-bit ``images``; itself if it has that side."""
        if image_px == self.image_px:
            return self
        size = (image_px, image_px)
        images = np.stack(
            [
                np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
                for image in self.images()
            ]
        )
        pixels = (images.transpose(0, 3, 1, 2) - _of_channels(self.mean)) / _of_channels(self.std)
        return replace(self, pixels=np.ascontiguousarray(pixels))

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "LearntPairs":
        """The same pairs with pixels normalised by other statistics; itself if they are its own."""
        if (mean, std) == (self.mean, self.std):
            return self
        return replace(
            self,
            pixels=(self.levels() - _of_channels(mean)) / _of_channels(std),
            mean=tuple(mean),
            std=tuple(std),
        )

    def to_bytes(self) -> bytes:
        """A safetensors file; ``from_bytes`` gives back exactly these pairs."""
        about = {
            "format_version": 1 if self.vectors is None else FORMAT_VERSION,
            "mean": self.mean,
            "std": self.std,
            "vocabulary": self.vocabulary,
            "captions": self.flat_captions,
            "nearest": self.nearest,
        }
        if self.encoder:
            about["encoder"] = self.encoder
        if self.pooling:
            about["pooling"] = self.pooling
        if self.rates is not None:
            about["rates"] = self.rates
        return pack(KIND, self._arrays(), about)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name in (*_ARRAYS, *_OPTIONAL) if (value := getattr(self, name)) is not None}

    @classmethod
    def from_bytes(cls, content: bytes) -> "LearntPairs":
        """The pairs of a ``to_bytes``.

        Raises:
            UserError: the bytes are something else, or of a newer version of mmdd-ray.
        """
        try:
            tensors, about = unpack(KIND, content)
            if about["format_version"] > FORMAT_VERSION:
                raise ValueError(f"they have format version {about['format_version']}; update mmdd-ray")
            return cls(
                **{name: tensors[name] for name in _ARRAYS},
                **{name: tensors[name] for name in _OPTIONAL if name in tensors},
                encoder=str(about.get("encoder", "")),
                pooling=str(about.get("pooling", "")),
                rates=_both_rates(about["rates"]) if "rates" in about else None,
                mean=tuple(map(float, about["mean"])),
                std=tuple(map(float, about["std"])),
                vocabulary=str(about["vocabulary"]),
                captions=[[str(caption)] for caption in about["captions"]],
                nearest=[str(words) for words in about["nearest"]],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"these are no learnt pairs: {error}") from error

    @classmethod
    def interleaved(cls, shares: Sequence["LearntPairs"]) -> "LearntPairs":
        """The pairs of which the r-th of k shares holds every k-th from the r-th on."""
        place = np.argsort(
            np.concatenate([r + len(shares) * np.arange(s.n_pairs) for r, s in enumerate(shares)])
        )
        captions = [own for share in shares for own in share.captions]
        nearest = [words for share in shares for words in share.nearest]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(share, name) for share in shares])[place] for name in _ARRAYS
        }
        return replace(
            shares[0],
            **arrays,
            captions=[captions[i] for i in place],
            nearest=[nearest[i] for i in place],
        )


def _both_rates(given: Sequence[float]) -> tuple[float, float]:
    image, text = map(float, given)
    return image, text


def _of_channels(values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None]
