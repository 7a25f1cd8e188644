"""What a source holds: tars, Parquet, annotation files, images; and which of it is read, and what is not. No Ray."""

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.compression import TAR_SUFFIXES
from mmdd_ray.data.formats.annotations import ANNOTATION_SUFFIXES, PATH_COLUMNS, read_annotations
from mmdd_ray.data.formats.files import (
    class_folders,
    folder_entries,
    is_image,
    sample_entries,
    suffix_of,
    texts_beside,
)
from mmdd_ray.data.listing import Found, Stored, Tree, children, full_uri, reachable, tree
from mmdd_ray.data.shard import Entry, Kind
from mmdd_ray.data.splits import by_split, choose_split, path_split, word_split
from mmdd_ray.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")  # Hugging Face's image folders
SHOWN = 10
ANNOTATIONS_LOOKED_AT = 20
_HIVE = re.compile(r"([^/=]+)=([^/]*)")
_ANNOTATION_KEYS = re.compile(rb'"(annotations|images|sentences|image|caption|file_name)"')


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
    """Path that names its shards: of a folder or an annotation file."""
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


def layouts_of(found: Found, data: Data) -> list[Layout]:
    """What is read of a source: of a folder what it holds, otherwise the files that it names.

    Raises:
        UserError: That is unclear, or nothing that is read.
    """
    folders = [one for one in found.stored if one.is_folder]
    files = [one for one in found.stored if not one.is_folder]
    if folders and not files:
        return [_folder_layout(folder, data) for folder in folders]
    also = _not_read("folder", _names(folders))
    for kind, matches in SHARD_KINDS.items():
        # tars first: img2dataset writes a .parquet and a .json beside each
        if chosen := [one for one in files if matches(one.uri)]:
            if not found.is_listed or data.split is not None:
                chosen = _of_split(chosen, _glob_root(found.uri), found.uri, data)
            return [_shard_files(kind, chosen, found.uri, also)]
    if annotations := [one for one in files if one.uri.lower().endswith(ANNOTATION_SUFFIXES)]:
        if not found.is_listed:
            choose_split(by_split(_names(annotations)), None, found.uri)
        return [_annotated(one.uri, data) for one in annotations]
    raise UserError(
        f"data.uri={data.uri} matches {found.stored[0].uri}; expected .tar or .parquet files, .json, .jsonl or .csv, "
        "or a folder"
    )


def class_layouts(layouts: Sequence[Layout], data: Data) -> list[Layout]:
    """The same with the rows of class folders, whose labels are places among the classes of all sources."""
    classes = class_folders([path for layout in layouts for path in layout.images])
    return [
        layout
        if not layout.images
        else Layout(
            layout.source,
            layout.kind,
            layout.says,
            root=layout.root,
            entries=tuple(folder_entries(layout.images, classes)),
        )
        for layout in layouts
    ]


# ---- folders


class _Contents(NamedTuple):
    tars: list[str]
    parquet: list[str]
    images: list[str]
    tables: list[str]
    """metadata.jsonl and the like, beside images."""


def _folder_layout(folder: Stored, data: Data) -> Layout:
    """Tars or Parquet directly in it or deeper, metadata of images, images with texts beside them, or class folders."""
    top = children(folder.uri)
    files = [one for one in top if not one.is_folder]
    tars = [one for one in files if _is_tar(one.uri)]
    below = _names([one for one in top if one.is_folder])
    # img2dataset puts a table of URLs, 00000.parquet, beside a folder of images, 00000/
    parquet = [one for one in files if _is_parquet(one.uri) and _names([one])[0].split(".")[0] not in below]
    if tars or parquet:
        _refuse_both(tars, parquet, folder.uri)
        chosen = tars or parquet
        chosen = _of_split(chosen, folder.uri, folder.uri, data)
        return _shard_files("tar" if tars else "parquet", chosen, folder.uri, _not_read("sub-folder", below))
    found = tree(folder.uri)
    sizes = dict(found.files)
    contents = _contents([path for path in sizes if not (_is_parquet(path) and path.split(".")[0] in below)])
    tars, parquet = (
        [Stored(f"{folder.uri}/{path}", False, sizes[path]) for path in paths]
        for paths in (contents.tars, contents.parquet)
    )
    if tars or parquet:
        _refuse_both(tars, parquet, folder.uri)
        chosen = _of_split(tars or parquet, folder.uri, folder.uri, data)
        also = _not_read("image", contents.images)
        return _shard_files("tar" if tars else "parquet", chosen, folder.uri, also)
    if contents.tables:
        return _metadata_layout(folder.uri, contents, found, data)
    if not contents.images:
        raise UserError(f"data.uri={folder.uri} holds no .tar, no .parquet and no image")
    return _image_layout(folder.uri, contents.images, found, data)


def _contents(paths: Sequence[str]) -> _Contents:
    return _Contents(
        [path for path in paths if _is_tar(path)],
        [path for path in paths if _is_parquet(path)],
        [path for path in paths if is_image(path)],
        [path for path in paths if posixpath.basename(path).lower() in METADATA],
    )


def _image_layout(uri: str, images: list[str], found: Tree, data: Data) -> Layout:
    """Images with texts beside them, or in the folders of their classes."""
    paths = [path for path, _ in found.files]
    if not texts_beside(paths):
        _refuse_annotated(uri, [path for path, size in found.files if size], data)
    folder, images, paths = _split_folder(uri, images, paths, data)
    hidden = _not_read("hidden file", [path for path in found.hidden if is_image(path)])
    if texts := texts_beside(paths):
        lacking = len(images) - len(texts)
        note = f"; {lacking:,} of them have none" if lacking else ""
        kinds = ", ".join(sorted({f".{suffix_of(path)}" for own in texts.values() for path in own}))
        return Layout(
            folder,
            "files",
            f"{_count(len(images), 'image')} with captions in {kinds} of the same name{note}{hidden}",
            root=folder,
            entries=tuple(sample_entries(images, texts)),
        )
    classes = class_folders(images)
    says = f"{_count(len(images), 'image')} in {_count(len(classes), 'class', 'classes')}: {_some(classes)}{hidden}"
    return Layout(folder, "files", says, root=folder, images=tuple(images))


def _split_folder(
    uri: str, images: list[str], paths: list[str], data: Data
) -> tuple[str, list[str], list[str]]:
    """The folder of the split, and its images and files relative to it; the whole, if it has no splits."""
    tops = class_folders(images)
    splits = {top: split for top in tops if (split := word_split(top))}
    if not tops or len(splits) < len(tops):
        if data.split is not None:
            choose_split({None: images}, data.split, uri)
        return uri, images, paths
    if data.split is None:
        raise UserError(
            f"data.uri={uri} holds folders of splits, not of classes: {', '.join(tops)}; name one, e.g. "
            f"data.uri={uri}/{tops[0]}, or data.split={splits[tops[0]]}"
        )
    wanted = choose_split({split: [top] for top, split in splits.items()}, data.split, uri)
    chosen = [top for top, split in splits.items() if split == wanted]
    if len(chosen) != 1:
        raise UserError(
            f"data.split={data.split!r} of {uri} is in the folders {', '.join(chosen or tops)}; name one as data.uri"
        )
    inside = f"{chosen[0]}/"
    return (
        f"{uri}/{chosen[0]}",
        [path.removeprefix(inside) for path in images if path.startswith(inside)],
        [path.removeprefix(inside) for path in paths if path.startswith(inside)],
    )


def _refuse_annotated(folder: str, paths: Sequence[str], data: Data) -> None:
    """Refuses images beside a file that says what is in them, which class folders would ignore."""
    named = [path for path in paths if path.lower().endswith(ANNOTATION_SUFFIXES)]
    for path in named[:ANNOTATIONS_LOOKED_AT]:
        fs, file = url_to_fs(f"{folder}/{path}")
        if _speaks_of_images(path, fs.cat_file(file, end=4096), data):
            raise UserError(
                f"data.uri={folder} holds images and {path}, which says what is in them; name that file, "
                f"data.uri={folder}/{path}, and the folder of its images as data.image_root; or move it away to read "
                "folders of images as classes"
            )


def _speaks_of_images(path: str, head: bytes, data: Data) -> bool:
    """Whether the head of an annotation file has names of images and captions."""
    if path.lower().endswith(".json"):
        return _ANNOTATION_KEYS.search(head) is not None
    columns = set(re.findall(r"\w+", head.decode(errors="replace").partition("\n")[0]))
    return not columns.isdisjoint(PATH_COLUMNS) and not columns.isdisjoint(data.caption_columns)


def _metadata_layout(uri: str, contents: _Contents, found: Tree, data: Data) -> Layout:
    """Hugging Face's image folder: rows of metadata.jsonl or metadata.csv name the images beside it."""
    tables = contents.tables
    splits = by_split(tables)
    wanted = choose_split(splits, data.split, uri)
    chosen = [path for split, own in splits.items() if wanted in (None, split) for path in own]
    entries: list[Entry] = []
    whole = replace(data, split=None)  # which this has chosen
    for path in chosen:
        folder = posixpath.dirname(path)
        with reachable("data.uri", f"{uri}/{path}"):
            fs, file = url_to_fs(f"{uri}/{path}")
            read = read_annotations(
                posixpath.basename(path), fs.cat_file(file), posixpath.dirname(file), whole
            )
        for entry in read.entries:
            inside = posixpath.normpath(posixpath.join(folder, entry.path)) if entry.path else None
            entries.append(entry._replace(path=inside, key=posixpath.join(folder, entry.key)))
    known = {entry.path for entry in entries}
    images = [path for path in contents.images if wanted is None or path_split(path) == wanted]
    unnamed = _not_read("image that no row names", [path for path in images if path not in known])
    return Layout(
        uri,
        "files",
        f"{_count(len(entries), 'image')} of {_some(chosen)}{unnamed}",
        root=uri,
        entries=tuple(entries),
    )


# ---- files


def _annotated(uri: str, data: Data) -> Layout:
    root = data.image_root or uri.rpartition("/")[0]
    with reachable("data.uri", uri):
        fs, path = url_to_fs(uri)
        content = fs.cat_file(path)
    with reachable("data.image_root", root):
        fs, path = url_to_fs(root)
        if not fs.isdir(path):
            raise FileNotFoundError("it is not a folder")
    read = read_annotations(uri.rpartition("/")[2], content, path, data)
    captions = sum(len(entry.captions) for entry in read.entries)
    says = f"{read.kind}: {_count(len(read.entries), 'image')}, {_count(captions, 'caption')}"
    return Layout(uri, "files", says, root=full_uri(fs, path), entries=tuple(read.entries))


def _shard_files(kind: Kind, stored: Sequence[Stored], uri: str, also: str = "") -> Layout:
    files = tuple(File(one.uri, one.size_bytes, _partition(one.uri)) for one in stored)
    what = _count(len(files), "tar") if kind == "tar" else _count(len(files), "Parquet file")
    split = by_split(_names(stored))
    named = f" ({next(iter(split))})" if len(split) == 1 and None not in split else ""
    return Layout(uri, kind, f"{what}{named}{also}", files=files)


def _partition(uri: str) -> tuple[tuple[str, str], ...]:
    """Columns that folders name, as Hive does."""
    found = map(_HIVE.fullmatch, uri.split("/")[:-1])
    return tuple((match[1], match[2]) for match in found if match)


def _of_split(stored: list[Stored], root: str, uri: str, data: Data) -> list[Stored]:
    """The files of ``data.split``; all, where their names tell no splits."""
    full = _full(root)

    def relative(one: Stored) -> str:
        return one.uri.removeprefix(full).lstrip("/")

    wanted = choose_split(by_split(map(relative, stored)), data.split, uri)
    return [one for one in stored if wanted is None or path_split(relative(one)) == wanted]


def _full(uri: str) -> str:
    """A URI as listings spell it."""
    return full_uri(*url_to_fs(uri))


def _glob_root(pattern: str) -> str:
    """The folder of a glob or of files, up to the first sign of a pattern."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0] or "."


def _refuse_both(tars: Sequence[Stored], parquet: Sequence[Stored], uri: str) -> None:
    beside = {_bare(tar) for tar in tars}
    alone = [one for one in parquet if _bare(one) not in beside]
    if tars and alone:
        raise UserError(
            f"data.uri={uri} holds tars and Parquet files that do not belong to them, e.g. {alone[0].uri}; "
            "name the one or the other, by a folder or a pattern such as *.tar"
        )


def _bare(stored: Stored) -> str:
    """Its path up to the first dot of its name."""
    folder, _, name = stored.uri.rpartition("/")
    return f"{folder}/{name.split('.')[0]}"


def _is_tar(path: str) -> bool:
    return path.lower().endswith(TAR_SUFFIXES)


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


SHARD_KINDS: dict[Kind, Callable[[str], bool]] = {"tar": _is_tar, "parquet": _is_parquet}


def _names(stored: Sequence[Stored]) -> list[str]:
    return [one.uri.rpartition("/")[2] for one in stored]


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def _not_read(what: str, names: Sequence[str]) -> str:
    noun, _, rest = what.partition(" that ")
    rest = rest and f" that {rest}"
    return f"; not read: {_count(len(names), noun)}{rest}, e.g. {names[0]}" if names else ""
