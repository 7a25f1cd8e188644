"""Encodings by frozen models, kept for the next time that the same images and captions come."""

# B rows of a batch

from collections.abc import Callable, Hashable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Encode = Callable[[], tuple[Tensor, ...]]
"""Encodes a batch: tensors (B, ...) without a gradient."""


class EncodingCache:
    """Rows of encodings, by the content of what was encoded, in the memory of this machine.

    A batch that has a new row is encoded whole. So every row was encoded among as many as without a cache, and a
    training that was killed, whose cache is gone, goes on with the same numbers. Rows that do not fit are not kept in
    part, since a shuffled batch would hardly ever be complete: the kind that holds the most memory is given up.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[str, dict[Hashable, tuple[Tensor, ...]]] = {}
        self._bytes: dict[str, int] = {}
        self._like: dict[str, tuple[Tensor, ...]] = {}
        """A row of what a kind is encoded as, with its device and layout."""
        self._given_up: set[str] = set()

    def of_images(
        self, kind: str, images_BHW3: NDArray[np.uint8] | Tensor, encode: Encode
    ) -> tuple[Tensor, ...]:
        """The encodings of images, as ``of_keys`` gives them."""
        if not self._keeps(kind):  # then images need not be hashed
            return encode()
        images = np.ascontiguousarray(torch.as_tensor(images_BHW3).cpu().numpy())
        return self.of_keys(kind, [blake2b(image.data, digest_size=16).digest() for image in images], encode)

    def of_keys(self, kind: str, keys: Sequence[Hashable], encode: Encode) -> tuple[Tensor, ...]:
        """The encodings of a batch whose rows have these keys: those that are kept, or else what ``encode`` makes.

        Args:
            kind: tells encodings of different models apart.
        """
        if not self._keeps(kind):
            return encode()
        kept = self._kept.setdefault(kind, {})
        if all(key in kept for key in keys):
            columns = zip(*(kept[key] for key in keys), strict=True)
            return tuple(map(_stacked, columns, self._like[kind]))
        made = encode()
        self._like[kind] = tuple(part[:1].clone() for part in made)
        self._keep(kind, keys, made)
        return made

    def _keeps(self, kind: str) -> bool:
        return self._most_bytes > 0 and kind not in self._given_up

    def _keep(self, kind: str, keys: Sequence[Hashable], made: tuple[Tensor, ...]) -> None:
        columns = [part.detach().cpu() for part in made]
        new = {
            key: tuple(column[row].clone() for column in columns)
            for row, key in enumerate(keys)
            if key not in self._kept[kind]
        }
        self._kept[kind] |= new
        self._bytes[kind] = self._bytes.get(kind, 0) + sum(
            part.nbytes for own in new.values() for part in own
        )
        while sum(self._bytes.values()) > self._most_bytes:
            largest = max(self._bytes, key=self._bytes.__getitem__)
            self._given_up.add(largest)
            del self._kept[largest], self._bytes[largest]


def _stacked(rows: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """The rows as one tensor, laid out as it was encoded: the order of sums, and so their last digits, depend on it."""
    stacked = torch.stack(rows).to(like.device)
    if like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return stacked.to(memory_format=torch.channels_last)
    return stacked
