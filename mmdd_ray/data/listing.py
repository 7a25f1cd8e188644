"""What a URI stands for in storage: its sources, its braces and globs, and the files of a folder. No Ray."""

import glob
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mmdd_ray.config.data import SOURCES
from mmdd_ray.errors import UserError

LIST_THREADS = 16  # a brace range is one request per file: 332 of them in about a second
RANGE = re.compile(r"(\d+)\.\.(\d+)")
BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
MOST_FILES = 1_000_000  # of a range; more are a slip of the finger, and would fill the memory
PAPERS = ("readme", "license", "licence", "copying", "notice", "authors")  # files without a suffix
HIDDEN = ("__MACOSX", "@eaDir")  # folders that systems leave beside people's files


class Stored(NamedTuple):
    """A file or folder as storage lists it."""

    uri: str
    is_folder: bool
    size_bytes: int | None
    is_lost: bool = False
    """Whether it is a link to what is not there."""


class Source(NamedTuple):
    """A part of ``data.uri``."""

    uri: str
    is_complete: bool = False
    """Whether each file was written out, so that none may be missing."""


class Found(NamedTuple):
    """What one source names."""

    uri: str
    """As it was written."""
    stored: list[Stored]
    """Sorted by URI; folders or files."""
    missing: list[str]
    """Names of files of a brace range that are not there, sorted."""
    asked: int
    """Files that a brace range names."""
    is_listed: bool
    """Whether each file was named; a glob or a folder takes what it finds."""


class Tree(NamedTuple):
    """The files below a folder."""

    files: list[tuple[str, int | None]]
    """Path relative to the folder, and bytes; sorted by path."""
    hidden: list[str]
    """Paths that were left out, as they are no data: .*, ._*, __MACOSX."""


@contextmanager
def reachable(setting: str, uri: str) -> Iterator[None]:
    """Turns what storage raises into a sentence about the setting that named it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        name = error.filename or str(error)
        which = "" if name == uri else f" ({name})"
        raise UserError(f"{setting}={uri}: no such file, folder or bucket{which}") from error
    except Exception as error:  # each storage library raises its own, and they share no base class
        raise UserError(
            f"{setting}={uri} cannot be read ({type(error).__name__}: {error}); "
            "check the address, the network and the credentials"
        ) from error


def split_sources(uri: str) -> list[str]:
    """The sources of ``a::b``.

    Raises:
        UserError: There is none, or one is empty, named twice, or a file system that fsspec would put before another.
    """
    if not uri.strip():
        raise UserError("data.uri is empty; name a file, a folder or a URI")
    sources = uri.split(SOURCES)
    if len(sources) == 1:
        return sources
    for source in sources:
        if not source:
            raise UserError(f"data.uri={uri} names nothing on one side of '::'")
        if sources.count(source) > 1:
            raise UserError(f"data.uri={uri} names {source} twice; name each source once")
        if source in fsspec.available_protocols():
            raise UserError(
                f"data.uri={uri}: '::' stands between sources, and {source} is none; name files alone"
            )
    return sources


def in_one(sources: list[str]) -> list[Source]:
    """The sources, with files of one folder that follow each other as one, as a shell writes out ``x/*.tar``."""
    found: list[Source] = []
    for place, group in groupby(sources, _place):
        files = list(group)
        if place is None or len(files) == 1:
            found += map(Source, files)
        else:
            names = ",".join(file.rpartition("/")[2] for file in files)
            found.append(Source(f"{place}/{{{names}}}", is_complete=True))
    return found


def _place(source: str) -> str | None:
    """Folder of a file; None where a sign has a meaning, or it is no file."""
    folder, _, name = source.rpartition("/")
    plain = bool(folder) and "." in name and not _has_signs(source) and not set(",{}") & set(name)
    return folder if plain else None


def find(source: str) -> Found:
    """What a source names, which must be there; in a brace range of several files some may be missing.

    A path that exists is that path, whatever signs are in it.

    Raises:
        UserError: No file matches, or a range runs backwards.
        FileNotFoundError: The only file is not there.
    """
    url_to_fs(source)[0].invalidate_cache()  # fsspec remembers listings for the life of the process
    if _has_signs(source) and _exists(source):
        return Found(source, [_info(source)], [], 1, is_listed=True)
    patterns = expand_braces(source)
    first, others = _hits(patterns[0]), patterns[1:]  # which lists the folder, where the storage does that
    with ThreadPoolExecutor(LIST_THREADS) as pool:
        hits = [first, *pool.map(_hits, others)]
    missing = [pattern for pattern, hit in zip(patterns, hits, strict=True) if not hit]
    stored = sorted({one for hit in hits for one in hit})
    globbed = any(map(_is_glob, patterns))
    if not stored:
        if globbed:
            raise UserError(f"data.uri={source}: no file matches")
        _info(patterns[0])  # raises what is wrong
    names = sorted(pattern.rpartition("/")[2] for pattern in missing)
    return Found(source, stored, names, len(patterns), is_listed=not globbed)


def expand_braces(pattern: str) -> list[str]:
    """``a{0..2}`` -> a0, a1, a2 (``{00..10}`` keeps the width) and ``{a,b}`` -> a, b; nested ones too.

    Other braces stand for themselves, as in a shell.

    Examples:
        >>> expand_braces("s3://bucket/{train,val}-{08..10}.tar")[:4]
        ['s3://bucket/train-08.tar', 's3://bucket/train-09.tar', 's3://bucket/train-10.tar', 's3://bucket/val-08.tar']
    """
    group = BRACES.search(pattern)
    if group is None:
        return [pattern]
    if bounds := RANGE.fullmatch(group[1]):
        first, last = bounds.groups()
        if int(last) - int(first) >= MOST_FILES:
            raise UserError(f"data.uri: the range {group[0]} has more than {MOST_FILES:,} files; name fewer")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 1
        options = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = group[1].split(",")
    if not options:
        raise UserError(f"data.uri: the range {group[0]} runs backwards")
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [full for option in options for full in expand_braces(before + option + after)]


def children(folder: str) -> list[Stored]:
    """The files and folders directly in a folder, sorted; hidden ones left out, links followed."""
    fs, path = url_to_fs(folder)
    infos = [info for info in fs.ls(path, detail=True) if info["type"] != "other" or info.get("islink")]
    found = [
        _stored(fs, info) for info in infos if not is_hidden(info["name"].rstrip("/").rpartition("/")[2])
    ]
    return sorted(
        one for one in found if one.uri != full_uri(fs, path)
    )  # consoles leave empty objects `folder/`


def tree(folder: str) -> Tree:
    """All files below a folder; links are followed, a link to nothing is listed as a file."""
    fs, root = url_to_fs(folder)
    if isinstance(fs, LocalFileSystem):
        found: list[tuple[str, int | None]] = list(_walk(Path(root), ""))
    else:
        infos = fs.find(root, detail=True).items()
        found = [
            (path.removeprefix(root).lstrip("/"), info.get("size"))
            for path, info in infos
            if info["type"] == "file"
        ]
    hidden = sorted(path for path, _ in found if any(map(is_hidden, path.split("/"))))
    left_out = set(hidden)
    return Tree(sorted(one for one in found if one[0] not in left_out), hidden)


def lost_link(path: str) -> str:
    """The sentence about a link to what is not there."""
    return f"{path} is a link to {Path(path).readlink()}, which is not there; mend or remove it"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data of its owner's."""
    return name.startswith(".") or name in HIDDEN


def _walk(folder: Path, prefix: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Regular files with their paths and bytes; a folder that a link leads back into is not entered again."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_symlink() and not Path(entry.path).exists():
                if not Path(path).suffix and Path(path).name.lower() not in PAPERS:
                    # it may have been a folder, whose place others would take
                    raise UserError(lost_link(entry.path))
                yield path, 0
            elif entry.is_dir():
                yield from _walk(Path(entry.path), f"{path}/", above | {real})
            elif entry.is_file():
                yield path, entry.stat().st_size


def full_uri(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """The URI of a path on a file system; of a local one the path."""
    if isinstance(fs, LocalFileSystem):
        return path.rstrip("/") or "/"
    return fs.unstrip_protocol(path).rstrip("/")


def _hits(pattern: str) -> list[Stored]:
    try:
        if not _is_glob(pattern) or _exists(pattern):
            return [_info(pattern)]
    except FileNotFoundError:
        return []
    fs, path = url_to_fs(_literal(pattern))
    known = set(pattern.split("/"))  # a hidden folder that somebody named
    return [
        _stored(fs, info)
        for name, info in fs.glob(path, detail=True).items()
        if not any(map(is_hidden, set(name.split("/")) - known))
    ]


def _literal(pattern: str) -> str:
    """The pattern with the signs of folders that exist by that name escaped, as in ``[2024] photos/*.tar``."""
    parts = pattern.split("/")
    for end in range(1, len(parts)):
        if _is_glob(parts[end - 1]) and _exists("/".join(parts[:end])):
            parts[end - 1] = glob.escape(parts[end - 1])
    return "/".join(parts)


def _is_glob(pattern: str) -> bool:
    return glob.has_magic(pattern)


def _has_signs(source: str) -> bool:
    return _is_glob(source) or BRACES.search(source) is not None


def _exists(uri: str) -> bool:
    fs, path = url_to_fs(uri)
    return fs.exists(path)


def _info(uri: str) -> Stored:
    fs, path = url_to_fs(uri)
    return _stored(fs, fs.info(path))


def _stored(fs: fsspec.AbstractFileSystem, info: dict[str, Any]) -> Stored:
    uri = full_uri(fs, info["name"])
    is_folder, size = info["type"] == "directory", info.get("size")
    if info.get("islink") and isinstance(fs, LocalFileSystem):
        path = Path(info["name"])
        if not path.exists():
            return Stored(uri, False, None, is_lost=True)
        is_folder, size = path.is_dir(), path.stat().st_size
    elif info["type"] == "other":
        raise UserError(f"{uri} is neither a file nor a folder")
    return Stored(uri, is_folder, size)
