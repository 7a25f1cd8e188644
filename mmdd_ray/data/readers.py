"""A shard -> its rows, one at a time. Plain Python on fsspec; no Ray.

Storage is configured by the standard variables of each library, on every node that reads:

- ``s3://``: the AWS variables and files, with ``AWS_ENDPOINT_URL`` for other stores and
  ``FSSPEC_S3_ANON=true`` for public buckets;
- ``gs://``: ``GOOGLE_APPLICATION_CREDENTIALS``, or ``FSSPEC_GCS_TOKEN=anon`` (extra ``mmdd-ray[gcs]``);
- ``hf://``: ``HF_TOKEN``, ``HF_ENDPOINT``.

Damaged data never raises: it comes out as a row with ``reject`` set. Storage that fails raises
``TransportError``, so that the caller can try again.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl

from mmdd_ray.config import Data
from mmdd_ray.data.images import Entry
from mmdd_ray.data.schema import Row, RowMaker, parquet_rows, tar_rows
from mmdd_ray.data.shapes import pairs
from mmdd_ray.errors import UserError
from mmdd_ray.transport import open_stored


@dataclass(frozen=True)
class Shard:
    """A unit of reading: one tar, one Parquet file, or a slice of a source that has no shards of its own."""

    name: str
    """Unique in its dataset and safe as a file name, so outputs can be named by it."""
    kind: Literal["tar", "parquet", "files", "shapes"]
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


def iter_shard(shard: Shard, data: Data, only: Collection[int] | None = None) -> Iterator[Row]:
    """The rows of ``shard`` in their stored order; with ``only``, just those with these row numbers.

    Holds one tar sample, image file or Parquet row group in memory. With ``only``, image files and row
    groups that hold none of the rows are not read; duplicate keys are then judged among the rest.

    Raises:
        TransportError: when the storage fails.
    """
    last = max(only, default=-1) if only is not None else None
    if shard.rows is not None:
        last = min(shard.rows - 1, last) if last is not None else shard.rows - 1
    for row in _READERS[shard.kind](shard, RowMaker(shard.name, data), only):
        if last is not None and row.index > last:
            return
        if only is None or row.index in only:
            yield row
        if row.index == last:
            return


def _read_tar(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    with open_stored(shard.uri) as file:
        yield from tar_rows(file, maker)


def _read_parquet(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    with open_stored(shard.uri) as file:
        yield from parquet_rows(file, maker, only)


def _read_files(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    for entry in shard.entries:
        if only is not None and maker.index not in only:
            maker.skip(1)
            continue
        image = None
        if entry.path is not None:
            try:
                with open_stored(f"{shard.uri}/{entry.path}") as file:
                    image = file.read(maker.max_bytes + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                pass  # refused as "missing image"
        yield maker.make(entry.key, image, entry.captions, entry.label, entry.reject)


def shapes_spec(uri: str) -> tuple[int, dict[str, Any]]:
    """``shapes:ROWS?seed=S&px=32&labelled=1`` -> rows, keyword arguments of ``shapes.pairs``."""
    rows, _, query = uri.removeprefix("shapes:").partition("?")
    try:
        options = {"seed": 0, "px": 32, "labelled": 0} | {k: int(v) for k, v in parse_qsl(query, True, True)}
        seed, px, labelled = options.pop("seed"), options.pop("px"), options.pop("labelled")
        if options or seed < 0 or px < 1 or labelled not in (0, 1):
            raise ValueError
        return int(rows), {"seed": seed, "image_px": px, "labelled": bool(labelled)}
    except ValueError:
        raise UserError(f"data.uri={uri} is not of the form shapes:ROWS?seed=0&px=32&labelled=0") from None


def _read_shapes(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    _, options = shapes_spec(shard.uri)
    assert shard.rows is not None
    for pair in pairs(shard.start, shard.start + shard.rows, **options):
        yield maker.make(pair["key"], pair["image"], pair["captions"], pair["label"])


_READERS: dict[str, Callable[[Shard, RowMaker, Collection[int] | None], Iterator[Row]]] = {
    "tar": _read_tar,
    "parquet": _read_parquet,
    "files": _read_files,
    "shapes": _read_shapes,
}
