"""A unit of reading."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Entry(NamedTuple):
    """A row of a source that stores its images as single files; ``path`` is relative to the image folder."""

    key: str
    path: str | None
    captions: tuple[Any, ...] = ()
    label: Any = None
    reject: str | None = None


@dataclass(frozen=True)
class Shard:
    """A unit of reading: one tar, one Parquet file, or a slice of a source that has no shards of its own."""

    name: str
    """Unique in its dataset and safe as a file name, so outputs can be named by it."""
    kind: Literal["tar", "parquet", "files", "scenes"]
    uri: str
    """The tar or Parquet file, the folder of the image files, or the shapes: URI."""
    size_bytes: int | None = None
    """Size in storage, where it is known without opening anything."""
    rows: int | None = None
    """Rows to read. None: all of the file."""
    start: int = 0
    """First row of the slice, for shapes."""
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    """The rows of the slice, for single image files."""
