"""Validation and test images: read once, rows of one image joined, and a sample of the images kept.

Captions of one image may stand in several rows, as in an export with a row for each caption. Images are told apart by
the bytes of their files, so those rows become one image with several captions; searched for one by one they would count
as wrong answers to each other.

Images in common with the training data, which may be millions, are found by the bytes of their files, as the features
have digests of these; those in common with a given set by their pixels, since whoever made it may have written them
anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from heapq import heappush, heappushpop
from typing import Any, NamedTuple

import numpy as np

from mmdd_ray.config import Data
from mmdd_ray.data.contrasts import ContrastList
from mmdd_ray.data.pair import Row, digest64
from mmdd_ray.data.sources import read_pairs
from mmdd_ray.features.rejects import Reject

SET = "set "
"""Before the name of a given set, where parts and sets stand together."""
VAL_SEEN = "; learning rates that val images choose are chosen on them, too"
NAMED_KEYS = 10
"""Images in common that a sentence names at most."""


class HeldOut(NamedTuple):
    """Rows of a source, one an image."""

    rows: list[Row]
    """Usable ones with all captions of their images, in the order of the shards."""
    rejects: list[Reject]
    rows_in: int
    """All that were read, refused ones included."""
    images: int
    """Usable ones that the source has."""
    repeated: int
    """Rows that had nothing new to say of their image."""
    pixels: np.ndarray | None = None
    """(N, px, px, 3) uint8, the images of ``rows`` as students see them, where they were decoded."""

    def decoded(self, used: list[Row], pixels: np.ndarray) -> "HeldOut":
        """With the rows alone whose images could be decoded, and their pixels."""
        return self._replace(rows=used, images=self.images - (len(self.rows) - len(used)), pixels=pixels)

    @property
    def digests(self) -> np.ndarray:
        """(N,) int64 digests of the image files, as the features have them."""
        return np.array([digest64(row.image or b"") for row in self.rows], np.int64)

    def about(self) -> dict[str, int]:
        """Counts, for a report."""
        return {
            "images": len(self.rows),
            "of_images": self.images,
            "captions": sum(len(row.captions) for row in self.rows),
            "rows": self.rows_in,
            "repeated": self.repeated,
        }


class _Image:
    """What all rows say of one image."""

    def __init__(self) -> None:
        self.rows: list[Row] = []  # without the image itself

    def joined(self, image: bytes) -> tuple[Row, list[Row], int]:
        """One row of all; the rows with another label, which are refused; and how many say nothing new."""
        first, *others = sorted(self.rows, key=lambda row: (row.shard, row.index))
        strange = [row for row in others if row.label != first.label]
        captions, repeated = list(first.captions), 0
        for row in others:
            new = [caption for caption in row.captions if caption not in captions]
            repeated += row.label == first.label and not new
            captions += new if row.label == first.label else []
        captions = list(dict.fromkeys(captions))
        return Row(first.shard, first.index, first.key, image, captions, first.label, None), strange, repeated


def read_held_out(data: Data, max_images: int) -> HeldOut:
    """At most `max_images` images of a source, drawn over all of it.

    Which ones depends on their bytes alone, so that every run is tested on the same, whatever its seed and however
    the source is cut into shards. All rows are read, and their captions held in memory; of the images, no more than are
    kept.

    Raises:
        UserError: as ``list_shards``.
    """
    return join_rows((Row(**row) for row in read_pairs(data).iter_rows()), max_images)


def join_rows(rows: Iterable[Row], max_images: int) -> HeldOut:
    """As ``read_held_out``, of rows in any order."""
    images: dict[bytes, _Image] = {}
    kept: dict[bytes, bytes] = {}
    worst: list[tuple[int, bytes]] = []  # a heap of what is kept, the first to go on top
    rejects: list[Reject] = []
    rows_in = 0
    for row in rows:
        rows_in += 1
        if row.image is None:
            rejects.append((row.shard, row.key, row.reject or "missing image"))
            continue
        # a digest is as good as a random number, and the smallest are kept
        digest = blake2b(row.image, digest_size=16, person=b"held out").digest()
        if digest not in images:
            images[digest] = _Image()
            kept[digest] = row.image
            place = (-int.from_bytes(digest), digest)
            if len(worst) < max_images:
                heappush(worst, place)
            else:
                del kept[heappushpop(worst, place)[1]]
        images[digest].rows.append(Row(row.shard, row.index, row.key, None, row.captions, row.label, None))
    joined = []
    repeated = 0
    for digest, one in images.items():
        row, strange, again = one.joined(kept.get(digest, b""))
        repeated += again
        rejects += [(other.shard, other.key, "same image with another label") for other in strange]
        if digest in kept:
            joined.append(row)
    joined.sort(key=lambda row: (row.shard, row.index))
    return HeldOut(joined, sorted(rejects), rows_in, len(images), repeated)


def common_images(
    held_out: Mapping[str, HeldOut | ContrastList],
    training_digests: np.ndarray,
    given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, Any]]:
    """What is known of each part, with the images that others have, too: files of the same bytes, or the same pixels as
    those of a given set.

    Args:
        held_out: By part, "val" first. Images with hard negatives are not compared with others.
        training_digests: (N,) int64 digests of all training images.
        given: By the name of a given set, its images (N, px, px, 3) uint8, as students see them.

    Returns:
        By part what its ``about`` has; ``common``, the number of its images that each other part has, too; and
        ``common_keys``, the SHARD/KEY of all of these images, in the order of the part, where there are any.
    """
    about: dict[str, dict[str, Any]] = {}
    sets = {f"{SET}{name}": pixel_digests(images) for name, images in (given or {}).items()}
    seen: dict[str, np.ndarray] = {"training": training_digests}
    for part, own in held_out.items():
        if isinstance(own, ContrastList):
            about[part] = own.about() | {"common": {}, "common_keys": {}}
            continue
        digests = own.digests
        keys = {other: _names_among(own.rows, digests, known) for other, known in seen.items()}
        if sets:
            assert own.pixels is not None
            pixels = pixel_digests(own.pixels)
            keys |= {other: _names_among(own.rows, pixels, known) for other, known in sets.items()}
        about[part] = own.about() | {
            "common": {other: len(names) for other, names in keys.items()},
            "common_keys": {other: names for other, names in keys.items() if names},
        }
        seen[part] = digests
    return about


def pixel_digests(images: np.ndarray) -> np.ndarray:
    """(N,) int64 digests of images (N, px, px, 3) uint8."""
    return np.array([digest64(image.tobytes()) for image in images], np.int64)


def _names_among(rows: Sequence[Row], digests: np.ndarray, known: np.ndarray) -> list[str]:
    """SHARD/KEY of the rows whose digest is a known one."""
    return [rows[place].name for place in np.flatnonzero(np.isin(digests, known)).tolist()]


def about_held_out(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What people should know of validation and test images, a sentence each."""
    lines = []
    for part, about in found.items():
        size = f"{about['images']:,} images"
        if about["images"] < about["of_images"]:
            drawn = about.get("drawn", "drawn by their content")
            size = f"{about['images']:,} of {about['of_images']:,} images, {drawn}"
        captions = about.get("captions")  # labelled images need none, and earlier versions did not count them
        lines.append(f"{part}: {size}" + (f", captions: {captions:,}" if captions else ""))
        if about["repeated"]:
            lines.append(
                f"{part}: {about['repeated']:,} of {about['rows']:,} rows repeat another, and were left out"
            )
        keys = about.get("common_keys", {})  # runs of earlier versions only have the numbers
        lines += [
            f"{part}: {count:,} of {about['images']:,} images are also {other} images, "
            f"{'pixel for pixel' if other.startswith(SET) else 'byte for byte'}"
            f"{_named(keys.get(other, ()))}{VAL_SEEN if other == 'val' else ''}"
            for other, count in about["common"].items()
            if count
        ]
    return lines


def _named(keys: Sequence[str]) -> str:
    """``: a/1, a/2 and 5 more``; nothing where no key is known."""
    if not keys:
        return ""
    more = f" and {len(keys) - NAMED_KEYS:,} more" if len(keys) > NAMED_KEYS else ""
    return f": {', '.join(keys[:NAMED_KEYS])}{more}"
