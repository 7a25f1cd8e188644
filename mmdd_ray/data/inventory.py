"""How much of a source is there, of all that it was to hold. No Ray.

img2dataset leaves a record of each shard beside it, ``00000_stats.json`` beside ``00000.tar``: how many URLs it was
given, and how many images it got.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.formats import FORMATS
from mmdd_ray.data.formats.format import HEAD_ROWS, Head
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import list_shards, stem
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.remote import transporting

THREADS = 16
MISSING_SHOWN = 10


class Download(NamedTuple):
    """Pairs of one shard that were listed and downloaded."""

    listed: int
    """Pairs whose URLs it was given."""
    written: int
    """Pairs whose images it got, and wrote."""


def read_downloads(shards: Sequence[Shard]) -> dict[str, Download]:
    """The records of these shards by name; one without a record, or with one that says nothing, is left out."""
    files = [shard for shard in shards if shard.kind in ("tar", "parquet") and shard.rows is None]
    with ThreadPoolExecutor(THREADS) as pool:
        found = zip(files, pool.map(_read, files), strict=True)
        return {shard.name: record for shard, record in found if record}


def _read(shard: Shard) -> Download | None:
    fs, path = url_to_fs(f"{stem(shard.uri)}_stats.json")
    try:
        with transporting(shard.uri, "reading the record of"):
            content = fs.cat_file(path)
        document = json.loads(content)
        listed, written = document["count"], document["successes"]
    except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
        return None
    except StorageError as error:
        # what S3 says of a missing object to who may not list
        if isinstance(error.__cause__, PermissionError):
            return None
        raise
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in (listed, written))
    return Download(listed, written) if whole and 0 <= written <= listed else None


def about_source(source: Mapping[str, Any]) -> list[str]:
    """How much of a source is there that was downloaded from a list of URLs, and what tells it from others."""
    lines = []
    if source["listed"]:
        recorded, asked = source["recorded_shards"], source["shards"] + len(source["missing_files"])
        here = "" if recorded == asked else f" of {recorded:,} of {asked:,} shards"
        lines.append(
            f"{source['downloaded']:,} of {source['listed']:,} listed pairs{here} were downloaded "
            f"({100 * source['downloaded'] / source['listed']:.1f} %)"
        )
    if missing := source["missing_files"]:
        shown = f"{', '.join(missing[:MISSING_SHOWN])}{', …' if len(missing) > MISSING_SHOWN else ''}"
        lines.append(f"{len(missing):,} files of the range are not there: {shown}")
    return [*lines, f"fingerprint {source['fingerprint']}"]


# ---- before it is read


@dataclass(frozen=True, kw_only=True)
class Source:
    """Facts about a source before it is read whole."""

    rows: int
    exact: bool = True
    """False where `rows` is estimated from the head of the first shard, or as the share of a slice."""
    shards: int = 1
    bytes: int | None = None
    """Size in storage, where files say so."""
    captions_per_row: float = 1.0
    text_bytes_per_row: float = 0.0
    """Bytes of keys and captions."""
    classes: int = 0
    """Labels of all images of a folder, otherwise those seen in the head."""
    holds: str = ""
    """Description of its first shard, for people."""
    given: int = 0
    """Pairs or images of a set that is judged beside it; 0 where there is none before the run, or nothing says it."""


def look_at(data: Data) -> Source:
    """Looks at the shards of a source, and at the head of the first one.

    Raises:
        UserError: as ``list_shards``.
        StorageError: The storage failed.
    """
    shards = list_shards(data)
    split, part = sliced(data.split)
    whole = replace(data, split=split)  # a slice may have no row of a head
    rows_seen = islice(iter_shard(shards[0], whole), HEAD_ROWS)
    head = [replace(row, image=None) for row in rows_seen if row.reject is None]  # images may be large
    sizes = [shard.size_bytes for shard in shards]
    known = [size for size in sizes if size is not None]
    inside = FORMATS[shards[0].kind].head(shards[0], whole)
    rows, exact = _count_rows(shards, inside, whole)
    if data.limit is not None and rows > data.limit:
        known = [size * data.limit // rows for size in known]
        rows = data.limit
    if not part.is_all:
        rows, exact = max(round(rows * part.share), 1), False
    labels = {entry.label for shard in shards for entry in shard.entries} or {row.label for row in head}
    texts = [sum(len(text.encode()) for text in (row.key, *row.captions)) for row in head]
    return Source(
        rows=rows,
        exact=exact,
        shards=len(shards),
        bytes=sum(known) if len(known) == len(sizes) else None,
        captions_per_row=sum(len(row.captions) for row in head) / max(len(head), 1),
        text_bytes_per_row=sum(texts) / max(len(head), 1),
        classes=len(labels - {None}),
        holds=inside.holds,
    )


def require_rows(rows: int, needs: Mapping[str, int], uri: str) -> None:
    """Finds that there are too few rows for what is to come.

    Args:
        needs: Rows by the setting that asks for them.
        uri: Of the source, for the message.

    Raises:
        UserError: There are fewer; names the setting.
    """
    for setting, needed in needs.items():
        if needed > rows:
            raise UserError(
                f"{setting}={needed:,}, but {redact(uri)} has {rows:,} usable pairs; lower {setting} or add data"
            )


def require_as_many(pairs: int, rows: int, uri: str) -> None:
    """Finds that a set has more pairs than there are real ones, of which its baselines have as many.

    Raises:
        UserError: It has.
    """
    if pairs > rows:
        raise UserError(
            f"the set has {pairs:,} pairs, but data.uri={redact(uri)} has only {rows:,} usable ones to compare with; "
            "name more data, or a smaller set"
        )


def _count_rows(shards: Sequence[Shard], head: Head, data: Data) -> tuple[int, bool]:
    """Rows of all shards, the first of which has this head, and whether that is exact."""
    counts = [shard.rows for shard in shards]
    if None not in counts:
        return sum(count or 0 for count in counts), True
    records = read_downloads(shards)
    if len(records) == len(shards):
        return sum(record.written for record in records.values()), True
    heads = ((shard, FORMATS[shard.kind].head(shard, data)) for shard in shards[1:])
    first = shards[0]
    while not head.rows and (following := next(heads, None)):  # an empty shard says nothing of the others
        first, head = following
    all_bytes = sum(shard.size_bytes or 0 for shard in shards)
    if len(shards) == 1 and (first.kind == "parquet" or head.rows < HEAD_ROWS):
        return head.rows, True
    return max(round(head.rows * all_bytes / max(head.bytes, 1)), 1), False
