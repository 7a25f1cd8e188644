"""Pairs in memory: the sets that students are trained on and searched with. Imports no torch."""

# N images, P captions of them

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.pair import Row
from mmdd_ray.errors import UserError
from mmdd_ray.features.rejects import Reject, most_frequent


@dataclass(frozen=True)
class PairSet:
    """Decoded images and the captions of each: a set to train on or to search in.

    Raises:
        ValueError: images are not uint8 (N, px, px, 3) with N > 0, or not every image has a caption.
    """

    images: np.ndarray
    captions: list[list[str]]

    def __post_init__(self) -> None:
        check_images(self.images)
        n = self.n_images
        if len(self.captions) != n or not all(self.captions):
            raise ValueError(f"each of {n} images needs a caption; {sum(map(bool, self.captions))} have one")

    @classmethod
    def from_rows(
        cls, rows: Sequence[Row], *, image_px: int, max_pixels: int
    ) -> tuple["PairSet", list[Reject]]:
        """The usable rows with their images decoded, and what had to be left out.

        Raises:
            ValueError: if no row is usable.
        """
        found, _, rejects = cls.with_rows(rows, image_px=image_px, max_pixels=max_pixels)
        return found, rejects

    @classmethod
    def with_rows(
        cls, rows: Sequence[Row], *, image_px: int, max_pixels: int
    ) -> tuple["PairSet", list[Row], list[Reject]]:
        """As ``from_rows``, with the usable rows, an image each."""
        images, used, rejects = decoded(rows, image_px=image_px, max_pixels=max_pixels)
        return cls(images, [row.captions for row in used]), used, rejects

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def image_px(self) -> int:
        """Side of the images."""
        return self.images.shape[1]

    @property
    def n_pairs(self) -> int:
        """An image with c captions counts as c pairs."""
        return sum(map(len, self.captions))

    @property
    def n_bytes(self) -> int:
        """Bytes of the pixels and of the captions' UTF-8, uncompressed, so that sets can be compared."""
        return self.images.nbytes + sum(len(caption.encode()) for caption in self.flat_captions)

    @property
    def flat_captions(self) -> list[str]:
        """All P captions, in the order of their images."""
        return [caption for own in self.captions for caption in own]

    @property
    def owner_P(self) -> np.ndarray:
        """Image row of each caption, int64."""
        return np.repeat(np.arange(self.n_images), [len(own) for own in self.captions])

    def fingerprint(self) -> str:
        """Hash of all pixels and captions."""
        found = blake2b(np.ascontiguousarray(self.images).data, digest_size=16)
        found.update(repr((self.images.shape, self.captions)).encode())
        return found.hexdigest()


def check_images(images: np.ndarray) -> None:
    """Raises ``ValueError`` unless they are uint8 (N, px, px, 3) with N > 0."""
    n, *shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 3 or shape != [shape[0], shape[0], 3] or n == 0:
        raise ValueError(f"images must be uint8 (N, px, px, 3), N > 0, not {images.dtype} {images.shape}")


def decoded(
    rows: Sequence[Row], *, image_px: int, max_pixels: int
) -> tuple[np.ndarray, list[Row], list[Reject]]:
    """Images (N, px, px, 3) uint8 of the usable rows, these rows, and what had to be left out.

    Raises:
        UserError: no row is usable.
    """
    # Filled in place: a list that is stacked at the end would need twice the memory. Where rows are left out,
    # the pages behind the last image are never touched.
    images = np.empty((len(rows), image_px, image_px, 3), dtype=np.uint8)
    used: list[Row] = []
    rejects: list[Reject] = []
    for row in rows:
        if row.image is None:
            rejects.append((row.shard, row.key, row.reject or "missing image"))
            continue
        try:
            image = decode_image(row.image, max_pixels=max_pixels, image_px=image_px)
        except BadImage as reason:
            rejects.append((row.shard, row.key, str(reason)))
            continue
        images[len(used)] = image
        used.append(row)
    if not used:
        reasons = Counter(reason for *_, reason in rejects)
        why = f"; {most_frequent(reasons)}" if reasons else ""
        raise UserError(f"none of the {len(rows)} rows can be used{why}")
    return images[: len(used)], used, rejects
