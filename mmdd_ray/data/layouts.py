"""What a source holds: the kinds of its files, or what its folders hold. No Ray."""

from collections.abc import Sequence
from dataclasses import replace

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.folders import folder_layouts, is_fact
from mmdd_ray.data.formats.annotations import ANNOTATION_SUFFIXES, read_annotations
from mmdd_ray.data.formats.files import class_folders, folder_entries
from mmdd_ray.data.formats.parquet import column_splits
from mmdd_ray.data.layout import (
    Layout,
    bare_name,
    count_of,
    glob_root,
    is_parquet,
    is_tar,
    names_of,
    not_read,
    of_split,
    refuse_both,
    shard_files,
)
from mmdd_ray.data.listing import Found, Stored, full_uri, reachable
from mmdd_ray.data.shard import Kind
from mmdd_ray.errors import UserError


def layouts_of(found: Found, data: Data) -> list[Layout]:
    """What is read of a source: of folders what they hold, otherwise the files that it names.

    Raises:
        UserError: That is unclear, or nothing that is read.
    """
    folders = [one for one in found.stored if one.is_folder]
    kinds = _kinds(found, {bare_name(folder) for folder in folders})
    if folders and not any(kinds.values()):
        return folder_layouts(found, folders, data)
    layouts: list[Layout] = []
    for kind, chosen in kinds.items():
        if not chosen:
            continue
        own = data
        if not found.is_listed or data.split is not None:
            may_hold = kind == "files" or (kind == "parquet" and bool(column_splits([chosen[0].uri])))
            chosen, own = of_split(chosen, glob_root(found.uri), found.uri, data, may_hold=may_hold)
        if kind == "files":
            layouts += [_annotated(one.uri, own) for one in chosen]
        else:
            layouts.append(shard_files(kind, chosen, found.uri, not_read("folder", names_of(folders))))
    if layouts:
        return layouts
    raise UserError(
        f"data.uri={data.uri} matches {found.stored[0].uri}; expected .tar or .parquet files, .json, .jsonl or .csv, "
        "or a folder"
    )


def _kinds(found: Found, folders: set[str]) -> dict[Kind, list[Stored]]:
    """The files that are read, by kind.

    Not the tables and records that img2dataset writes beside its tars and folders of images; of a pattern, files of one
    kind.
    """
    files = [one for one in found.stored if not one.is_folder]
    tars = [one for one in files if is_tar(one.uri)]
    beside = {bare_name(tar) for tar in tars} | folders
    kinds: dict[Kind, list[Stored]] = {
        "tar": tars,
        "parquet": [one for one in files if is_parquet(one.uri) and bare_name(one) not in beside],
        "files": [
            one for one in files if one.uri.lower().endswith(ANNOTATION_SUFFIXES) and not is_fact(one.uri)
        ],
    }
    if found.is_listed:
        return kinds
    refuse_both(kinds["tar"], kinds["parquet"], found.uri)
    first = next((kind for kind, own in kinds.items() if own), None)
    return {kind: own if kind == first else [] for kind, own in kinds.items()}


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
    says = f"{read.kind}: {count_of(len(read.entries), 'image')}, {count_of(captions, 'caption')}"
    return Layout(uri, "files", says, root=full_uri(fs, path), entries=tuple(read.entries))
