"""A unit of reading."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["tar", "parquet", "files", "scenes"]
Texts = Literal["whole", "lines", "list"]
"""What a text holds: one caption, a caption on each line, or a list of captions as JSON or Python write it."""


class Entry(NamedTuple):
    """A row of a source that stores its images as single files; ``path`` is relative to the image folder."""

    key: str
    path: str | None
    captions: tuple[Any, ...] = ()
    label: Any = None
    reject: str | None = None
    beside: tuple[str, ...] = ()
    """Files of the same name that say more of the image, by their paths."""


@dataclass(frozen=True)
class Shard:
    """A unit of reading: one tar, one Parquet file, or a slice of a source that has no shards of its own."""

    name: str
    """Unique in its dataset and safe as a file name, so outputs can be named by it."""
    kind: Kind
    uri: str
    """The tar or Parquet file, the folder of the image files, or the shapes: URI."""
    size_bytes: int | None = None
    """Size in storage, where it is known without opening anything."""
    rows: int | None = None
    """Rows to read. None: all of the file."""
    start: int = 0
    """First row of the slice, for shapes."""
    texts: Texts = "whole"
    """What its .txt members, or the cells of its caption columns, hold; seen at the head of the source."""
    partition: tuple[tuple[str, str], ...] = ()
    """Columns that the folders name as Hive does, ``label=3/``, and their value."""
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    """The rows of the slice, for single image files."""
