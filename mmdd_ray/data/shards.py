"""A dataset's URI -> its shards, and a shard -> its rows, one at a time. Plain Python on fsspec; no Ray.

Storage is configured by the standard variables of each library, on every node that reads:

- ``s3://``: the AWS variables and files, with ``AWS_ENDPOINT_URL`` for other stores and
  ``FSSPEC_S3_ANON=true`` for public buckets;
- ``gs://``: ``GOOGLE_APPLICATION_CREDENTIALS``, or ``FSSPEC_GCS_TOKEN=anon`` (extra ``mmdd-ray[gcs]``);
- ``hf://``: ``HF_TOKEN``, ``HF_ENDPOINT``.

Damaged data never raises: it comes out as a row with ``reject`` set. Storage that fails raises
``TransportError``, so that the caller can try again.
"""

import glob
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import parse_qsl

import fsspec
from fsspec.core import url_to_fs

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.images import Entry, folder_entries, json_entries
from mmdd_ray.data.schema import (
    IMAGE_SUFFIXES,
    Row,
    RowMaker,
    open_parquet,
    parquet_layout,
    parquet_rows,
    safe_name,
    tar_rows,
    tar_samples,
)
from mmdd_ray.errors import TransportError, UserError

TRANSPORT_ERROR = "storage failed while reading"  # Ray retries errors by a pattern in their text
BUFFER_BYTES = 2**18  # tarfile asks for 10 KiB at a time
READ_AHEAD_BYTES = 8 * 2**20  # s3fs would hold 50 MiB per open file; 8 MiB still amortises a 30 ms request
PROBE_SHARDS, PROBE_ROWS = 4, 32
LIST_THREADS = 16  # a brace range is one request per file: 332 of them in about a second


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


def list_shards(data: Data) -> list[Shard]:
    """The shards of ``data.uri``, sorted, cut to the first ``data.limit`` rows; the same list on every call.

    Reads the heads of the first shards, so that a wrong layout shows here and not after an hour; with
    ``data.limit`` also as many tar rows as it takes to count to it.

    Raises:
        ValueError: one sentence, for a URI that matches nothing or cannot be reached, an unknown format or
            layout, a missing column, a missing image folder, or a dataset without rows.
    """
    for name, count in (("limit", data.limit), ("rows_per_shard", data.rows_per_shard)):
        if count is not None and count < 1:
            raise UserError(f"data.{name}={count} must be at least 1")
    shards = _shapes_shards(data) if data.uri.startswith("shapes:") else _stored_shards(data)
    _probe(shards, data)
    return shards if data.limit is None else _first_rows(shards, data, data.limit)


def check_data(data: Data, evaluation: Evaluation) -> None:
    """Looks at all three sources of a run.

    Raises:
        ValueError: as ``list_shards``; for validation and test data it names the setting in ``evaluation``.
    """
    list_shards(data)
    for name, source in zip(("val", "test"), evaluation.sources(data), strict=True):
        try:
            list_shards(source)
        except ValueError as error:
            raise UserError(f"evaluation.{name}: {error}") from error


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


# ---- listing


class _Stored(NamedTuple):
    uri: str
    is_folder: bool
    size_bytes: int | None

    def has_suffix(self, suffix: str) -> bool:
        return not self.is_folder and self.uri.lower().endswith(suffix)


def _stored_shards(data: Data) -> list[Shard]:
    patterns = expand_braces(data.uri)
    with _reachable("data.uri", data.uri), ThreadPoolExecutor(LIST_THREADS) as pool:
        found = sorted(set(chain.from_iterable(pool.map(_find, patterns))))
        folder = found[0].uri if len(found) == 1 and found[0].is_folder else None
        if folder is not None:
            found = sorted(_inside(folder))
    if not found and folder is None:
        raise UserError(f"data.uri={data.uri}: no file matches")
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
    rows, _ = _shapes_spec(data.uri)
    starts = range(0, rows, data.rows_per_shard)
    return [
        Shard(
            f"shapes-{number:05d}",
            "shapes",
            data.uri,
            rows=min(data.rows_per_shard, rows - start),
            start=start,
        )
        for number, start in enumerate(starts)
    ]


def _shapes_spec(uri: str) -> tuple[int, dict[str, Any]]:
    """``shapes:ROWS?seed=S&px=32&labelled=1`` -> rows, keyword arguments of ``shapes.pairs``."""
    rows, _, query = uri.removeprefix("shapes:").partition("?")
    try:
        options = {"seed": 0, "px": 32, "labelled": 0} | {k: int(v) for k, v in parse_qsl(query, True, True)}
        seed, px, labelled = options.pop("seed"), options.pop("px"), options.pop("labelled")
        if options or px < 1 or labelled not in (0, 1):
            raise ValueError
        return int(rows), {"seed": seed, "image_px": px, "labelled": bool(labelled)}
    except ValueError:
        raise UserError(f"data.uri={uri} is not of the form shapes:ROWS?seed=0&px=32&labelled=0") from None


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
    if shard.rows is not None:
        return shard.rows
    if shard.kind == "parquet":
        with _open(shard.uri) as file:
            parquet = open_parquet(file)
            return 1 if parquet is None else parquet.metadata.num_rows  # 1: its one refused row
    return sum(1 for _ in islice(iter_shard(shard, data), at_most))


# ---- looking before the run


def _probe(shards: list[Shard], data: Data) -> None:
    """ValueError if the heads of the first shards show that the settings do not fit the data."""
    complaint = f"data.uri={data.uri} holds no rows"
    for shard in shards[:PROBE_SHARDS]:
        with _reachable("data.uri", shard.uri):
            rows, found = _PROBES[shard.kind](shard, data)
        if rows and found is None:
            return
        complaint = found or complaint
    raise UserError(complaint)


def _probe_tar(shard: Shard, data: Data) -> tuple[int, str | None]:
    """Rows seen, and what is wrong with all of them; damaged samples prove nothing either way."""
    suffixes: set[str] = set()
    json_keys: set[str] = set()
    rows = 0
    with _open(shard.uri) as file:
        for sample in islice(tar_samples(file, data.max_member_mib * 2**20), PROBE_ROWS):
            rows += 1
            record = sample.record()
            if sample.reject or (sample.image is not None and sample.captions(record, data) is not None):
                return rows, None
            suffixes |= sample.parts.keys()
            json_keys |= record.keys()
    if not rows:
        return 0, None
    return rows, (
        f"none of the first {rows} samples of {shard.uri} has both an image ({', '.join(IMAGE_SUFFIXES)}) "
        f"and captions (txt, or json with {', '.join(data.caption_columns)}); "
        f"found members {', '.join('.' + suffix for suffix in sorted(suffixes))} "
        f"and JSON keys {sorted(json_keys)}"
    )


def _probe_parquet(shard: Shard, data: Data) -> tuple[int, str | None]:
    with _open(shard.uri) as file:
        parquet = open_parquet(file)
        if parquet is None:
            return 1, None
        try:
            parquet_layout(parquet.schema_arrow, data)
        except ValueError as error:
            return 1, str(error)
        return parquet.metadata.num_rows, None


def _probe_files(shard: Shard, data: Data) -> tuple[int, str | None]:
    if not any(entry.captions for entry in shard.entries):
        return 1, (
            f"none of the first {len(shard.entries)} images of {data.uri} has a caption; "
            "in an image folder every image must lie in the sub-folder of its class"
        )
    fs, root = url_to_fs(shard.uri)
    paths = [f"{root}/{entry.path}" for entry in shard.entries[:PROBE_ROWS] if entry.path is not None]
    if paths and not any(map(fs.exists, paths)):
        return 1, f"none of the first {len(paths)} images exists, e.g. {paths[0]}; set data.image_root"
    return len(shard.entries), None


_PROBES: dict[str, Callable[[Shard, Data], tuple[int, str | None]]] = {
    "tar": _probe_tar,
    "parquet": _probe_parquet,
    "files": _probe_files,
    "shapes": lambda shard, data: (1, None),
}


# ---- reading


class _Storage(io.RawIOBase):
    """A stored file whose failures are ``TransportError``, except that it is not there."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._guard():
            fs, path = url_to_fs(uri)
            self._file = fs.open(path, "rb", block_size=READ_AHEAD_BYTES)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # each storage library raises its own, and they share no base class
            raise TransportError(f"{TRANSPORT_ERROR} {self._uri}: {type(error).__name__}: {error}") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer: Any) -> int:
        with self._guard():
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._guard():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open(uri: str) -> BinaryIO:
    return io.BufferedReader(_Storage(uri), BUFFER_BYTES)


def _read_tar(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    with _open(shard.uri) as file:
        yield from tar_rows(file, maker)


def _read_parquet(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    with _open(shard.uri) as file:
        yield from parquet_rows(file, maker, only)


def _read_files(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    for entry in shard.entries:
        if only is not None and maker.index not in only:
            maker.skip(1)
            continue
        image = None
        if entry.path is not None:
            try:
                with _open(f"{shard.uri}/{entry.path}") as file:
                    image = file.read(maker.max_bytes + 1)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                pass  # refused as "missing image"
        yield maker.make(entry.key, image, entry.captions, entry.label, entry.reject)


def _read_shapes(shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    from mmdd_ray.data.shapes import pairs  # draws with NumPy and Pillow: only who asks for it pays

    _, options = _shapes_spec(shard.uri)
    assert shard.rows is not None
    for pair in pairs(shard.start, shard.start + shard.rows, **options):
        yield maker.make(pair["key"], pair["image"], pair["captions"], pair["label"])


_READERS: dict[str, Callable[[Shard, RowMaker, Collection[int] | None], Iterator[Row]]] = {
    "tar": _read_tar,
    "parquet": _read_parquet,
    "files": _read_files,
    "shapes": _read_shapes,
}
