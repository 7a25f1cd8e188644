"""The protocol of formats."""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

from mmdd_ray.config import Data
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shard import Shard, Texts

PROBE_ROWS = 32  # that are looked at to tell whether settings fit the data
HEAD_ROWS = 500  # that are looked at to tell what all of them are like


class Seen(NamedTuple):
    """The head of a shard. Without ``fits`` and ``complaint`` it proves nothing: empty or damaged."""

    rows: int
    fits: bool = False
    complaint: str | None = None
    texts: Texts = "whole"
    may_differ: bool = False
    """Whether it has texts that are read in one way or another, so that other shards have a say."""
    notes: tuple[str, ...] = ()
    """Remarks for people on how it is read."""


class Head(NamedTuple):
    """The first rows of a shard, or all of them."""

    rows: int
    bytes: int
    """That these rows take."""
    holds: str
    """Description of their parts, for people."""


class Format(Protocol):
    """How a shard holds image, captions and label."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        """Whether the settings fit the head of the shard."""
        ...

    def count(self, shard: Shard) -> int | None:
        """Rows of the shard; None where only reading it tells."""
        ...

    def head(self, shard: Shard, data: Data) -> Head:
        """The head of the shard."""
        ...

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        """Its rows; with ``only``, others than those with these numbers may be left out by ``maker.skip``."""
        ...


def lfs_complaint(path: str) -> str:
    """The sentence about a file that git left out."""
    return f"{path} is a Git LFS pointer, not the file itself; get the files with git lfs pull"
