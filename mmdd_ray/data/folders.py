"""What a folder holds: tars or Parquet, images with captions beside them or in a table, or a folder for each class."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.formats.annotations import ANNOTATION_SUFFIXES, PATH_COLUMNS, read_annotations
from mmdd_ray.data.formats.files import class_folders, is_image, sample_entries, suffix_of, texts_beside
from mmdd_ray.data.layout import (
    Layout,
    count_of,
    glob_root,
    is_parquet,
    is_tar,
    names_of,
    not_read,
    of_split,
    refuse_both,
    shard_files,
    some_of,
)
from mmdd_ray.data.listing import Found, Stored, Tree, children, reachable, tree
from mmdd_ray.data.shard import Entry
from mmdd_ray.data.splits import ALL, by_split, choose_split, path_split, word_split
from mmdd_ray.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")  # Hugging Face's image folders
ANNOTATIONS_LOOKED_AT = 20
SPEAKING = (*ANNOTATION_SUFFIXES, ".txt", ".token")
SAYING = ("comment", "title", "sentence", "description", "label", "labels", "class")  # columns beside a path
FACTS = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset-metadata.json",
)  # of a dataset, not of its images
# COCO and Karpathy, or a list of images
_ANNOTATIONS = re.compile(
    rb'"images"\s*:\s*\[|"annotations"\s*:\s*\[|"sentences"\s*:\s*\[|^\s*\[\s*\{[^}]*"(image|file_name|image_path)"'
)
_MERE_IMAGES = re.compile(r"(^|[_-])(images?|imgs?|photos|pictures|jpegimages)$", re.IGNORECASE)
_NAMED_IMAGE = re.compile(r"[^\t,|;]+\.(jpe?g|png|webp)(#\d+)?[\t,|;]", re.IGNORECASE)


def folder_layouts(found: Found, folders: list[Stored], data: Data) -> list[Layout]:
    """What each of these folders holds; of a pattern those of one split, if their names tell splits."""
    own = data
    if not found.is_listed and len(folders) > 1:
        folders, own = of_split(folders, glob_root(found.uri), found.uri, data, may_hold=True)
    return [layout for folder in folders for layout in _folder_layout(folder, own)]


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
    tars = [one for one in files if is_tar(one.uri)]
    below = names_of([one for one in top if one.is_folder])
    # img2dataset puts a table of URLs, 00000.parquet, beside a folder of images, 00000/
    parquet = [one for one in files if is_parquet(one.uri) and names_of([one])[0].split(".")[0] not in below]
    if tars or parquet:
        refuse_both(tars, parquet, folder.uri)
        chosen, _ = of_split(tars or parquet, folder.uri, folder.uri, data)
        return [shard_files("tar" if tars else "parquet", chosen, folder.uri, not_read("sub-folder", below))]
    found = tree(folder.uri)
    sizes = dict(found.files)
    contents = _contents([path for path in sizes if not (is_parquet(path) and path.split(".")[0] in below)])
    tars, parquet = (
        [Stored(f"{folder.uri}/{path}", False, sizes[path]) for path in paths]
        for paths in (contents.tars, contents.parquet)
    )
    if tars or parquet:
        refuse_both(tars, parquet, folder.uri)
        chosen, _ = of_split(tars or parquet, folder.uri, folder.uri, data)
        tops = sorted({one.uri.removeprefix(folder.uri).split("/")[1] for one in chosen})
        also = f" in {count_of(len(tops), 'folder')}: {some_of(tops)}" if len(tops) > 1 else ""
        also += not_read("image", contents.images)
        return [shard_files("tar" if tars else "parquet", chosen, folder.uri, also)]
    if contents.tables:
        return [_metadata_layout(folder.uri, contents, found, data)]
    if not contents.images:
        raise UserError(f"data.uri={folder.uri} holds no .tar, no .parquet and no image")
    paths = [path for path, _ in found.files]
    if not texts_beside(paths):
        _refuse_annotated(folder.uri, [path for path, size in found.files if size], data)
    if empty := sorted(set(below) - {path.split("/")[0] for path in paths if "/" in path}):
        raise UserError(
            f"data.uri={folder.uri} has folders of images and empty ones ({some_of(empty)}), which would move the "
            "labels of classes; remove them"
        )
    hidden = not_read("hidden file", [path for path in found.hidden if is_image(path)])
    return [
        _image_layout(own, images, files, hidden)
        for own, images, files in _split_folders(folder.uri, contents.images, paths, data)
    ]


def _contents(paths: Sequence[str]) -> _Contents:
    return _Contents(
        [path for path in paths if is_tar(path)],
        [path for path in paths if is_parquet(path)],
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
            f"{count_of(len(images), 'image')} with captions in {kinds} of the same name{note}{hidden}",
            root=folder,
            entries=tuple(sample_entries(images, texts)),
        )
    classes = class_folders(images)
    _check_classes(folder, classes, images, paths)
    number = count_of(len(classes), "class", "classes")
    says = f"{count_of(len(images), 'image')} in {number}: {some_of(classes)}{hidden}"
    return Layout(folder, "files", says, root=folder, images=tuple(images))


def _check_classes(folder: str, classes: Sequence[str], images: Sequence[str], paths: Sequence[str]) -> None:
    """Refuses folders that are no classes, which would move the labels of others or be the only one."""
    others = sorted({path.split("/")[0] for path in paths if "/" in path} - set(classes))
    if classes and others:
        kinds = sorted({f".{suffix_of(path)}" for path in paths if path.split("/")[0] in others})
        raise UserError(
            f"data.uri={folder} has folders of images ({some_of(classes)}) and others without any that is read "
            f"({some_of(others)}; {some_of(kinds)}), which are no classes or have images of another kind; name the "
            "folder of the classes, or remove what is none"
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
        listed = ", ".join(named) + (f" (beside {some_of(beside)})" if beside else "")
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
    unnamed = not_read("image", [path for path in contents.images if path not in known], "that no row names")
    tables = [path for path in contents.tables if wanted in (None, path_split(_folder_of(path)) or wanted)]
    return Layout(
        uri,
        "files",
        f"{count_of(len(kept), 'image')} of {some_of(tables)}{unnamed}",
        root=uri,
        entries=tuple(kept),
    )


def _folder_of(path: str) -> str:
    return posixpath.dirname(path) or "."
