"""Seeds: each random stream has one of its own, made of the run's. Imports neither torch nor Ray."""

from typing import Literal

import numpy as np


def derive_seed(*numbers: int, bits: Literal[32, 64] = 32) -> int:
    """A seed made of these numbers together, such as those of the run and of a sample.

    Other numbers give another one, where their sums would meet.
    """
    dtype = np.uint64 if bits == 64 else np.uint32
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype)[0])


def draw_seed(seed: int, number: int) -> int:
    """The seed of a draw, below 2**32; draw 0 has that of the run.

    Draws are children of the run's seed in NumPy's sense, so none of them has the seed of a sample or of a student,
    which ``derive_seed`` makes of the pair of both numbers.
    """
    if number == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0])
