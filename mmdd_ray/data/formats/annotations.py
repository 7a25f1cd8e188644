"""Files that name images and say what is in them: COCO and Karpathy JSON, lists in JSON, JSON lines, CSV and TSV."""

import csv
import io
import json
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import lfs_complaint
from mmdd_ray.data.formats.samples import all_listed, is_blank, listed_texts
from mmdd_ray.data.pair import LFS_POINTER
from mmdd_ray.data.shard import Entry
from mmdd_ray.data.splits import ALL, SPLIT_COLUMN, word_split
from mmdd_ray.errors import UserError

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".token")
ANNOTATION_SUFFIXES = (".json", *TABLE_SUFFIXES)
# Hugging Face's name for the path of an image, and those of open_clip, BLIP and others
PATH_COLUMNS = ("file_name", "filename", "image", "image_name", "image_path", "filepath", "path", "id")
DELIMITERS = ",\t|;"
_NAMED_IMAGE = re.compile(r"[^\t,|;]+\.(jpe?g|png|webp)(#\d+)?[\t,|;]", re.IGNORECASE)
ABSOLUTE = "absolute image path"


class Annotated(NamedTuple):
    """Contents of an annotation file."""

    entries: list[Entry]
    """In its order; the paths are relative to the image folder."""
    kind: str
    """For people."""


def read_annotations(name: str, content: bytes, root: str, data: Data) -> Annotated:
    """The rows of an annotation file.

    Args:
        name: Of the file; its suffix says what it is.
        root: The image folder, for paths that are absolute.

    Raises:
        UserError: It is not what its name says, or of a layout that is not read.
    """
    if content.startswith(LFS_POINTER):
        raise UserError(f"data.uri={data.uri}: {lfs_complaint(name)}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"data.uri={data.uri}: {name} is not UTF-8: {error}") from error
    if name.lower().endswith(TABLE_SUFFIXES):
        found = Annotated(_row_entries(_table_rows(name, text, data), root, data), f"rows of {name}")
    else:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not _is_object(text.partition("\n")[0]):
                raise UserError(f"data.uri={data.uri} is not JSON: {error}") from error
            document = _json_lines(name, text, data)  # some call them .json
        found = json_entries(document, root, data)
    absolute = [entry.key for entry in found.entries if entry.reject == ABSOLUTE]
    if found.entries and len(absolute) == len(found.entries):
        raise UserError(
            f"data.uri={data.uri}: the paths of its images are absolute, e.g. that of {absolute[0]}, and none lies in "
            f"{root}; set data.image_root to a folder above them, or make them relative to it"
        )
    return found


def json_entries(document: Any, root: str, data: Data) -> Annotated:
    """Rows of a COCO captions or Karpathy JSON document, or of a list of images with captions.

    Raises:
        UserError: It has any other layout.
    """
    try:
        if isinstance(document, list) and all(isinstance(row, Mapping) for row in document):
            return Annotated(_row_entries(document, root, data), "rows of a JSON list")
        images = document["images"]
        if "annotations" in document:
            return Annotated(_coco_entries(images, document["annotations"], root, data), "COCO captions")
        if any("sentences" in image for image in images):
            return Annotated(_karpathy_entries(images, root, data), "Karpathy JSON")
    except (AttributeError, KeyError, TypeError):
        pass
    keys = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
    raise UserError(
        f"data.uri={data.uri} is neither COCO captions ({{images: [{{id, file_name}}], annotations: "
        f"[{{image_id, caption}}]}}) nor Karpathy JSON ({{images: [{{filename, sentences: [{{raw}}], "
        f"split}}]}}) nor a list of [{{image, caption}}]: found {keys}"
    )


def _coco_entries(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], root: str, data: Data
) -> list[Entry]:
    _refuse_split(data)
    captions: dict[Any, list[Any]] = {image["id"]: [] for image in images}
    strays = []
    for annotation in annotations:
        if annotation["image_id"] in captions:
            captions[annotation["image_id"]].append(annotation["caption"])
        else:
            strays.append(annotation["image_id"])
    written = {str(number): number for number in captions}
    if strays and not any(captions.values()) and (twin := written.get(str(strays[0]))) is not None:
        raise UserError(
            f"data.uri={data.uri}: annotations name the image {strays[0]!r}, but images have the id {twin!r}; "
            "write both as numbers"
        )
    entries = [
        make_entry(
            image["file_name"], image["file_name"], captions[image["id"]], image.get(data.label_column), root
        )
        for image in images
    ]
    return entries + [Entry(f"image-{stray}", None) for stray in strays]  # refused: "missing image"


def _karpathy_entries(images: list[dict[str, Any]], root: str, data: Data) -> list[Entry]:
    kept = _kept_splits([image.get(SPLIT_COLUMN) for image in images], data)
    return [
        make_entry(
            image["filename"],
            "/".join(filter(None, (image.get("filepath"), image["filename"]))),
            [sentence["raw"] for sentence in image["sentences"]],
            image.get(data.label_column),
            root,
        )
        for image in images
        if kept is None or image.get(SPLIT_COLUMN) in kept
    ]


def _kept_splits(found: Sequence[Any], data: Data) -> set[Any] | None:
    """The splits to keep of those that rows have, as in Karpathy's files; None for all rows.

    Raises:
        UserError: There are several and none is wanted, or the wanted one is not there.
    """
    splits = sorted({split for split in found if isinstance(split, str)})
    if data.split == ALL or (data.split is None and len(splits) < 2):
        return None
    if data.split is None:
        raise UserError(
            f"data.uri={data.uri} holds several splits: {', '.join(splits)}; name one as data.split, e.g. "
            f"data.split={'train' if 'train' in splits else splits[0]}, or take everything with data.split={ALL}"
        )
    wanted = data.split if data.split in splits else None
    if wanted is None and (word := word_split(data.split)):
        wanted = next((split for split in splits if word_split(split) == word), None)
    if wanted is None:
        raise UserError(
            f"data.split={data.split!r} is not in {data.uri}: it has {', '.join(splits) or 'no splits'}"
        )
    return {wanted, "restval"} if wanted == "train" else {wanted}


def _refuse_split(data: Data) -> None:
    if data.split not in (None, ALL):
        raise UserError(
            f"data.split={data.split!r}, but {data.uri} does not say of its images which split they are in; name the "
            "file of the split"
        )


def _table_rows(name: str, text: str, data: Data) -> list[dict[str, Any]]:
    if name.lower().endswith((".jsonl", ".ndjson")):
        return _json_lines(name, text, data)
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    if _NAMED_IMAGE.match(header):  # image.jpg#0, a tab, and a caption; Flickr30K's .token has no header
        text = f"file_name{delimiter}text\n" + re.sub(rf"#\d+(?={re.escape(delimiter)})", "", text)
    # a tab-separated caption may well have a quotation mark in it
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" and '""' not in text else csv.QUOTE_MINIMAL
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
        quoting=quoting,
    )
    rows = []
    try:
        reader.fieldnames = [str(column).strip() for column in reader.fieldnames or ()]
        for row in reader:
            swallowed = [
                cell for cell in row.values() if isinstance(cell, str) and {"\n", delimiter} <= set(cell)
            ]
            if None in row or swallowed:
                raise csv.Error(
                    "it has more fields than the header, or a quotation mark that is never closed"
                )
            rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"data.uri={data.uri}: line {reader.line_num} of {name} cannot be read ({error}); put captions with "
            f"{delimiter!r} or quotation marks in quotation marks"
        ) from error
    return rows


def _json_lines(name: str, text: str, data: Data) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"data.uri={data.uri}: line {number} of {name} is not JSON: {error}") from error
    return rows


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _row_entries(rows: Sequence[Mapping[str, Any]], root: str, data: Data) -> list[Entry]:
    """Rows that name an image and say what is in it; those of one image are one entry with several captions."""
    if odd := [row for row in rows if not isinstance(row, Mapping)]:
        raise UserError(
            f"data.uri={data.uri} holds {odd[0]!r:.50} where an object is expected for each image"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    if SPLIT_COLUMN in names:
        kept = _kept_splits([row.get(SPLIT_COLUMN) for row in rows], data)
        rows = [row for row in rows if kept is None or row.get(SPLIT_COLUMN) in kept]
    else:
        _refuse_split(data)
    column = _path_column(names, data)
    captions = [name for name in data.caption_columns if name in names]
    if rows and (column is None or not (captions or data.label_column in names)):
        wanted = "the path of an image" if column is None else f"captions ({', '.join(data.caption_columns)})"
        setting = "data.image_column" if column is None else "data.caption_columns"
        raise UserError(
            f"no column of {data.uri} has {wanted}; name it as {setting}: found {', '.join(map(str, names))}"
        )
    texts = [next((row[name] for name in captions if not is_blank(row.get(name))), None) for row in rows]
    if all_listed(texts):
        texts = [listed_texts(text) if isinstance(text, str) else text for text in texts]
    said: dict[str, list[Any]] = defaultdict(list)
    labels: dict[str, Any] = {}
    strays = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        path, label = row.get(str(column)), _number(row.get(data.label_column))
        if not isinstance(path, str) or not path:
            strays.append(Entry(f"row-{number}", None))  # refused: "missing image"
        elif labels.setdefault(path, label) != label:
            strays.append(Entry(posixpath.splitext(path)[0], None, reject="same image with another label"))
        else:
            own = text if isinstance(text, list) else [text] if text is not None else []
            said[path] += [one for one in own if one not in said[path]]  # the same again says nothing
    return [make_entry(path, path, own, labels[path], root) for path, own in said.items()] + strays


def _path_column(names: Sequence[str], data: Data) -> str | None:
    wanted = (data.image_column,) if data.names_image_column else PATH_COLUMNS
    return next((name for name in wanted if name in names), None)


def _number(found: Any) -> Any:
    """A number that CSV holds as text."""
    try:
        return int(found) if isinstance(found, str) and len(found) < 19 else found
    except ValueError:
        return found or None


def make_entry(name: str, path: str, captions: Sequence[Any], label: Any, root: str) -> Entry:
    """The row of an image; refused where its path leads out of the image folder.

    Raises:
        AttributeError, TypeError: ``path`` is no text.
    """
    key = posixpath.splitext(name)[0]
    inside = posixpath.relpath(path, root) if posixpath.isabs(path) and posixpath.isabs(root) else path
    if posixpath.isabs(path) and (inside == path or inside.startswith("..")):
        return Entry(key, None, reject=ABSOLUTE)
    if not stays_inside(inside):
        return Entry(key, None, reject="unsafe image path")
    return Entry(key, inside, tuple(captions), label)


def stays_inside(path: str) -> bool:
    """Whether a path found in a data file is a plain relative one that a file system can hold."""
    parts = path.split("/")
    return (
        path.isprintable() and ".." not in parts and all(0 < len(os.fsencode(part)) <= 255 for part in parts)
    )
