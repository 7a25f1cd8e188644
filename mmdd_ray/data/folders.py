"""Contents of a folder: tars or Parquet, images with captions beside them or in a table, or a folder for each class."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.formats.annotations import ANNOTATION_SUFFIXES, PATH_COLUMNS, read_annotations
from mmdd_ray.data.formats.files import class_folders, is_image, sample_entries, suffix_of, texts_beside
from mmdd_ray.data.formats.parquet import column_splits
from mmdd_ray.data.formats.samples import Sample, is_blank
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
ANNOTATIONS_LOOKED_AT = 20  # the shallowest; each class folder may have one
TEXTS_LOOKED_AT = 8
HEAD_BYTES = 4096
SAYING = ("comment", "title", "sentence", "description")  # what columns of captions are called, too
FACTS = ("dataset_info.json", "dataset_infos.json", "dataset-metadata.json")
# COCO and Karpathy, a list of images, or captions by their names
_ANNOTATIONS = re.compile(
    rb'"(images|annotations|sentences)"\s*:\s*\[|^\s*\[\s*\{[^}]*"(image|file_name|image_path)"'
    rb'|"[^"]+\.(png|jpe?g|webp)"\s*:'
)
_CAPTIONED = re.compile(r"[^\t,|;]+\.(jpe?g|png|webp)(#\d+)?[\t,|;] *[A-Za-z]+ [A-Za-z]+", re.IGNORECASE)
_MERE_IMAGES = re.compile(
    r"(^|[_-])(images?|imgs?|photos|pictures|jpegimages|annotations|masks|labels|trimaps)$", re.IGNORECASE
)
_SHARD = re.compile(r"\d{5,}")  # a folder of img2dataset
_SPLIT_WORD = re.compile(
    r"(?<![a-z])(train(ing)?|valid(ation)?|val|dev|test(ing)?|eval(uation)?)(?![a-z])", re.IGNORECASE
)


def folder_layouts(found: Found, folders: list[Stored], data: Data) -> list[Layout]:
    """Layouts of these folders; a pattern whose names tell splits gives those of one split."""
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
        chosen = _of_split(tars, parquet, folder.uri, data)
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
        chosen = _of_split(tars, parquet, folder.uri, data)
        tops = sorted({one.uri.removeprefix(folder.uri).split("/")[1] for one in chosen})
        also = f" in {count_of(len(tops), 'folder')}: {some_of(tops)}" if len(tops) > 1 else ""
        also += not_read("image", contents.images)
        return [shard_files("tar" if tars else "parquet", chosen, folder.uri, also)]
    if contents.tables:
        return [_metadata_layout(folder.uri, contents, found, data)]
    if not contents.images:
        raise UserError(f"data.uri={folder.uri} holds no .tar, no .parquet and no image")
    paths = [path for path, _ in found.files]
    if data.split is None:  # which says what a root of splits may be meant for
        _refuse_annotated(folder.uri, paths, data)
    if empty := sorted(set(below) - {path.split("/")[0] for path in paths if "/" in path}):
        raise UserError(
            f"data.uri={folder.uri} has folders of images and empty ones ({some_of(empty)}), which would move the "
            "labels of classes; remove them"
        )
    hidden = not_read("hidden file", [path for path in found.hidden if is_image(path)])
    return [
        _image_layout(own, images, files, hidden, data)
        for own, images, files in _split_folders(folder.uri, contents.images, paths, data)
    ]


def _of_split(tars: list[Stored], parquet: list[Stored], uri: str, data: Data) -> list[Stored]:
    """The tars, or else the Parquet files, of the split; a column of the latter may tell it, too."""
    may_hold = not tars and bool(column_splits([parquet[0].uri]))
    return of_split(tars or parquet, uri, uri, data, may_hold=may_hold)[0]


def _contents(paths: Sequence[str]) -> _Contents:
    return _Contents(
        [path for path in paths if is_tar(path)],
        [path for path in paths if is_parquet(path)],
        [path for path in paths if is_image(path)],
        [path for path in paths if posixpath.basename(path).lower() in METADATA],
    )


def _image_layout(folder: str, images: list[str], paths: list[str], hidden: str, data: Data) -> Layout:
    """Images with texts beside them, or in the folders of their classes."""
    texts, classes = texts_beside(paths), class_folders(images)
    has_most = 2 * len(texts) >= len(images) or len(classes) < 2
    if texts and has_most and _are_captions(folder, [path for own in texts.values() for path in own], data):
        lacking = len(images) - len(texts)
        note = f"; {lacking:,} of them have none" if lacking else ""
        kinds = ", ".join(sorted({f".{suffix_of(path)}" for own in texts.values() for path in own}))
        are_classes = len(classes) > 1 and not all(map(_SHARD.fullmatch, classes))
        return Layout(
            folder,
            "files",
            f"{count_of(len(images), 'image')} with captions in {kinds} of the same name{note}{hidden}",
            root=folder,
            entries=tuple(sample_entries(images, texts, classes if are_classes else ())),
        )
    if data.split is not None:
        _refuse_annotated(folder, paths, data)
    _check_classes(folder, classes, images, paths)
    number = count_of(len(classes), "class", "classes")
    beside = not_read("text", sorted(path for own in texts.values() for path in own), "beside images")
    says = f"{count_of(len(images), 'image')} in {number}: {some_of(classes)}{beside}{hidden}"
    return Layout(folder, "files", says, root=folder, images=tuple(images))


def _are_captions(folder: str, paths: Sequence[str], data: Data) -> bool:
    """Whether the first of these files hold words, or JSON with captions; the boxes of a detector are numbers."""
    for path in sorted(paths)[:TEXTS_LOOKED_AT]:
        fs, file = url_to_fs(f"{folder}/{path}")
        content = fs.cat_file(file)
        if suffix_of(path) == "json":
            record = Sample("", {"json": content}).record()
            if any(not is_blank(record.get(name)) for name in data.caption_columns):
                return True
        elif suffix_of(path) != "cls" and re.search(rb"[A-Za-z\x80-\xff]", content):
            return True
    return False


def _check_classes(folder: str, classes: Sequence[str], images: Sequence[str], paths: Sequence[str]) -> None:
    """Refuses folders that are no classes, which would move the labels of others or be the only one."""
    others = sorted({path.split("/")[0] for path in paths if "/" in path} - set(classes))
    deep = [name for name in classes if len(class_folders(_below(name, images))) > 1]
    if classes and others:
        kinds = sorted({f".{suffix_of(path)}" for path in paths if path.split("/")[0] in others})
        raise UserError(
            f"data.uri={folder} has folders of images ({some_of(classes)}) and others without any that is read "
            f"({some_of(others)}; {some_of(kinds)}), which are no classes or have images of another kind; "
            + (f"name the folder of the classes, {folder}/{deep[0]}" if deep else "remove what is no class")
        )
    mere = [name for name in classes if _MERE_IMAGES.search(name)]
    deeper = any(path.count("/") > 1 for path in images)
    if mere or (len(classes) == 1 and deeper):
        name = (mere or classes)[0]
        hint = f", or {folder}/{name} if that holds the folders of classes" if deeper else ""
        raise UserError(
            f"data.uri={folder} would take the folder {name} for a class, of {len(classes)}; name the file that says "
            f"what is in its images{hint} (docs/data.md)"
        )


def _split_folders(
    uri: str, images: list[str], paths: list[str], data: Data
) -> list[tuple[str, list[str], list[str]]]:
    """The folders to read, each with its images and files: that of the split, of all splits, or the whole."""
    tops = class_folders(images)
    named = {top: split for top in tops if (split := path_split(top))}
    # bullet_train and eval_kit may be classes, seg_train and seg_test are not
    alike = Counter(_SPLIT_WORD.sub("", top) for top in named)
    has_splits = (
        any(map(word_split, tops))
        or bool(named and len(named) == len(tops))
        or max(alike.values(), default=0) > 1
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
    """Refuses images beside a file with captions of them, which class folders would ignore."""
    beside = {path for own in texts_beside(paths).values() for path in own}
    named = [
        p for p in paths if p.lower().endswith(ANNOTATION_SUFFIXES) and not is_fact(p) and p not in beside
    ]
    # JSON last, as there may be one for each image
    named.sort(key=lambda path: (path.lower().endswith(".json"), path.count("/")))
    for path in named[:ANNOTATIONS_LOOKED_AT]:
        fs, file = url_to_fs(f"{folder}/{path}")
        size = fs.info(file)["size"]  # S3 has no range of an empty file
        if size and _has_captions(path, fs.cat_file(file, end=min(size, HEAD_BYTES)), data):
            raise UserError(
                f"data.uri={folder} holds images and {path}, which says what is in them; name that file, "
                f"data.uri={folder}/{path}, and the folder of its images as data.image_root; or move it away to read "
                "folders of images as classes"
            )


def is_fact(path: str) -> bool:
    """Whether a JSON file tells of a dataset or a download, and not of its images."""
    return posixpath.basename(path) in FACTS or path.endswith("_stats.json")


def _has_captions(path: str, head: bytes, data: Data) -> bool:
    """Whether the head of a file has names of images and captions; labels, numbers and URLs are none."""
    if path.lower().endswith(".json"):
        return _ANNOTATIONS.search(head) is not None
    first = head.decode(errors="replace").partition("\n")[0]
    if path.lower().endswith((".jsonl", ".ndjson")):
        columns = set(re.findall(r'"(\w+)"\s*:', first))
    else:
        columns = {name.strip(" \"'\r").lower() for name in re.split(r"[,\t|;]", first)}
    speaks = not columns.isdisjoint(PATH_COLUMNS) and not columns.isdisjoint((*data.caption_columns, *SAYING))
    return speaks or _CAPTIONED.match(first) is not None


def _metadata_layout(uri: str, contents: _Contents, found: Tree, data: Data) -> Layout:
    """Hugging Face's image folder: rows of metadata.jsonl or metadata.csv name the images beside it."""
    counts = Counter(posixpath.dirname(path) for path in contents.tables)
    if twice := [folder for folder, count in counts.items() if count > 1]:
        raise UserError(
            f"data.uri={uri} has two tables of metadata in one folder ({twice[0] or '.'}); remove one"
        )
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
