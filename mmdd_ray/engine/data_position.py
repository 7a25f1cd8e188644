"""The batches of a training, epoch after epoch, and where the next one stands. Imports neither torch nor Ray."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mmdd_ray.errors import UserError

B = TypeVar("B")
Batch = tuple[NDArray[np.uint8], list[str]]
"""Images (B, H, W, 3) and one caption each."""
OpenEpoch = Callable[[int], Iterable[Batch]]
"""Gives the batches of an epoch, the same ones in the same order at every call."""


class DataPosition:
    """A position in the data that is saved with a training and moves as batches are taken."""

    def __init__(self, epoch: int = 0, batch: int = 0) -> None:
        self.epoch, self.batch = epoch, batch

    def batches(self, open_epoch: Callable[[int], Iterable[B]], *, too_few: str) -> Iterator[B]:
        """Endless batches from the current position on.

        Raises:
            UserError: an epoch has no batch; says ``too_few``.
        """
        while True:
            number = 0
            for number, batch in enumerate(open_epoch(self.epoch), start=1):
                if number > self.batch:
                    self.batch = number
                    yield batch
            if number == 0:
                raise UserError(too_few)
            self.epoch, self.batch = self.epoch + 1, 0
