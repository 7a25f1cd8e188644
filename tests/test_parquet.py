"""Parquet: images, captions and columns, and what damage costs."""

from pathlib import Path

import pyarrow as pa
import pytest
from source_files import fates, read, write_parquet

from mmdd_ray.config import Data
from mmdd_ray.data.pair import Row
from mmdd_ray.data.shards import list_shards


def test_parquet_reads_binary_and_hugging_face_images_strings_and_lists(tmp_path):
    plain = {
        "image": [b"a", b"b"],
        "caption": ["one", "two"],
        "key": ["k", "l"],
        "label": pa.array([1, 0], "int32"),
    }
    nested = {
        "img": [{"bytes": b"c", "path": "c.jpg"}, {"bytes": None, "path": "d"}],
        "raw": [["x", "y"], ["z"]],
    }
    plain_uri = write_parquet(tmp_path / "plain.parquet", plain)
    nested_uri = write_parquet(tmp_path / "nested.parquet", nested)
    assert read(Data(uri=plain_uri)) == [
        Row("plain", 0, "k", b"a", ["one"], 1, None),
        Row("plain", 1, "l", b"b", ["two"], 0, None),
    ]
    assert read(Data(uri=nested_uri, image_column="img", caption_columns=("nothing", "raw"))) == [
        Row("nested", 0, "nested-000000", b"c", ["x", "y"], None, None),
        Row("nested", 1, "nested-000001", None, [], None, "missing image"),
    ]


def test_bad_parquet_cells_are_refused(tmp_path):
    images = [b"a", None, b"", b"b", b"c", b"d"]
    captions = ["one", "two", "three", None, "  ", "six"]
    uri = write_parquet(tmp_path / "0.parquet", {"image": images, "text": captions, "key": [*"abcdea"]})
    reasons = [None, "missing image", "zero-byte image", "missing caption", "blank caption", None]
    assert [row.reject for row in read(Data(uri=uri))] == reasons


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path):
    images = [bytes([n]) * 1000 for n in range(30)]
    uri = write_parquet(
        tmp_path / "0.parquet",
        {"image": images, "text": ["a dog"] * 30},
        row_group_size=10,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    content = bytearray(Path(uri).read_bytes())
    content[content.index(images[15]) + 500] ^= 255
    Path(uri).write_bytes(content)
    rows = read(Data(uri=uri))
    assert [row.reject for row in rows] == [None] * 10 + ["unreadable row group"] * 10 + [None] * 10
    assert [row.image for row in rows[20:]] == images[20:]


def test_a_truncated_parquet_file_is_one_refused_row(tmp_path):
    uri = write_parquet(tmp_path / "0.parquet", {"image": [b"a"], "text": ["b"]})
    Path(uri).write_bytes(Path(uri).read_bytes()[:-20])
    assert fates(read(Data(uri=uri))) == [("", "unreadable parquet")]


def test_one_parquet_file_with_other_columns_is_refused_row_by_row(tmp_path):
    write_parquet(tmp_path / "0.parquet", {"image": [b"a"], "text": ["b"]})
    write_parquet(tmp_path / "1.parquet", {"image": [b"a"] * 3, "title": ["b"] * 3})
    assert [row.reject for row in read(Data(uri=str(tmp_path)))] == [None] + ["wrong columns"] * 3


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"image_column": "picture"}, r"data.image_column='picture' .* columns jpg, text, cls, name"),
        ({"image_column": "cls"}, r"data.image_column='cls' holds int64"),
        ({"caption_columns": ("alt",)}, r"data.caption_columns \(alt\) .* columns jpg, text, cls, name"),
        ({"caption_columns": ("cls",)}, r"data.caption_columns: 'cls' holds int64"),
        ({"label_column": "name"}, r"data.label_column='name' holds string"),
        ({"label_column": "clas"}, r"data.label_column='clas' is not in .* columns jpg, text, cls, name"),
        ({"key_column": "idd"}, r"data.key_column='idd' is not in .* columns jpg, text, cls, name"),
    ],
)
def test_a_wrong_column_is_one_sentence_that_names_the_columns(tmp_path, settings, complaint):
    columns = {"jpg": [b"a"], "text": ["b"], "cls": [1], "name": ["c"]}
    uri = write_parquet(tmp_path / "0.parquet", columns)
    with pytest.raises(ValueError, match=complaint):
        list_shards(Data(uri=uri, **{"image_column": "jpg", **settings}))


def test_key_and_label_columns_may_be_absent_unless_they_were_named(tmp_path):
    uri = write_parquet(tmp_path / "0.parquet", {"image": [b"a"], "text": ["b"], "id": [7], "cls": [1]})
    assert [(row.key, row.label) for row in read(Data(uri=uri))] == [("0-000000", None)]
    assert [(row.key, row.label) for row in read(Data(uri=uri, key_column="id", label_column="cls"))] == [
        ("7", 1)
    ]
    assert [(row.key, row.label) for row in read(Data(uri=uri, key_column="", label_column=""))] == [
        ("0-000000", None)
    ]
