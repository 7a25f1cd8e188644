"""A dataset's URI -> its shards, and a look at them before the run. Plain Python on fsspec; no Ray."""

import glob
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.formats import FORMATS
from mmdd_ray.data.formats.files import folder_entries, json_entries
from mmdd_ray.data.formats.format import PROBE_ROWS
from mmdd_ray.data.formats.scenes import shapes_spec
from mmdd_ray.data.pair import IMAGE_SUFFIXES, safe_name
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Entry, Shard
from mmdd_ray.errors import UserError

PROBE_SHARDS = 4
PROBE_AT_MOST = 64  # shards that are opened to find PROBE_SHARDS with a say: some seconds on object storage
LIST_THREADS = 16  # a brace range is one request per file: 332 of them in about a second


def list_shards(data: Data) -> list[Shard]:
    """The shards of ``data.uri``, sorted, cut to the first ``data.limit`` rows; the same list on every call.

    Reads the heads of the first shards, so that a wrong layout shows here and not after an hour; with
    ``data.limit`` also as many tar rows as it takes to count to it.

    Raises:
        UserError: for a URI that matches nothing or cannot be reached, an unknown format or layout, a missing
            column, labels that are no integers, a missing image folder, or a dataset without rows.
    """
    return find_shards(data)[0]


def find_shards(data: Data) -> tuple[list[Shard], list[str]]:
    """As ``list_shards``, and the names of the files of the brace range that are not there, sorted.

    Raises:
        UserError: as ``list_shards``, or more than ``data.max_reject_ratio`` of the files are not there.
    """
    for name, count in (("limit", data.limit), ("rows_per_shard", data.rows_per_shard)):
        if count is not None and count < 1:
            raise UserError(f"data.{name}={count} must be at least 1")
    shards, missing = (_shapes_shards(data), []) if data.uri.startswith("shapes:") else _stored_shards(data)
    _probe(shards, data)
    return (shards if data.limit is None else _first_rows(shards, data, data.limit)), missing


def check_data(data: Data, evaluation: Evaluation, *, labelled: bool = False) -> None:
    """Looks at all three sources of a run.

    Args:
        labelled: Whether their rows must be labelled.

    Raises:
        UserError: as ``list_shards``; for validation and test data it names the setting in ``evaluation``.
    """
    _check_source(data, labelled)
    for name, source in evaluation.sources(data).items():
        try:
            if missing := _check_source(source, labelled):
                raise UserError(f"data.uri={source.uri}: {missing[0]} is not there; correct the range")
        except UserError as error:
            sentence = str(error)
            for own in ("split", "image_root"):  # the other settings of the source are those of data
                sentence = sentence.replace(f"data.{own}", f"evaluation.{name}_{own}")
            raise UserError(f"evaluation.{name}: {sentence}") from error


def _check_source(data: Data, labelled: bool) -> list[str]:
    """Names of the files that are not there."""
    shards, missing = find_shards(data)
    if not labelled:
        return missing
    with _reachable("data.uri", data.uri):
        rows = chain.from_iterable(
            islice(iter_shard(shard, data), PROBE_ROWS) for shard in shards[:PROBE_SHARDS]
        )
        labels = [row.label for row in rows if row.reject is None]
    if labels and labels.count(None) == len(labels):
        raise UserError(
            f"none of the first {len(labels)} images of {data.uri} has a label; name the column that has it as "
            "data.label_column, or use an image folder with one sub-folder per class"
        )
    return missing


# ---- listing


class _Stored(NamedTuple):
    uri: str
    is_folder: bool
    size_bytes: int | None

    def has_suffix(self, suffix: str) -> bool:
        return not self.is_folder and self.uri.lower().endswith(suffix)


def _stored_shards(data: Data) -> tuple[list[Shard], list[str]]:
    """The shards, and the names of files that a brace range has too many."""
    patterns = expand_braces(data.uri)
    with _reachable("data.uri", data.uri), ThreadPoolExecutor(LIST_THREADS) as pool:
        hits = list(pool.map(_find_some if len(patterns) > 1 else _find, patterns))
        missing = [pattern for pattern, hit in zip(patterns, hits, strict=True) if not hit]
        if len(missing) == len(patterns):
            _find(patterns[0])  # raises what is wrong, unless it is a glob
        found = sorted(set(chain.from_iterable(hits)))
        folder = found[0].uri if len(found) == 1 and found[0].is_folder else None
        if folder is not None:
            found = sorted(_inside(folder))
    if not found and folder is None:
        raise UserError(f"data.uri={data.uri}: no file matches")
    names = sorted(pattern.rpartition("/")[2] for pattern in missing)
    if len(names) > data.max_reject_ratio * len(patterns):
        raise UserError(
            f"data.uri={data.uri}: {len(names):,} of {len(patterns):,} files are not there ({', '.join(names[:3])}"
            f"{', …' if len(names) > 3 else ''}), more than data.max_reject_ratio={data.max_reject_ratio:g} allows; "
            "correct the range or raise that setting"
        )
    return _shards_of(found, folder, data), names


def _shards_of(found: list[_Stored], folder: str | None, data: Data) -> list[Shard]:
    for kind in ("tar", "parquet"):  # tars first: img2dataset writes a .parquet and a .json beside each
        if files := [stored for stored in found if stored.has_suffix(f".{kind}")]:
            _refuse_split(data)
            names = _unique_names([file.uri for file in files])
            return [Shard(name, kind, f.uri, f.size_bytes) for name, f in zip(names, files, strict=True)]
    if folder is not None:
        _refuse_split(data)
        return _folder_shards(folder, data)
    if len(found) == 1 and found[0].has_suffix(".json"):
        return _json_shards(found[0].uri, data)
    raise UserError(
        f"data.uri={data.uri} matches {found[0].uri}; expected .tar or .parquet files, a .json or a folder"
    )


@contextmanager
def _reachable(setting: str, uri: str) -> Iterator[None]:
    """Turns what storage raises into a sentence about the setting that named it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{setting}={uri}: no such file, folder or bucket ({error})") from error
    except Exception as error:  # each storage library raises its own, and they share no base class
        raise UserError(
            f"{setting}={uri} cannot be read ({type(error).__name__}: {error}); "
            "check the address, the network and the credentials"
        ) from error


def expand_braces(pattern: str) -> list[str]:
    """``a{0..2}`` -> a0, a1, a2 (``{00..10}`` keeps the width) and ``{a,b}`` -> a, b; nested ones too."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if group is None:
        return [pattern]
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", group[1]):
        first, last = bounds.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 1
        options = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = group[1].split(",")
    if not options:
        raise UserError(f"data.uri: the range {group[0]} runs backwards")
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [full for option in options for full in expand_braces(before + option + after)]


def _find_some(pattern: str) -> list[_Stored]:
    try:
        return _find(pattern)
    except FileNotFoundError:
        return []


def _find(pattern: str) -> list[_Stored]:
    fs, path = url_to_fs(pattern)
    fs.invalidate_cache()  # fsspec remembers listings for the life of the process
    infos = fs.glob(path, detail=True).values() if glob.has_magic(path) else [fs.info(path)]
    return [_stored(fs, info) for info in infos]


def _inside(folder: str) -> list[_Stored]:
    fs, path = url_to_fs(folder)
    return [_stored(fs, info) for info in fs.ls(path, detail=True)]


def _stored(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> _Stored:
    uri = fs.unstrip_protocol(info["name"]).rstrip("/")
    return _Stored(uri, info["type"] == "directory", info.get("size"))


def _refuse_split(data: Data) -> None:
    if data.split is not None:
        raise UserError(
            f"data.split={data.split!r} works with Karpathy JSON only; name the files of the split"
        )


def _unique_names(uris: list[str]) -> list[str]:
    paths = [PurePosixPath(uri).with_suffix("") for uri in uris]
    stems = [safe_name(path.name) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath(paths)
    return [safe_name(str(path.relative_to(common))) for path in paths]


def _json_shards(uri: str, data: Data) -> list[Shard]:
    root = data.image_root or uri.rpartition("/")[0]
    with _reachable("data.uri", uri):
        fs, path = url_to_fs(uri)
        text = fs.cat_file(path)
    with _reachable("data.image_root", root):
        fs, path = url_to_fs(root)
        if not fs.isdir(path):
            raise FileNotFoundError("it is not a folder")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"data.uri={uri} is not JSON: {error}") from error
    entries = json_entries(document, data)
    return _slices(entries, fs.unstrip_protocol(path), PurePosixPath(uri).stem, data)


def _folder_shards(uri: str, data: Data) -> list[Shard]:
    with _reachable("data.uri", uri):
        fs, root = url_to_fs(uri)
        infos = fs.find(root, detail=True)
    paths = [
        path.removeprefix(root).lstrip("/")
        for path, info in infos.items()
        if info["type"] == "file" and path.rpartition(".")[2].lower() in IMAGE_SUFFIXES
    ]
    if not paths:
        raise UserError(f"data.uri={uri} holds no .tar, no .parquet and no image")
    return _slices(folder_entries(paths), uri, PurePosixPath(uri).name, data)


def _slices(entries: list[Entry], root: str, name: str, data: Data) -> list[Shard]:
    parts = [tuple(entries[i : i + data.rows_per_shard]) for i in range(0, len(entries), data.rows_per_shard)]
    return [
        Shard(f"{safe_name(name)}-{number:05d}", "files", root, rows=len(part), entries=part)
        for number, part in enumerate(parts)
    ]


def _shapes_shards(data: Data) -> list[Shard]:
    _refuse_split(data)
    rows, _ = shapes_spec(data.uri)
    starts = range(0, rows, data.rows_per_shard)
    return [
        Shard(
            f"shapes-{number:05d}",
            "scenes",
            data.uri,
            rows=min(data.rows_per_shard, rows - start),
            start=start,
        )
        for number, start in enumerate(starts)
    ]


def _first_rows(shards: list[Shard], data: Data, limit: int) -> list[Shard]:
    kept = []
    for shard in shards:
        with _reachable("data.uri", shard.uri):
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


def _probe(shards: list[Shard], data: Data) -> None:
    """UserError if the heads of the first shards show that the settings do not fit the data.

    One row that fits is enough. Damaged rows and empty shards prove nothing either way, so the search goes on
    behind them, though not for ever.
    """
    complaints: list[str] = []
    rows = 0
    for shard in shards[:PROBE_AT_MOST]:
        with _reachable("data.uri", shard.uri):
            seen = FORMATS[shard.kind].probe(shard, data)
        if seen.fits:
            return
        if seen.complaint is not None:
            complaints.append(seen.complaint)
        if len(complaints) == PROBE_SHARDS:
            break
        rows += seen.rows
    if complaints:
        raise UserError(complaints[0])
    if not rows and len(shards) <= PROBE_AT_MOST:
        raise UserError(f"data.uri={data.uri} holds no rows")
