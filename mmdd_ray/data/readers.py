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
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qsl

from mmdd_ray.config import Data
from mmdd_ray.data.images import Entry
from mmdd_ray.data.schema import Row, RowMaker, parquet_rows, tar_rows
from mmdd_ray.data.shapes import pairs
from mmdd_ray.data.web_scenes import World
from mmdd_ray.data.web_scenes import pairs as web_pairs
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


def shapes_spec(uri: str) -> tuple[int, Callable[[int, int], Iterator[dict[str, Any]]]]:
    """``shapes:ROWS?seed=S&wrong=0.2`` -> rows, and what draws the pairs from one row up to another.

    Raises:
        UserError: An option is unknown, out of its range, or one of ``World`` beside ``world=clean``.
    """
    rows, _, query = uri.removeprefix("shapes:").partition("?")
    flaw_names = World.setting_names()
    try:
        given = parse_qsl(query, True, True)
        options = dict(given)
        if len(options) < len(given):
            raise ValueError  # which of two seeds?
        world = options.pop("world", "web")
        seed, px, labelled = (
            int(options.pop(name, default)) for name, default in (("seed", 0), ("px", 32), ("labelled", 0))
        )
        flaws: dict[str, Any] = {
            name: int(value) if name == "captions" else float(value) for name, value in options.items()
        }
        known = set(flaw_names if world == "web" else ())
        if (
            world not in ("web", "clean")
            or flaws.keys() - known
            or seed < 0
            or px < 1
            or labelled not in (0, 1)
        ):
            raise ValueError
        drawing: dict[str, Any] = {"seed": seed, "image_px": px, "labelled": bool(labelled)}
        if world == "clean":
            return int(rows), partial(pairs, **drawing)
        return int(rows), partial(web_pairs, world=World(**flaws), **drawing)
    except UserError as error:
        raise UserError(f"data.uri={uri}: {error}") from error
    except ValueError:
        raise UserError(
            f"data.uri={uri} is not of the form shapes:ROWS?seed=0&px=32&labelled=0&world=web (or world=clean), "
            f"each option once; world=web also takes {', '.join(flaw_names)}"
        ) from None


def _read_shapes(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    _, drawn = shapes_spec(shard.uri)
    assert shard.rows is not None
    for pair in drawn(shard.start, shard.start + shard.rows):
        yield maker.make(pair["key"], pair["image"], pair["captions"], pair["label"])


_READERS: dict[str, Callable[[Shard, RowMaker, Collection[int] | None], Iterator[Row]]] = {
    "tar": _read_tar,
    "parquet": _read_parquet,
    "files": _read_files,
    "shapes": _read_shapes,
}
