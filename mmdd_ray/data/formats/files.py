"""Single image files: how a folder lists them, and how they are read."""

import hashlib
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fsspec.core import url_to_fs

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import PROBE_ROWS, Head, Seen, lfs_complaint
from mmdd_ray.data.formats.samples import TEXT_SUFFIXES, Judge, Sample, sample_row
from mmdd_ray.data.pair import IMAGE_SUFFIXES, LFS_POINTER, Row, RowMaker
from mmdd_ray.data.shard import Entry, Shard
from mmdd_ray.storage.remote import open_stored, transporting

PROBE_THREADS = 16
CAPTION_SUFFIX = "caption"  # of kohya's texts


def suffix_of(path: str) -> str:
    """The lower-case suffix of a path, without its dot."""
    return posixpath.splitext(path)[1][1:].lower()


def is_image(path: str) -> bool:
    """Whether the name of a file is that of an image."""
    return suffix_of(path) in IMAGE_SUFFIXES


def class_folders(paths: Sequence[str]) -> list[str]:
    """The first sub-folders of these paths: names of classes, sorted; whole numbers by value."""
    names = {path.split("/")[0] for path in paths if "/" in path}
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def folder_entries(paths: Sequence[str], classes: Sequence[str]) -> list[Entry]:
    """Rows of an image folder from its files' relative paths, in an order that mixes the classes.

    The first sub-folder is the class: its name, underscores as spaces, is the caption and its place among
    ``classes`` the label. A file outside any class has no caption and will be refused. The key is the
    path without suffix, or with it where files differ in nothing else.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    taken = Counter([*stems.values(), *paths])  # 1.jpg.png must not take the key of a 1.jpg beside 1.gif
    entries = []
    for path in mixed(paths):
        label = label_of[path.split("/")[0]] if "/" in path else None
        captions = () if label is None else (classes[label].replace("_", " "),)
        key = stems[path] if taken[stems[path]] == 1 else path
        entries.append(Entry(key, path, captions, label))
    return entries


def mixed(paths: Sequence[str]) -> list[str]:
    """These paths in the order of their hashes: any run of rows, such as a shard or a batch, is like all of them."""
    return sorted(paths, key=lambda path: (hashlib.blake2s(os.fsencode(path)).digest(), path))


def texts_beside(paths: Sequence[str]) -> dict[str, list[str]]:
    """The .txt, .caption, .json and .cls files that have the name of an image among these paths, by the image.

    Its name with or without the suffix: ``1.txt`` and ``1.jpg.txt`` both belong to ``1.jpg``.
    """
    images = {name: path for path in paths if is_image(path) for name in (posixpath.splitext(path)[0], path)}
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        stem = posixpath.splitext(path)[0]
        if suffix_of(path) in (*TEXT_SUFFIXES, CAPTION_SUFFIX) and stem in images:
            found[images[stem]].append(path)
    return dict(found)


def sample_entries(
    paths: Sequence[str], texts: dict[str, list[str]], classes: Sequence[str] = ()
) -> list[Entry]:
    """Rows of images that have texts of the same name beside them; one without is refused for want of a caption.

    Args:
        classes: The first sub-folders, where they are classes.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    return [
        Entry(
            posixpath.splitext(path)[0],
            path,
            label=label_of.get(path.split("/")[0]),
            beside=tuple(texts.get(path, ())),
        )
        for path in mixed(paths)
    ]


class FilesFormat:
    """A ``Format``: the entries of a shard name the files."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        rows = len(shard.entries)
        head = [entry for entry in shard.entries if entry.reject is None and entry.path is not None][
            :PROBE_ROWS
        ]
        if not head:
            reasons = {entry.reject or "missing image" for entry in shard.entries}
            why = f"all {rows} rows of {data.uri} are refused: {', '.join(sorted(reasons))}" if rows else None
            return Seen(rows, complaint=why)
        spoken = any(entry.captions or entry.beside for entry in head)
        if not spoken and not (not data.needs_captions and any(entry.label is not None for entry in head)):
            complaint = (
                f"none of the first {len(head)} images of {data.uri} has a caption; put NAME.txt with the caption "
                "beside each image, or a metadata.jsonl with file_name and text; if another file says what is in them, "
                "name that file; only where labels are wanted, put each image into the folder of its class "
                "(docs/data.md)"
            )
            if any(entry.label is not None for entry in head):
                complaint += (
                    "; mmdd vlcp and mmdd evaluate-labelled take images in folders of classes, as these are"
                )
            return Seen(rows, complaint=complaint)
        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            starts = list(pool.map(lambda entry: _start(shard, entry), head))
        if not any(start is not None for start in starts):
            return Seen(
                rows,
                complaint=f"none of the first {len(head)} images exists, e.g. {shard.uri}/{head[0].path}; "
                "set data.image_root",
            )
        pointer = next((e for e, start in zip(head, starts, strict=True) if start == LFS_POINTER), None)
        if pointer is not None:
            return Seen(rows, complaint=lfs_complaint(f"{shard.uri}/{pointer.path}"))
        alone = [entry for entry in head if not entry.beside]
        maker = RowMaker(shard.name, data)
        made = [maker.make(entry.key, b"not looked at", entry.captions, entry.label) for entry in alone]
        if made and len(alone) == len(head) and all(row.reject for row in made):
            reasons = {str(row.reject) for row in made}
            return Seen(
                rows,
                complaint=f"none of the first {len(made)} images of {data.uri} can be used: "
                f"{', '.join(sorted(reasons))}, e.g. captions {alone[0].captions!r:.60}, label {alone[0].label!r:.40}",
            )
        if not any(entry.beside for entry in head):
            return Seen(rows, fits=True)
        judging = Judge(shard.uri, data)
        for entry in head:
            if not entry.beside:
                continue
            judging.look(_sample(shard, entry, data.max_member_mib * 2**20))
        return judging.seen()

    def count(self, shard: Shard) -> int | None:
        return shard.rows

    def head(self, shard: Shard, data: Data) -> Head:
        return Head(shard.rows or 0, 0, "image files")

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        for entry in shard.entries:
            if only is not None and maker.index not in only:
                maker.skip(1)
                continue
            if entry.beside:
                yield sample_row(_sample(shard, entry, maker.max_bytes), maker, shard.texts, entry.label)
                continue
            image = None if entry.path is None else _content(shard, entry.path, maker.max_bytes)
            yield maker.make(entry.key, image, entry.captions, entry.label, entry.reject)


def _sample(shard: Shard, entry: Entry, max_bytes: int) -> Sample:
    """The sample that an image and the texts beside it are."""
    sample = Sample(entry.key)
    for path in (*filter(None, [entry.path]), *entry.beside):
        content = _content(shard, path, max_bytes)
        if content is not None:
            suffix = suffix_of(path)
            sample.parts["txt" if suffix == CAPTION_SUFFIX else suffix] = content
    return sample


def _content(shard: Shard, path: str, max_bytes: int) -> bytes | None:
    """The file, up to one byte more than it may have; None if it is not there."""
    try:
        with open_stored(f"{shard.uri}/{path}") as file:
            return file.read(max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None  # refused as "missing image"


def _start(shard: Shard, entry: Entry) -> bytes | None:
    """As many bytes as tell a Git LFS pointer; None if the file is not there."""
    fs, path = url_to_fs(f"{shard.uri}/{entry.path}")
    try:
        with transporting(f"{shard.uri}/{entry.path}", "reading"):
            size = fs.info(path)["size"]  # S3 has no range of an empty file
            return fs.cat_file(path, end=min(size, len(LFS_POINTER))) if size else b""
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
