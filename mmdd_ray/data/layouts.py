"""What a source holds: tars, Parquet, annotation files, images; and which of it is read, and what is not. No Ray."""

import posixpath
import re
from collections.abc import Sequence
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
from mmdd_ray.data.splits import ALL, by_split, choose_split, path_split, word_split
from mmdd_ray.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")  # Hugging Face's image folders
SHOWN = 10
ANNOTATIONS_LOOKED_AT = 20
_HIVE = re.compile(r"([^/=]+)=([^/]*)")
# COCO and Karpathy, or a list of images
_ANNOTATIONS = re.compile(
    rb'"images"\s*:\s*\[|"annotations"\s*:\s*\[|"sentences"\s*:\s*\[|^\s*\[\s*\{[^}]*"(image|file_name|image_path)"'
)
_MERE_IMAGES = re.compile(r"(^|[_-])(images?|imgs?|photos|pictures|jpegimages)$", re.IGNORECASE)
_NAMED_IMAGE = re.compile(r"[^\t,|;]+\.(jpe?g|png|webp)(#\d+)?[\t,|;]", re.IGNORECASE)
SPEAKING = (*ANNOTATION_SUFFIXES, ".txt", ".token")
SAYING = ("comment", "title", "sentence", "description", "label", "labels", "class")  # columns beside a path
FACTS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset-metadata.json",
)  # of a dataset, not of its images


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
    """What is read of a source: of folders what they hold, otherwise the files that it names.

    Raises:
        UserError: That is unclear, or nothing that is read.
    """
    folders = [one for one in found.stored if one.is_folder]
    files = [one for one in found.stored if not one.is_folder]
    if folders and not files:
        return _folder_layouts(found, folders, data)
    kinds: dict[Kind, list[Stored]] = {
        "tar": [one for one in files if _is_tar(one.uri)],
        "parquet": [one for one in files if _is_parquet(one.uri)],
        "files": [one for one in files if one.uri.lower().endswith(ANNOTATION_SUFFIXES)],
    }
    if not found.is_listed:
        # img2dataset writes a .parquet and a .json beside each tar
        _refuse_both(kinds["tar"], kinds["parquet"], found.uri)
        first = next((kind for kind, own in kinds.items() if own), None)
        kinds = {kind: own if kind == first else [] for kind, own in kinds.items()}
    layouts: list[Layout] = []
    for kind, chosen in kinds.items():
        if not chosen:
            continue
        own = data
        if not found.is_listed or (data.split is not None and kind != "files"):
            chosen, own = _of_split(chosen, _glob_root(found.uri), found.uri, data, may_hold=kind == "files")
        if kind == "files":
            layouts += [_annotated(one.uri, own) for one in chosen]
        else:
            layouts.append(_shard_files(kind, chosen, found.uri, _not_read("folder", _names(folders))))
    if layouts:
        return layouts
    raise UserError(
        f"data.uri={data.uri} matches {found.stored[0].uri}; expected .tar or .parquet files, .json, .jsonl or .csv, "
        "or a folder"
    )


def _folder_layouts(found: Found, folders: list[Stored], data: Data) -> list[Layout]:
    """What each of these folders holds; of a pattern those of one split, if their names tell splits."""
    own = data
    if not found.is_listed and len(folders) > 1:
        folders, own = _of_split(folders, _glob_root(found.uri), found.uri, data, may_hold=True)
    return [layout for folder in folders for layout in _folder_layout(folder, own)]


def class_layouts(layouts: Sequence[Layout]) -> tuple[list[Layout], list[str]]:
    """The same with the rows of class folders, whose labels are places among the classes of all sources; and these."""
    classes = class_folders([path for layout in layouts for path in layout.images])
    whole = [
        replace(layout, images=(), entries=tuple(folder_entries(layout.images, classes)))
        if layout.images
        else layout
        for layout in layouts
    ]
    return whole, classes


# ---- folders


class _Contents(NamedTuple):
    tars: list[str]
    parquet: list[str]
    images: list[str]
    tables: list[str]
    """metadata.jsonl and the like, beside images."""


def _folder_layout(folder: Stored, data: Data) -> list[Layout]:
    """Tars or Parquet directly in it or deeper, metadata of images, images with texts beside them, or class folders."""
    top = children(folder.uri)
    files = [one for one in top if not one.is_folder]
    tars = [one for one in files if _is_tar(one.uri)]
    below = _names([one for one in top if one.is_folder])
    # img2dataset puts a table of URLs, 00000.parquet, beside a folder of images, 00000/
    parquet = [one for one in files if _is_parquet(one.uri) and _names([one])[0].split(".")[0] not in below]
    if tars or parquet:
        _refuse_both(tars, parquet, folder.uri)
        chosen, _ = _of_split(tars or parquet, folder.uri, folder.uri, data)
        return [
            _shard_files("tar" if tars else "parquet", chosen, folder.uri, _not_read("sub-folder", below))
        ]
    found = tree(folder.uri)
    sizes = dict(found.files)
    contents = _contents([path for path in sizes if not (_is_parquet(path) and path.split(".")[0] in below)])
    tars, parquet = (
        [Stored(f"{folder.uri}/{path}", False, sizes[path]) for path in paths]
        for paths in (contents.tars, contents.parquet)
    )
    if tars or parquet:
        _refuse_both(tars, parquet, folder.uri)
        chosen, _ = _of_split(tars or parquet, folder.uri, folder.uri, data)
        tops = sorted({one.uri.removeprefix(folder.uri).split("/")[1] for one in chosen})
        also = f" in {_count(len(tops), 'folder')}: {_some(tops)}" if len(tops) > 1 else ""
        also += _not_read("image", contents.images)
        return [_shard_files("tar" if tars else "parquet", chosen, folder.uri, also)]
    if contents.tables:
        return [_metadata_layout(folder.uri, contents, found, data)]
    if not contents.images:
        raise UserError(f"data.uri={folder.uri} holds no .tar, no .parquet and no image")
    paths = [path for path, _ in found.files]
    if not texts_beside(paths):
        _refuse_annotated(folder.uri, [path for path, size in found.files if size], data)
    if empty := sorted(set(below) - {path.split("/")[0] for path in paths if "/" in path}):
        raise UserError(
            f"data.uri={folder.uri} has folders of images and empty ones ({_some(empty)}), which would move the labels "
            "of classes; remove them"
        )
    hidden = _not_read("hidden file", [path for path in found.hidden if is_image(path)])
    return [
        _image_layout(own, images, files, hidden)
        for own, images, files in _split_folders(folder.uri, contents.images, paths, data)
    ]


def _contents(paths: Sequence[str]) -> _Contents:
    return _Contents(
        [path for path in paths if _is_tar(path)],
        [path for path in paths if _is_parquet(path)],
        [path for path in paths if is_image(path)],
        [path for path in paths if posixpath.basename(path).lower() in METADATA],
    )


def _image_layout(folder: str, images: list[str], paths: list[str], hidden: str) -> Layout:
    """Images with texts beside them, or in the folders of their classes."""
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
    _check_classes(folder, classes, images, paths)
    says = f"{_count(len(images), 'image')} in {_count(len(classes), 'class', 'classes')}: {_some(classes)}{hidden}"
    return Layout(folder, "files", says, root=folder, images=tuple(images))


def _check_classes(folder: str, classes: Sequence[str], images: Sequence[str], paths: Sequence[str]) -> None:
    """Refuses folders that are no classes, which would move the labels of others or be the only one."""
    others = sorted({path.split("/")[0] for path in paths if "/" in path} - set(classes))
    if classes and others:
        kinds = sorted({f".{suffix_of(path)}" for path in paths if path.split("/")[0] in others})
        raise UserError(
            f"data.uri={folder} has folders of images ({_some(classes)}) and others without any that is read "
            f"({_some(others)}; {_some(kinds)}), which are no classes or have images of another kind; name the folder "
            "of the classes, or remove what is none"
        )
    deeper = any(path.count("/") > 1 for path in images)
    if len(classes) == 1 and (deeper or _MERE_IMAGES.search(classes[0])):
        hint = f", or {folder}/{classes[0]} if that holds the folders of classes" if deeper else ""
        raise UserError(
            f"data.uri={folder} has all of its images in the one folder {classes[0]}, which would be their only class; "
            f"name the file that says what is in them{hint} (docs/data.md)"
        )


def _split_folders(
    uri: str, images: list[str], paths: list[str], data: Data
) -> list[tuple[str, list[str], list[str]]]:
    """The folders to read, each with its images and files: that of the split, of all splits, or the whole."""
    tops = class_folders(images)
    named = {top: split for top in tops if (split := path_split(top))}
    # one name with such a word, as steam_train, may be a class among others
    has_splits = (
        len(set(named.values())) > 1
        or any(map(word_split, tops))
        or (bool(named) and len(named) == len(tops))
    )
    beside = [top for top in tops if top not in named]
    if not has_splits or (data.split == ALL and beside):
        if data.split not in (None, ALL):
            choose_split({None: images}, data.split, uri)
        return [(uri, images, paths)]
    if data.split is None:
        first = next((top for top, split in named.items() if split == "train"), next(iter(named)))
        listed = ", ".join(named) + (f" (beside {_some(beside)})" if beside else "")
        raise UserError(
            f"data.uri={uri} holds folders of splits, not of classes: {listed}; name one, e.g. "
            f"data.uri={uri}/{first}, or data.split={named[first]}"
            + (f"; data.split={ALL} takes each of them for a class" if beside else "")
        )
    wanted = choose_split({split: [top] for top, split in named.items()}, data.split, uri)
    chosen = [top for top, split in named.items() if wanted in (None, split)]
    if wanted is not None and len(chosen) > 1:
        raise UserError(
            f"data.split={data.split!r} of {uri} is in the folders {', '.join(chosen)}; name one as data.uri"
        )
    return [(f"{uri}/{top}", _below(top, images), _below(top, paths)) for top in chosen]


def _below(folder: str, paths: Sequence[str]) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")]


def _refuse_annotated(folder: str, paths: Sequence[str], data: Data) -> None:
    """Refuses images beside a file that says what is in them, which class folders would ignore."""
    named = [
        path for path in paths if path.lower().endswith(SPEAKING) and posixpath.basename(path) not in FACTS
    ]
    # JSON last, as there may be one for each image
    for path in sorted(named, key=lambda path: (path.endswith(".json"), path.count("/")))[
        :ANNOTATIONS_LOOKED_AT
    ]:
        fs, file = url_to_fs(f"{folder}/{path}")
        if _speaks_of_images(path, fs.cat_file(file, end=4096), data):
            raise UserError(
                f"data.uri={folder} holds images and {path}, which says what is in them; name that file, "
                f"data.uri={folder}/{path}, and the folder of its images as data.image_root; or move it away to read "
                "folders of images as classes"
            )


def _speaks_of_images(path: str, head: bytes, data: Data) -> bool:
    """Whether the head of a file has names of images and what is in them."""
    if path.lower().endswith(".json"):
        return _ANNOTATIONS.search(head) is not None
    first = head.decode(errors="replace").partition("\n")[0]
    columns = {name.strip(" \"'\r").lower() for name in re.split(r"[,\t|;]", first)}
    if path.lower().endswith((".jsonl", ".ndjson")):
        columns = set(re.findall(r'"(\w+)"', first))
    speaks = not columns.isdisjoint(PATH_COLUMNS) and not columns.isdisjoint((*data.caption_columns, *SAYING))
    return speaks or _NAMED_IMAGE.match(first) is not None


def _metadata_layout(uri: str, contents: _Contents, found: Tree, data: Data) -> Layout:
    """Hugging Face's image folder: rows of metadata.jsonl or metadata.csv name the images beside it."""
    entries: list[Entry] = []
    for path in contents.tables:
        folder = posixpath.dirname(path)
        with reachable("data.uri", f"{uri}/{path}"):
            fs, file = url_to_fs(f"{uri}/{path}")
            content = fs.cat_file(file)
        # the split is that of the folders of its images
        whole = replace(data, split=None)
        read = read_annotations(posixpath.basename(path), content, posixpath.dirname(file), whole)
        for entry in read.entries:
            inside = posixpath.normpath(posixpath.join(folder, entry.path)) if entry.path else None
            entries.append(entry._replace(path=inside, key=posixpath.join(folder, entry.key)))
    wanted = choose_split(
        by_split(_folder_of(entry.path) for entry in entries if entry.path), data.split, uri
    )
    kept = [
        entry for entry in entries if wanted is None or path_split(_folder_of(entry.path or "")) == wanted
    ]
    known = {entry.path for entry in entries}
    unnamed = _not_read("image", [path for path in contents.images if path not in known], "that no row names")
    tables = [path for path in contents.tables if wanted in (None, path_split(_folder_of(path)) or wanted)]
    return Layout(
        uri,
        "files",
        f"{_count(len(kept), 'image')} of {_some(tables)}{unnamed}",
        root=uri,
        entries=tuple(kept),
    )


def _folder_of(path: str) -> str:
    return posixpath.dirname(path) or "."


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


def _of_split(
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


def _names(stored: Sequence[Stored]) -> list[str]:
    return [one.uri.rpartition("/")[2] for one in stored]


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def _not_read(what: str, names: Sequence[str], clause: str = "") -> str:
    return f"; not read: {_count(len(names), what)}{clause and ' '}{clause}, e.g. {names[0]}" if names else ""
