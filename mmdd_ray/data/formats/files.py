"""Single image files: how an annotation file or a folder lists them."""

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import PROBE_ROWS, Head, Seen
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shard import Entry, Shard
from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import open_stored


def json_entries(document: Any, data: Data) -> list[Entry]:
    """Rows of a COCO captions or Karpathy JSON document, in its order; UserError for any other layout."""
    try:
        images = document["images"]
        if "annotations" in document:
            return _coco_entries(images, document["annotations"], data)
        if any("sentences" in image for image in images):
            return _karpathy_entries(images, data)
    except (AttributeError, KeyError, TypeError):
        pass
    keys = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
    raise UserError(
        f"data.uri={data.uri} is neither COCO captions ({{images: [{{id, file_name}}], annotations: "
        f"[{{image_id, caption}}]}}) nor Karpathy JSON ({{images: [{{filename, sentences: [{{raw}}], "
        f"split}}]}}): found {keys}"
    )


def _coco_entries(images: list[dict[str, Any]], annotations: list[dict[str, Any]], data: Data) -> list[Entry]:
    if data.split is not None:
        raise UserError(
            f"data.split={data.split!r} works with Karpathy JSON only; name the file of the split"
        )
    captions: dict[Any, list[Any]] = {image["id"]: [] for image in images}
    strays = []
    for annotation in annotations:
        if annotation["image_id"] in captions:
            captions[annotation["image_id"]].append(annotation["caption"])
        else:
            strays.append(Entry(f"image-{annotation['image_id']}", None))  # refused: "missing image"
    return [
        _entry(image["file_name"], image["file_name"], captions[image["id"]], image.get(data.label_column))
        for image in images
    ] + strays


def _karpathy_entries(images: list[dict[str, Any]], data: Data) -> list[Entry]:
    splits = {image["split"] for image in images} if data.split is not None else set()
    if data.split is not None and data.split not in splits:
        raise UserError(f"data.split={data.split!r} is not in {data.uri}: it has {', '.join(sorted(splits))}")
    kept = {data.split, "restval"} if data.split == "train" else {data.split}
    return [
        _entry(
            image["filename"],
            "/".join(filter(None, (image.get("filepath"), image["filename"]))),
            [sentence["raw"] for sentence in image["sentences"]],
            image.get(data.label_column),
        )
        for image in images
        if data.split is None or image["split"] in kept
    ]


def _entry(name: str, path: str, captions: list[Any], label: Any) -> Entry:
    key = posixpath.splitext(name)[0]
    if not _stays_inside(path):
        return Entry(key, None, reject="unsafe image path")
    return Entry(key, path, tuple(captions), label)


def _stays_inside(path: str) -> bool:
    """Whether a path found in a data file is a plain relative one that a file system can hold."""
    parts = path.split("/")
    return (
        path.isprintable() and ".." not in parts and all(0 < len(os.fsencode(part)) <= 255 for part in parts)
    )


def folder_entries(paths: Sequence[str]) -> list[Entry]:
    """Rows of an image folder from its files' relative paths, in an order that mixes the classes.

    It is that of a hash of their paths: any run of rows, such as a shard, a batch or the first rows, has all classes.

    The first sub-folder is the class: its name, underscores as spaces, is the caption and its place among
    the sorted names the label. A file outside any class has no caption and will be refused. The key is the
    path without suffix, or with it where files differ in nothing else.
    """
    classes = sorted({path.split("/")[0] for path in paths if "/" in path})
    label_of = {name: label for label, name in enumerate(classes)}
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    taken = Counter([*stems.values(), *paths])  # 1.jpg.png must not take the key of a 1.jpg beside 1.gif
    entries = []
    for path in sorted(paths, key=lambda path: (hashlib.blake2s(os.fsencode(path)).digest(), path)):
        label = label_of[path.split("/")[0]] if "/" in path else None
        captions = () if label is None else (classes[label].replace("_", " "),)
        key = stems[path] if taken[stems[path]] == 1 else path
        entries.append(Entry(key, path, captions, label))
    return entries


class FilesFormat:
    """A ``Format``: the entries of a shard name the files."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        rows = len(shard.entries)
        judged = [entry for entry in shard.entries if entry.reject is None]
        if not judged:
            return Seen(rows)
        if not any(entry.captions for entry in judged):
            return Seen(
                rows,
                complaint=f"none of the first {len(judged)} images of {data.uri} has a caption; "
                "in an image folder every image must lie in the sub-folder of its class",
            )
        fs, root = url_to_fs(shard.uri)
        paths = [f"{root}/{entry.path}" for entry in judged[:PROBE_ROWS] if entry.path is not None]
        if paths and not any(map(fs.exists, paths)):
            return Seen(
                rows,
                complaint=f"none of the first {len(paths)} images exists, e.g. {paths[0]}; set data.image_root",
            )
        return Seen(rows, fits=True)

    def count(self, shard: Shard) -> int | None:
        return shard.rows

    def head(self, shard: Shard, data: Data) -> Head:
        return Head(shard.rows or 0, 0, "image files")

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        for entry in shard.entries:
            if only is not None and maker.index not in only:
                maker.skip(1)
                continue
            image = None
            if entry.path is not None:
                try:
                    with open_stored(f"{shard.uri}/{entry.path}") as file:
                        image = file.read(maker.max_bytes + 1)
                except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                    pass  # refused as "missing image"
            yield maker.make(entry.key, image, entry.captions, entry.label, entry.reject)
