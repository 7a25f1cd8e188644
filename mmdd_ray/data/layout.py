"""What is read of one source, and the words in which people are told. No Ray."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.compression import TAR_SUFFIXES
from mmdd_ray.data.listing import Stored, full_uri, lost_link
from mmdd_ray.data.shard import Entry, Kind
from mmdd_ray.data.splits import by_split, choose_split, path_split
from mmdd_ray.errors import UserError

SHOWN = 10  # names in a message
_HIVE = re.compile(r"([^/=]+)=([^/]*)")


@dataclass(frozen=True)
class File:
    """A tar or a Parquet file."""

    uri: str
    size_bytes: int | None
    partition: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Layout:
    """What is read of a source: files that are shards themselves, or single images."""

    source: str
    """Path of the folder or the annotation file, which names its shards; of tars and Parquet what was asked for."""
    kind: Kind
    """tar, parquet, files or scenes."""
    says: str
    """What was found, for people."""
    files: tuple[File, ...] = ()
    root: str = ""
    """Folder of the images, or the URI of the scenes."""
    rows: int = 0
    """Of scenes."""
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    images: tuple[str, ...] = field(default=(), repr=False)
    """Images of class folders, whose entries depend on the classes of the other sources."""


def shard_files(kind: Kind, stored: Sequence[Stored], uri: str, also: str = "") -> Layout:
    """Tars or Parquet files as a layout; ``also`` is said of it, too."""
    if lost := [one for one in stored if one.is_lost]:
        raise UserError(lost_link(lost[0].uri))
    files = tuple(File(one.uri, one.size_bytes, _partition(one.uri)) for one in stored)
    what = count_of(len(files), "tar") if kind == "tar" else count_of(len(files), "Parquet file")
    split = by_split(names_of(stored))
    named = f" ({next(iter(split))})" if len(split) == 1 and None not in split else ""
    return Layout(uri, kind, f"{what}{named}{also}", files=files)


def _partition(uri: str) -> tuple[tuple[str, str], ...]:
    """Columns that folders name, as Hive does."""
    found = map(_HIVE.fullmatch, uri.split("/")[:-1])
    return tuple((match[1], match[2]) for match in found if match)


def of_split(
    stored: list[Stored], root: str, uri: str, data: Data, *, may_hold: bool = False
) -> tuple[list[Stored], Data]:
    """Those of ``data.split``, or all where their names tell no splits; and the settings to read them with.

    Args:
        may_hold: Whether they may hold splits that their names do not tell.
    """
    full = _full(root)

    def relative(one: Stored) -> str:
        return one.uri.removeprefix(full).lstrip("/")

    found = by_split(map(relative, stored))
    if may_hold and set(found) == {None}:
        return stored, data
    wanted = choose_split(found, data.split, uri)
    if wanted is None:
        return stored, data
    return [one for one in stored if path_split(relative(one)) == wanted], replace(data, split=None)


def _full(uri: str) -> str:
    """A URI as listings spell it."""
    return full_uri(*url_to_fs(uri))


def glob_root(pattern: str) -> str:
    """The folder of a glob or of files, up to the first sign of a pattern."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0] or "."


def refuse_both(tars: Sequence[Stored], parquet: Sequence[Stored], uri: str) -> None:
    """Refuses tars beside Parquet files, unless these are what img2dataset writes beside each tar."""
    beside = {bare_name(tar) for tar in tars}
    alone = [one for one in parquet if bare_name(one) not in beside]
    if tars and alone:
        raise UserError(
            f"data.uri={uri} holds tars and Parquet files that do not belong to them, e.g. {alone[0].uri}; "
            "name the one or the other, by a folder or a pattern such as *.tar"
        )


def bare_name(stored: Stored) -> str:
    """Its path up to the first dot of its name."""
    folder, _, name = stored.uri.rpartition("/")
    return f"{folder}/{name.split('.')[0]}"


def is_tar(path: str) -> bool:
    """Whether the name of a file is that of a tar."""
    return path.lower().endswith(TAR_SUFFIXES)


def is_parquet(path: str) -> bool:
    """Whether the name of a file is that of a Parquet file."""
    return path.lower().endswith(".parquet")


def names_of(stored: Sequence[Stored]) -> list[str]:
    """Their names without folders."""
    return [one.uri.rpartition("/")[2] for one in stored]


def count_of(number: int, what: str, several: str = "") -> str:
    """``1 image``, ``1,000 images``."""
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def some_of(names: Sequence[str]) -> str:
    """The first of them."""
    return f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def not_read(what: str, names: Sequence[str], clause: str = "") -> str:
    """What was found beside, ``; not read: 2 images, e.g. a.jpg``; empty where there is none."""
    return (
        f"; not read: {count_of(len(names), what)}{clause and ' '}{clause}, e.g. {names[0]}" if names else ""
    )
