"""Labelled images in memory: the sets that classifiers are trained on and tested with. Imports no torch."""

# N images of C classes

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mmdd_ray.data.pair import Row
from mmdd_ray.evaluation.pairs import check_images, decoded
from mmdd_ray.features.rejects import Reject


@dataclass(frozen=True)
class LabelledSet:
    """Decoded images, each of one class.

    Raises:
        ValueError: images are not uint8 (N, px, px, 3) with N > 0, or a label is no class.
    """

    images: np.ndarray
    labels: np.ndarray
    """(N,) int64, indices into ``classes``."""
    classes: tuple[int, ...]
    """The label in the data of each class, ascending."""

    def __post_init__(self) -> None:
        check_images(self.images)
        n = self.n_images
        if self.labels.shape != (n,) or not np.isin(self.labels, np.arange(len(self.classes))).all():
            raise ValueError(f"{n} images need as many labels below {len(self.classes)}")

    @classmethod
    def from_rows(
        cls, rows: Sequence[Row], classes: tuple[int, ...], *, image_px: int, max_pixels: int
    ) -> tuple["LabelledSet", list[Reject]]:
        """The usable rows with their images decoded, and what had to be left out.

        Raises:
            UserError: no row is usable.
        """
        found, _, rejects = cls.with_rows(rows, classes, image_px=image_px, max_pixels=max_pixels)
        return found, rejects

    @classmethod
    def with_rows(
        cls, rows: Sequence[Row], classes: tuple[int, ...], *, image_px: int, max_pixels: int
    ) -> tuple["LabelledSet", list[Row], list[Reject]]:
        """As ``from_rows``, with the usable rows, an image each."""
        place = {label: index for index, label in enumerate(classes)}
        strange = [
            (row.shard, row.key, "label of no class")
            for row in rows
            if row.reject is None and row.label not in place
        ]
        known = [row for row in rows if row.reject is not None or row.label in place]
        images, used, rejects = decoded(known, image_px=image_px, max_pixels=max_pixels)
        labels = np.array([place[row.label] for row in used], np.int64)  # type: ignore[index]  # they have one
        return cls(images, labels, classes), used, [*rejects, *strange]

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def n_pairs(self) -> int:
        """An image and its class are a pair."""
        return self.n_images

    @property
    def image_px(self) -> int:
        """Side of the images."""
        return self.images.shape[1]

    @property
    def n_bytes(self) -> int:
        """Bytes of the pixels and labels, uncompressed."""
        return self.images.nbytes + self.labels.nbytes

    def fingerprint(self) -> str:
        """Hash of all pixels and labels."""
        found = blake2b(np.ascontiguousarray(self.images).data, digest_size=16)
        found.update(repr((self.images.shape, self.labels.tolist(), self.classes)).encode())
        return found.hexdigest()
