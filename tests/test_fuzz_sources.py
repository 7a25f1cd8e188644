"""Hostile and broken sources: folders of any tree, tables, compressed tars, texts of lists, rows of one image.

`make fuzz` tries ten thousand of each (MMDD_FUZZ_CASES).
"""

import bz2
import csv
import gzip
import io
import json
import posixpath
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import read
from test_fuzz import DATA, JSON, NAMES, generated, images, judge, members, tar_of

from mmdd_ray.config import Data
from mmdd_ray.data.compression import CompressionError, codec_of, decompressed
from mmdd_ray.data.formats.annotations import read_annotations
from mmdd_ray.data.formats.files import is_image
from mmdd_ray.data.formats.samples import listed_texts
from mmdd_ray.data.formats.tar import tar_samples
from mmdd_ray.data.listing import expand_braces, is_hidden
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.splits import ALL
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.held_out import join_rows

# ---- folders

FOLDERS = st.sampled_from(
    ("", "cat/", "dog_2/", "train/", "val2017/", "10/", "9/", ".git/", "__MACOSX/", "a/b/")
)
FILES = st.sampled_from(
    (
        "1.jpg",
        "1.png",
        "2.JPG",
        "1.txt",
        "2.json",
        "._1.jpg",
        "metadata.jsonl",
        "metadata.csv",
        "notes.md",
        "c.json",
    )
)
CONTENTS = {
    "txt": b"a cat on a chair",
    "json": b'{"caption": "a dog"}',
    "jsonl": b'{"file_name": "1.jpg", "text": "a cow"}\n',
    "csv": b"file_name,text\n1.jpg,a hen\n",
}


@generated
@given(st.sets(st.tuples(FOLDERS, FILES).map("".join), max_size=7), st.sampled_from((None, "train", ALL)))
def test_no_image_of_a_folder_is_lost_without_a_word(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], split: str | None
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        suffix = PurePosixPath(path).suffix[1:].lower()
        (root / path).write_bytes(CONTENTS.get(suffix, images()[0]))
    data = Data(uri=str(root), split=split, max_reject_ratio=1)
    try:
        rows = read(data)
    except UserError:
        return
    judge(rows)
    shown = [path for path in paths if is_image(path) and not any(map(is_hidden, path.split("/")))]
    has_table = any(PurePosixPath(path).name.startswith("metadata.") for path in paths)
    if not has_table and split != "train":  # metadata name their images, a split has its own
        assert len(rows) == len(shown)


# ---- tables and documents


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of rows, mostly with the columns that are looked for."""
    columns = draw(
        st.lists(st.sampled_from(("file_name", "image", "text", "caption", "label", "x")), unique=True)
    )
    rows = draw(
        st.lists(
            st.lists(NAMES | st.text(max_size=12), min_size=len(columns), max_size=len(columns)), max_size=5
        )
    )
    kind = draw(st.sampled_from((".csv", ".tsv", ".jsonl")))
    if kind == ".jsonl":
        odd = draw(st.lists(JSON, max_size=2))
        lines = [dict(zip(columns, row, strict=True)) for row in rows]
        text = "\n".join(json.dumps(line) for line in [*lines, *odd])
    else:
        file = io.StringIO()
        csv.writer(file, delimiter="\t" if kind == ".tsv" else ",").writerows([columns, *rows])
        text = file.getvalue()
    return f"x{kind}", text.encode(errors="surrogatepass")


@generated
@given(tables() | st.tuples(st.sampled_from(("x.csv", "x.jsonl", "x.json")), st.binary(max_size=60)))
def test_tables_name_files_inside_their_folder_or_are_refused(found: tuple[str, bytes]) -> None:
    name, content = found
    data = Data(uri=name)
    try:
        entries = read_annotations(name, content, "/images", data).entries
    except UserError:
        return
    for entry in entries:
        if entry.path is not None:
            inside = posixpath.normpath(posixpath.join("/images", "./" + entry.path))
            assert inside.startswith("/images/")
    maker = RowMaker("shard", DATA)
    judge([maker.make(e.key, images()[0], e.captions, e.label, e.reject) for e in entries])


@generated
@given(st.text(max_size=60) | JSON.map(json.dumps) | JSON.map(repr))
def test_the_text_of_a_list_is_a_list_of_texts_or_none(text: str) -> None:
    found = listed_texts(text)
    assert found is None or all(isinstance(one, str | None) for one in found)


# ---- compressed tars

COMPRESS = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "zstd": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@generated
@given(st.lists(members(), min_size=1, max_size=4).map(tar_of), st.sampled_from([*COMPRESS]), st.data())
def test_damaged_compression_ends_in_samples(content: bytes, kind: str, data: st.DataObject) -> None:
    packed = bytearray(COMPRESS[kind](content))
    whole = list(tar_samples(decompressed(io.BytesIO(packed), codec_of(packed)), 2**20))
    assert [sample.key for sample in whole] == [
        sample.key for sample in tar_samples(io.BytesIO(content), 2**20)
    ]
    for _ in range(data.draw(st.integers(0, 4))):
        packed[data.draw(st.integers(4, len(packed) - 1))] = data.draw(st.integers(0, 255))
    del packed[data.draw(st.integers(4, len(packed))) :]
    try:
        found = list(tar_samples(decompressed(io.BytesIO(packed), codec_of(packed)), 2**20))
    except CompressionError:  # what a reader of tars turns into a refused sample
        pytest.fail("damage that is not counted")
    assert len(found) <= len(whole) + 1


# ---- names


@generated
@given(st.text(st.sampled_from("ab{},.*[]?/:0123"), max_size=24))
def test_braces_of_any_kind_expand_or_are_refused(pattern: str) -> None:
    try:
        found = expand_braces(pattern)
    except UserError:
        return
    assert found
    assert found == [pattern] or all(one != pattern for one in found)


# ---- rows of one image

ROWS = st.lists(
    st.tuples(
        st.sampled_from((b"a", b"b", b"c", None)),
        st.lists(st.sampled_from(("x", "y", "z")), min_size=1, max_size=3),
        st.sampled_from((None, 0, 1)),
    ),
    max_size=12,
)


@generated
@given(ROWS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_rows_of_one_image_are_counted_once(found: list[Any], most: int, order: Any) -> None:
    rows = [
        Row(
            "s",
            index,
            str(index),
            image,
            captions if image else [],
            label,
            None if image else "missing image",
        )
        for index, (image, captions, label) in enumerate(found)
    ]
    shuffled = list(rows)
    order.shuffle(shuffled)
    joined = join_rows(shuffled, most)
    assert joined == join_rows(rows, most)
    usable = [row for row in rows if row.image]
    assert joined.rows_in == len(rows)
    assert joined.images == len({row.image for row in usable})
    assert len(joined.rows) == min(joined.images, most)
    for one in joined.rows:
        own = [row for row in usable if row.image == one.image]
        assert (one.index, one.label) == (own[0].index, own[0].label)
        alike = [row for row in own if row.label == one.label]
        assert one.captions == list(dict.fromkeys(text for row in alike for text in row.captions))
    assert len(joined.rejects) == len(rows) - len(usable) + sum(
        row.label != next(other.label for other in usable if other.image == row.image) for row in usable
    )


def test_a_range_of_braces_is_not_expanded_without_end() -> None:
    with pytest.raises(UserError, match="files; name fewer"):
        expand_braces("{0..999999999}.tar")
    assert Path(expand_braces("{0..1}")[1]).name == "1"
