"""What of a source is there, of all that it was to hold. No Ray.

img2dataset leaves a record of each shard beside it, ``00000_stats.json`` beside ``00000.tar``: how many URLs it was
given, and how many images it got.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from mmdd_ray.data.readers import Shard

THREADS = 16
MISSING_SHOWN = 10


class Download(NamedTuple):
    """Of one shard."""

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
    fs, path = url_to_fs(f"{shard.uri.rpartition('.')[0]}_stats.json")
    try:
        document = json.loads(fs.cat_file(path))
        listed, written = document["count"], document["successes"]
    except (FileNotFoundError, ValueError, RecursionError, KeyError, TypeError):
        return None
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in (listed, written))
    return Download(listed, written) if whole and 0 <= written <= listed else None


def about_source(source: Mapping[str, Any]) -> list[str]:
    """How much of a source is there that was downloaded from a list of URLs, and what tells it from others."""
    lines = []
    if source["listed"]:
        here = (
            ""
            if source["recorded_shards"] == source["shards"]
            else f" of {source['recorded_shards']:,} shards"
        )
        lines.append(
            f"{source['downloaded']:,} of {source['listed']:,} listed pairs{here} were downloaded "
            f"({100 * source['downloaded'] / source['listed']:.1f} %)"
        )
    if missing := source["missing_files"]:
        shown = f"{', '.join(missing[:MISSING_SHOWN])}{', …' if len(missing) > MISSING_SHOWN else ''}"
        lines.append(f"{len(missing):,} files of the range are not there: {shown}")
    return [*lines, f"fingerprint {source['fingerprint']}"]
