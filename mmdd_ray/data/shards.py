"""A dataset's URI -> its shards, and a look at them before the run. Plain Python on fsspec; no Ray."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

from mmdd_ray.config import Data
from mmdd_ray.config.data import SCENES
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.compression import TAR_SUFFIXES
from mmdd_ray.data.formats import FORMATS
from mmdd_ray.data.formats.annotations import ANNOTATION_SUFFIXES
from mmdd_ray.data.formats.format import Seen
from mmdd_ray.data.formats.parquet import column_splits
from mmdd_ray.data.formats.scenes import shapes_spec
from mmdd_ray.data.layout import Layout
from mmdd_ray.data.layouts import class_layouts, layouts_of
from mmdd_ray.data.listing import find, in_one, reachable, split_sources
from mmdd_ray.data.pair import safe_name
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.splits import ALL, SPLIT_COLUMN
from mmdd_ray.errors import UserError

PROBE_SHARDS = 4
PROBE_AT_MOST = 64  # shards that are opened to find PROBE_SHARDS with a say: some seconds on object storage
SHOWN = 200  # letters of a source
SUFFIXES = (*TAR_SUFFIXES, ".parquet", *ANNOTATION_SUFFIXES)


class Listing(NamedTuple):
    """What a URI stands for."""

    shards: list[Shard]
    """Sorted within each source."""
    missing: list[str]
    """Names of the files of a brace range that are not there, sorted."""
    says: list[str]
    """What was found, and what to know of how it is read, for people."""
    classes: list[str]
    """Names of the folders of classes, by label; empty where labels are something else."""


def list_shards(data: Data) -> list[Shard]:
    """The shards of ``data.uri``, sorted, cut to the first ``data.limit`` rows; the same list on every call.

    Reads the heads of the first shards, so that a wrong layout shows here and not after an hour; with
    ``data.limit`` also as many tar rows as it takes to count to it.

    Raises:
        UserError: for a URI that matches nothing or cannot be reached, an unknown or unclear layout, a missing
            column, labels that are no integers, a missing image folder, or a dataset without rows.
    """
    return find_shards(data).shards


def find_shards(data: Data) -> Listing:
    """As ``list_shards``, with what was found and what is not there.

    Raises:
        UserError: as ``list_shards``, or more than ``data.max_reject_ratio`` of the files are not there.
    """
    for name, count in (("limit", data.limit), ("rows_per_shard", data.rows_per_shard)):
        if count is not None and count < 1:
            raise UserError(f"data.{name}={count} must be at least 1")
    split, part = sliced(data.split)
    data = replace(data, split=split)
    sources = in_one(split_sources(data.uri))
    layouts: list[tuple[Data, Layout]] = []
    missing: list[str] = []
    for one in sources:
        asked = replace(data, uri=one.uri)
        found, lacking = _layouts(asked, one.is_complete)
        layouts += [(asked, layout) for layout in found]
        missing += lacking
    whole, classes = class_layouts([layout for _, layout in layouts])
    shards: list[Shard] = []
    says: list[str] = []
    named = _named([_shards(layout, data) for layout in whole], data)
    for (source, _), layout, own in zip(layouts, whole, named, strict=True):
        if layout.kind == "parquet":
            _check_splits([shard.uri for shard in own], source)
        seen = _probe(own, source)
        shards += [replace(shard, texts=seen.texts) for shard in own]
        name = layout.source if len(layout.source) <= SHOWN else f"{layout.source[:SHOWN]}…"
        where = f"{name}: " if len(layouts) > 1 else ""
        says += [f"{where}{line}" for line in (layout.says, *seen.notes)]
    if data.limit is not None:
        kept = _first_rows(shards, data, data.limit)
        if len(kept) < len(shards):
            says.append(
                f"data.limit={data.limit:,} takes the first rows, of {len(kept):,} of {len(shards):,} shards"
            )
        shards = kept
    if not part.is_all:
        counts = [shard.rows for shard in shards]
        about = "" if None in counts else f" (about {round(part.share * sum(n or 0 for n in counts)):,})"
        says.append(
            f"{part.first:g} to {part.last:g} % of the images{about} are read, by their content, the same in every run"
        )
    if missing:
        says.append(f"{len(missing):,} files of the range are not there: {', '.join(sorted(missing)[:3])}, …")
    return Listing(shards, sorted(missing), says, classes)


def _check_splits(uris: Sequence[str], source: Data) -> None:
    """Refuses Parquet files whose column mixes splits, unless one of them is wanted."""
    with reachable("data.uri", source.uri):
        found = sorted(column_splits(uris))
    if len(found) > 1 and source.split is None:
        raise UserError(
            f"data.uri={source.uri} has rows of several splits in the column {SPLIT_COLUMN!r}: {', '.join(found)}; "
            f"name one as data.split, e.g. data.split={'train' if 'train' in found else found[0]}, or take everything "
            f"with data.split={ALL}"
        )


def _layouts(source: Data, is_complete: bool) -> tuple[list[Layout], list[str]]:
    """What a source holds, and the names of files that a brace range has too many."""
    if source.uri.startswith(SCENES):
        if source.split is not None:
            raise UserError(f"data.split={source.split!r}, but {source.uri} has no splits; name another seed")
        rows, _ = shapes_spec(source.uri)
        return [Layout("shapes", "scenes", f"{rows:,} procedural scenes", root=source.uri, rows=rows)], []
    with reachable("data.uri", source.uri):
        found = find(source.uri)
        if is_complete and found.missing:
            raise UserError(f"data.uri: {found.missing[0]} is not there, of {source.uri}")
        if len(found.missing) > source.max_reject_ratio * found.asked:
            names = found.missing
            raise UserError(
                f"data.uri={source.uri}: {len(names):,} of {found.asked:,} files are not there "
                f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}), more than "
                f"data.max_reject_ratio={source.max_reject_ratio:g} allows; correct the range or raise that setting"
            )
        return layouts_of(found, source), found.missing


def _shards(layout: Layout, data: Data) -> list[Shard]:
    """Its shards, with the paths that name them as names."""
    if layout.kind in ("tar", "parquet"):
        return [
            Shard(stem(file.uri), layout.kind, file.uri, file.size_bytes, partition=file.partition)
            for file in layout.files
        ]
    size, path = data.rows_per_shard, stem(layout.source)
    if layout.kind == "scenes":
        return [
            Shard(
                f"{path}-{start // size:05d}",
                "scenes",
                layout.root,
                rows=min(size, layout.rows - start),
                start=start,
            )
            for start in range(0, layout.rows, size)
        ]
    parts = [layout.entries[start : start + size] for start in range(0, len(layout.entries), size)]
    return [
        Shard(f"{path}-{number:05d}", "files", layout.root, rows=len(part), entries=part)
        for number, part in enumerate(parts)
    ]


def stem(path: str) -> str:
    """A path without the suffix of a kind of file."""
    found = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(found)]


def _named(groups: Sequence[Sequence[Shard]], data: Data) -> list[list[Shard]]:
    """The same shards under names that no two share: the ends of their paths, or as much as tells them apart."""
    shards = [shard for group in groups for shard in group]
    places = Counter((shard.uri, shard.name) for shard in shards)
    if twice := [name for (_, name), count in places.items() if count > 1]:
        raise UserError(f"data.uri={data.uri} names {twice[0]} twice; name each source once")
    stems = Counter(shard.name for shard in shards)  # a.tar may lie beside a.tgz
    paths = [
        PurePosixPath(f"/{(shard.name if stems[shard.name] == 1 else shard.uri).lstrip('/')}")
        for shard in shards
    ]
    names = [safe_name(path.name) for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(paths)
        names = [safe_name(str(path.relative_to(common))) for path in paths]
    given = iter(names)
    return [[replace(shard, name=next(given)) for shard in group] for group in groups]


def _first_rows(shards: Sequence[Shard], data: Data, limit: int) -> list[Shard]:
    kept = []
    for shard in shards:
        with reachable("data.uri", shard.uri):
            rows = _count(shard, data, limit)
        kept.append(shard if rows < limit else replace(shard, rows=limit))
        limit -= rows
        if limit <= 0:
            break
    return kept


def _count(shard: Shard, data: Data, at_most: int) -> int:
    """How many rows ``shard`` has; counting may stop at ``at_most``."""
    rows = shard.rows if shard.rows is not None else FORMATS[shard.kind].count(shard)
    return sum(1 for _ in islice(iter_shard(shard, data), at_most)) if rows is None else rows


# ---- looking before the run


def _probe(shards: Sequence[Shard], data: Data) -> Seen:
    """What the heads of the first shards show.

    One row that fits is enough. Damaged rows and empty shards prove nothing either way, so the search goes on
    behind them, though not for ever.

    Raises:
        UserError: The settings do not fit the data.
    """
    complaints: list[str] = []
    rows = 0
    for shard in shards[:PROBE_AT_MOST]:
        with reachable("data.uri", shard.uri):
            seen = FORMATS[shard.kind].probe(shard, data)
        if seen.fits:
            return _agreed(seen, [one for one in shards if one is not shard], data)
        if seen.complaint is not None:
            complaints.append(seen.complaint)
        if len(complaints) == PROBE_SHARDS:
            break
        rows += seen.rows
    if complaints:
        raise UserError(complaints[0])
    if not rows and len(shards) <= PROBE_AT_MOST:
        raise UserError(f"data.uri={data.uri} holds no rows")
    return Seen(rows)


def _agreed(seen: Seen, others: Sequence[Shard], data: Data) -> Seen:
    """The verdict on a shard, with texts read as in some others, too: as one caption, where not all are of a kind."""
    if seen.texts == "whole" and not seen.may_differ:
        return seen
    spread = [others[at * len(others) // PROBE_SHARDS] for at in range(min(PROBE_SHARDS, len(others)))]
    with reachable("data.uri", data.uri), ThreadPoolExecutor(PROBE_SHARDS) as pool:
        found = list(pool.map(lambda shard: FORMATS[shard.kind].probe(shard, data), spread))
    kinds = {one.texts for one in (seen, *found) if one.fits}
    if len(kinds) == 1:
        return seen
    note = "in some shards each line of a .txt is a caption, and in others not: each .txt is read as one"
    return Seen(seen.rows, fits=True, notes=(note,))
