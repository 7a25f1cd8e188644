import functools
import http.server
import io
import json
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.images import decode_image
from mmdd_ray.data.inventory import read_downloads
from mmdd_ray.data.readers import Shard, iter_shard
from mmdd_ray.data.schema import PAIR_SCHEMA, Row, pairs_table, safe_name
from mmdd_ray.data.shapes import pairs
from mmdd_ray.data.shards import check_data, expand_braces, find_shards, list_shards
from mmdd_ray.errors import TransportError, UserError

Members = list[tuple[str, bytes]]


def jpeg(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level % 256, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def pair(key: str, caption: str = "a dog", level: int = 0) -> Members:
    return [(f"{key}.jpg", jpeg(level)), (f"{key}.txt", caption.encode())]


def tar_bytes(members: Members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, members: Members) -> str:
    path.write_bytes(tar_bytes(members))
    return str(path)


def write_json(path: Path, document: object) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def write_images(folder: Path, *names: str) -> None:
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(level))


def read(data: Data, only: set[int] | None = None) -> list[Row]:
    return [row for shard in list_shards(data) for row in iter_shard(shard, data, only)]


def fates(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row.key, row.reject) for row in rows]


# ---- tars


def test_tar_rows_carry_image_captions_label_and_address(tmp_path):
    uri = write_tar(
        tmp_path / "00012.tar",
        [
            *pair("a", " one\n dog "),
            ("b.PNG", b"png"),
            ("b.json", json.dumps({"captions": ["two cats", "", "cats"], "label": 3}).encode()),
            ("c.webp", b"webp"),
            ("c.json", b'{"caption": null, "text": "a cow"}'),
            ("c.txt", b"not this one"),
            ("c.seg.npy", b"ignored"),
        ],
    )
    assert read(Data(uri=uri)) == [
        Row("00012", 0, "a", jpeg(), ["one dog"], None, None),
        Row("00012", 1, "b", b"png", ["two cats", "cats"], 3, None),
        Row("00012", 2, "c", b"webp", ["a cow"], None, None),
    ]


@pytest.mark.parametrize(
    ("record", "captions"),
    [
        ({"captions": []}, ["a dog"]),
        ({"captions": ["", " "]}, ["a dog"]),
        ({"captions": [None]}, ["a dog"]),
        ({"caption": " \n"}, ["a dog"]),
        ({"captions": [], "caption": "", "text": "two cats"}, ["two cats"]),
        ({"captions": ["", "two cats"], "caption": "no"}, ["two cats"]),
    ],
)
def test_blank_captions_give_way_to_the_next_candidate(tmp_path, record, captions):
    members = [*pair("a"), ("a.json", json.dumps(record).encode())]
    assert [row.captions for row in read(Data(uri=write_tar(tmp_path / "0.tar", members)))] == [captions]


BAD_SAMPLES = {
    "zero-byte image": [("x.jpg", b""), ("x.txt", b"a dog")],
    "missing image": [("x.txt", b"a dog"), ("x.mp4", b"film")],
    "missing caption": [("x.jpg", jpeg())],
    "blank caption": [("x.jpg", jpeg()), ("x.json", b'{"caption": " "}'), ("x.txt", b" \n\t")],
    "caption too long": pair("x", "long " * 300),
    "caption is not UTF-8": [("x.jpg", jpeg()), ("x.txt", b"caf\xe9")],
    "caption is not text": [("x.jpg", jpeg()), ("x.json", b'{"captions": ["a", {"b": 1}]}')],
    "member too large": [("x.jpg", b"0" * (2**20 + 1)), ("x.txt", b"a dog")],
    "unreadable json": [("x.jpg", jpeg()), ("x.json", b'{"caption": "a d'), ("x.txt", b"a dog")],
    "label is not an integer": [("x.jpg", jpeg()), ("x.json", b'{"caption": "a dog", "label": "dog"}')],
    "duplicate key": pair("good", "another dog"),
}


@pytest.mark.parametrize("reason", BAD_SAMPLES)
def test_a_bad_sample_is_refused_with_its_reason_and_costs_no_other(tmp_path, reason):
    uri = write_tar(tmp_path / "0.tar", [*pair("good"), *BAD_SAMPLES[reason], *pair("last")])
    rows = read(Data(uri=uri, max_member_mib=1, max_caption_chars=1000))
    assert [row.reject for row in rows] == [None, reason, None]
    assert (rows[1].image, rows[1].captions, rows[1].index) == (None, [], 1)


@pytest.mark.parametrize(
    "text", ["null", "[1]", "{" * 10, "[" * 100_000, '{"n": ' + "9" * 5000 + "}", "\x80\x81"]
)
def test_hostile_json_is_refused(tmp_path, text):
    uri = write_tar(
        tmp_path / "0.tar", [*pair("good"), ("x.jpg", jpeg()), ("x.json", text.encode("latin-1"))]
    )
    assert fates(read(Data(uri=uri))) == [("good", None), ("x", "unreadable json")]


def test_a_lone_surrogate_in_json_is_refused_and_never_reaches_arrow(tmp_path):
    uri = write_tar(
        tmp_path / "0.tar", [*pair("good"), ("x.jpg", jpeg()), ("x.json", b'{"caption": "\\ud800"}')]
    )
    rows = read(Data(uri=uri))
    assert fates(rows)[1] == ("x", "caption is not UTF-8")
    assert pairs_table(rows).schema == PAIR_SCHEMA


def test_links_and_devices_are_refused_and_never_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in pair("good"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "a"), (tarfile.LNKTYPE, "b"), (tarfile.CHRTYPE, "c")):
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    link = "link or device in tar"
    rows = read(Data(uri=str(tmp_path / "0.tar")))
    assert fates(rows) == [("good", None), ("a", link), ("b", link), ("c", link)]


def test_hidden_files_between_members_do_not_split_a_sample(tmp_path):
    (image, text) = pair("./a")
    uri = write_tar(tmp_path / "0.tar", [("./._a.jpg", b"mac"), image, ("./._a.txt", b"mac"), text])
    assert fates(read(Data(uri=uri))) == [("a", None)]


def test_a_tar_cut_anywhere_gives_its_whole_samples_and_says_that_it_was_cut(tmp_path):
    content = tar_bytes([member for n in range(3) for member in pair(f"k{n}", level=n)])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [member.offset_data + member.size for member in tar][1::2]  # of each sample's last byte
        marker = tar.offset  # where the two zero blocks begin
    data = Data(uri=str(tmp_path / "cut.tar"))
    for cut in {0, 1, *range(0, marker, 150), *range(0, marker, 512), *ends, marker}:
        Path(data.uri).write_bytes(content[:cut])
        rows = read(data)
        accepted = [row.key for row in rows if row.reject is None]
        assert accepted == [f"k{n}" for n, end in enumerate(ends) if end <= cut], cut
        assert rows[-1].reject == "truncated tar", cut
        assert [row.index for row in rows] == list(range(len(rows)))
    Path(data.uri).write_bytes(content[: marker + 512])
    assert fates(read(data)) == [("k0", None), ("k1", None), ("k2", None)]


def test_a_damaged_header_ends_the_tar_with_one_refused_row(tmp_path):
    content = bytearray(tar_bytes(pair("a") + pair("b") + pair("c")))
    at = content.index(b"b.jpg")
    content[at : at + 100] = b"\xff" * 100
    (tmp_path / "0.tar").write_bytes(content)
    assert fates(read(Data(uri=str(tmp_path / "0.tar")))) == [("a", None), ("", "damaged tar")]


def test_zeros_that_read_like_the_end_of_a_tar_do_not_hide_what_follows(tmp_path):
    content = tar_bytes(pair("a") + pair("b") + pair("c"))
    at = content.index(b"b.jpg")
    lost = [("a", None), ("", "damaged tar")]
    data = Data(uri=str(tmp_path / "0.tar"))
    for end, expected in (
        (bytes(512) + content[at + 512 :], lost),  # a header that was zeroed
        (bytes(2**21), lost),  # a download that never filled its file
        (bytes(10240), [("a", None)]),  # as tar ends
        (bytes(2**20), [("a", None)]),  # as it may end
    ):
        Path(data.uri).write_bytes(content[:at] + end)
        assert fates(read(data)) == expected


def test_a_file_that_is_no_tar_is_one_refused_row(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"<html>404</html>" * 100)
    assert fates(read(Data(uri=str(tmp_path / "0.tar")))) == [("", "damaged tar")]


def test_random_damage_to_a_tar_never_raises(tmp_path):
    rng = np.random.default_rng(0)
    content = tar_bytes([member for n in range(4) for member in pair("k" * 120 + str(n))])
    data = Data(uri=str(tmp_path / "0.tar"))
    shard = Shard("0", "tar", data.uri)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), size=6):
            damaged[place] = rng.integers(256)
        Path(data.uri).write_bytes(damaged)
        assert list(iter_shard(shard, data))


def test_a_tar_is_streamed_one_sample_at_a_time(tmp_path):
    members = [member for n in range(40) for member in ((f"{n}.jpg", b"0" * 2**20), (f"{n}.txt", b"a dog"))]
    data = Data(uri=write_tar(tmp_path / "0.tar", members))
    tracemalloc.start()
    assert sum(len(row.image or b"") for row in iter_shard(Shard("0", "tar", data.uri), data)) == 40 * 2**20
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 6 * 2**20


# ---- labels without captions


def test_labelled_images_need_no_caption_where_none_is_needed(tmp_path):
    """As ImageNet stands on hubs: tars of jpg and cls, Parquet of image and label."""
    image = jpeg()
    members: Members = [
        ("a.jpg", image),
        ("a.cls", b"7\n"),
        ("b.jpg", image),
        ("b.cls", b"owl"),
        ("c.jpg", image),
    ]
    tar = write_tar(tmp_path / "0.tar", [*members, ("d.jpg", image), ("d.cls", b"3"), ("d.txt", b" ")])
    parquet = write_parquet(
        tmp_path / "0.parquet", {"image": [image] * 2, "label": pa.array([4, None], pa.int64())}
    )
    rows = read(Data(uri=tar, needs_captions=False))
    assert fates(rows) == [
        ("a", None),
        ("b", "missing caption"),
        ("c", "missing caption"),
        ("d", None),
    ]
    assert [(row.label, row.captions) for row in rows if row.reject is None] == [(7, ["7"]), (3, ["3"])]
    rows = read(Data(uri=parquet, needs_captions=False))
    assert [(row.label, row.captions, row.reject) for row in rows] == [
        (4, ["4"], None),
        (None, [], "missing caption"),
    ]
    named = write_tar(tmp_path / "2.tar", [*pair("e"), ("e.cls", b"owl"), *pair("f"), ("f.cls", b"-2")])
    assert [(row.label, row.reject) for row in read(Data(uri=named))] == [(None, None), (-2, None)]
    assert [row.label for row in read(Data(uri=named, label_column=""))] == [None, None]
    for uri in (parquet, write_tar(tmp_path / "1.tar", members)):
        with pytest.raises(UserError, match="caption"):
            list_shards(Data(uri=uri))


# ---- Parquet


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


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
    reasons = [None, "missing image", "zero-byte image", "missing caption", "blank caption", "duplicate key"]
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


# ---- annotation files and image folders


def coco(*file_names: str) -> dict[str, list[dict[str, object]]]:
    images = [{"id": n, "file_name": name} for n, name in enumerate(file_names)]
    return {
        "images": images,
        "annotations": [{"image_id": image["id"], "caption": "a dog"} for image in images],
    }


def test_coco_captions_are_grouped_by_image(tmp_path):
    write_images(tmp_path / "images", "a.jpg", "b.jpg")
    document = coco("a.jpg", "b.jpg")
    document["annotations"] += [{"image_id": 0, "caption": "two"}, {"image_id": 7, "caption": "whose?"}]
    uri = write_json(tmp_path / "captions_val.json", document)
    assert read(Data(uri=uri, image_root=str(tmp_path / "images"), rows_per_shard=2)) == [
        Row("captions_val-00000", 0, "a", jpeg(0), ["a dog", "two"], None, None),
        Row("captions_val-00000", 1, "b", jpeg(1), ["a dog"], None, None),
        Row("captions_val-00001", 0, "image-7", None, [], None, "missing image"),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.jpg", "missing image"),
        ("folder", "missing image"),
        ("../secret.jpg", "unsafe image path"),
        ("/etc/passwd", "unsafe image path"),
        ("", "unsafe image path"),
        ("a\0.jpg", "unsafe image path"),
        ("a" * 300 + ".jpg", "unsafe image path"),
        ("\ud800.jpg", "unsafe image path"),
    ],
)
def test_coco_paths_that_lead_nowhere_or_outside_are_refused(tmp_path, name, reason):
    write_images(tmp_path, "secret.jpg", "root/a.jpg", "root/folder/b.jpg")
    uri = write_json(tmp_path / "c.json", coco("a.jpg", name))
    assert [row.reject for row in read(Data(uri=uri, image_root=str(tmp_path / "root")))] == [None, reason]


def test_karpathy_train_takes_restval_along(tmp_path):
    splits = ("train", "restval", "val", "test")
    write_images(tmp_path, *(f"val2014/{split}.jpg" for split in splits))
    images = [
        {"filename": f"{split}.jpg", "filepath": "val2014", "split": split, "sentences": [{"raw": split}]}
        for split in splits
    ]
    data = Data(uri=write_json(tmp_path / "dataset.json", {"images": images}))
    assert [row.captions for row in read(data)] == [[split] for split in splits]
    assert [row.key for row in read(replace(data, split="train"))] == ["train", "restval"]
    assert [row.image for row in read(replace(data, split="test"))] == [jpeg(3)]
    with pytest.raises(ValueError, match=r"data.split='dev' .* restval, test, train, val"):
        list_shards(replace(data, split="dev"))


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([1, 2], "neither COCO captions .* found list"),
        ({"images": [{"url": "x"}], "licenses": []}, "neither COCO captions .* found images, licenses"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]},
            "neither",
        ),
        (coco("x.jpg", "y.jpg"), "none of the first 2 images exists.*data.image_root"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "has a caption"),
        ({"images": [], "annotations": []}, "no rows"),
    ],
)
def test_an_unusable_annotation_file_is_one_sentence(tmp_path, document, complaint):
    write_images(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=complaint):
        list_shards(Data(uri=write_json(tmp_path / "c.json", document)))


def test_validation_and_test_images_lie_in_folders_of_their_own(tmp_path):
    write_images(tmp_path, "train2017/a.jpg", "val2017/b.jpg", "val2017/c.jpg", "annotations/d.jpg")
    train, val, test = (
        write_json(tmp_path / "annotations" / f"{name}.json", coco(f"{image}.jpg"))
        for name, image in (("train", "a"), ("val", "b"), ("test", "d"))
    )
    data = Data(uri=train, image_root=str(tmp_path / "train2017"))
    evaluation = Evaluation(val=val, val_image_root=str(tmp_path / "val2017"), test=test)
    check_data(data, evaluation)
    assert [[row.key for row in read(source)] for source in (data, *evaluation.sources(data).values())] == [
        ["a"],
        ["b"],
        ["d"],
    ]
    with pytest.raises(UserError, match=r"^evaluation.val: none of .*; set evaluation.val_image_root$"):
        check_data(data, replace(evaluation, val_image_root=None))
    with pytest.raises(UserError, match=r"^evaluation.test: evaluation.test_image_root=.*nowhere"):
        check_data(data, replace(evaluation, test_image_root=str(tmp_path / "nowhere")))


def test_splits_of_one_karpathy_file_share_its_image_folder(tmp_path):
    splits = ("train", "val", "test")
    write_images(tmp_path / "images", *(f"{split}.jpg" for split in splits))
    images = [{"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split}]} for split in splits]
    uri = write_json(tmp_path / "dataset.json", {"images": images})
    data = Data(uri=uri, image_root=str(tmp_path / "images"), split="train")
    evaluation = Evaluation(val=uri, val_split="val", test=uri, test_split="test")
    check_data(data, evaluation)
    assert [[row.key for row in read(source)] for source in evaluation.sources(data).values()] == [
        ["val"],
        ["test"],
    ]
    with pytest.raises(UserError, match=r"^evaluation.test: evaluation.test_split='dev' is not in"):
        check_data(data, replace(evaluation, test_split="dev"))


def test_a_missing_image_root_is_named(tmp_path):
    uri = write_json(tmp_path / "c.json", coco("a.jpg"))
    with pytest.raises(ValueError, match=r"data.image_root=.*nowhere"):
        list_shards(Data(uri=uri, image_root=str(tmp_path / "nowhere")))


def test_an_image_folder_is_labelled_by_sorted_class(tmp_path):  # and its rows are in the order of a hash
    write_images(tmp_path, "tabby_cat/2.JPEG", "airplane/x/1.png", "airplane/0.jpg", "stray.jpg")
    (tmp_path / "airplane" / "notes.md").write_text("no image")
    rows = read(Data(uri=str(tmp_path), rows_per_shard=3))
    assert [(row.captions, row.label, row.reject) for row in rows] == [
        (["airplane"], 0, None),
        (["airplane"], 0, None),
        ([], None, "missing caption"),
        (["tabby cat"], 1, None),
    ]
    assert [row.image for row in rows] == [jpeg(2), jpeg(1), None, jpeg(0)]
    assert len({row.key for row in rows}) == 4


def test_images_that_differ_in_their_suffix_alone_get_keys_of_their_own(tmp_path):
    write_images(tmp_path, "cat/1.jpg", "cat/1.png", "cat/1.jpg.png", "cat/2.jpg", "dog/1.jpg")
    rows = read(Data(uri=str(tmp_path)))
    assert [row.reject for row in rows] == [None] * 5
    names = ("cat/1.jpg", "cat/1.jpg.png", "cat/1.png", "cat/2", "dog/1")
    assert {row.key for row in rows} == {safe_name(name) for name in names}


def test_any_run_of_an_image_folder_has_all_classes(tmp_path):
    """Whoever trains in the order of the rows, or takes the first of them, must not see class after class."""
    write_images(tmp_path, *(f"{name}/{n}.jpg" for name in "abc" for n in range(40)))
    labels = [row.label for row in read(Data(uri=str(tmp_path)))]
    assert sorted(labels) == [0] * 40 + [1] * 40 + [2] * 40
    for start in range(0, 120, 30):
        assert min(labels[start : start + 30].count(label) for label in range(3)) >= 3
    assert {row.label for row in read(Data(uri=str(tmp_path), limit=20))} == {0, 1, 2}
    assert labels == [row.label for row in read(Data(uri=str(tmp_path)))]


def test_a_folder_of_images_without_classes_is_one_sentence(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(ValueError, match="sub-folder of its class"):
        list_shards(Data(uri=str(tmp_path)))


# ---- the procedural data set


def test_shapes_are_the_pairs_of_the_generator_whatever_the_shard_size():
    drawn = list(pairs(0, 7, seed=5, image_px=16, labelled=True))
    rows = read(Data(uri="shapes:7?seed=5&px=16&labelled=1&world=clean", rows_per_shard=3))
    assert [(row.shard, row.index) for row in rows[2:5]] == [
        ("shapes-00000", 2),
        ("shapes-00001", 0),
        ("shapes-00001", 1),
    ]
    assert [(row.key, row.image, row.captions, row.label, row.reject) for row in rows] == [
        (pair["key"], pair["image"], pair["captions"], pair["label"], None) for pair in drawn
    ]


@pytest.mark.parametrize(
    "uri",
    ["shapes:", "shapes:many", "shapes:5?speed=1", "shapes:5?seed=x", "shapes:5?px=0", "shapes:5?seed=-1"],
)
def test_a_misspelt_shapes_uri_shows_the_right_form(uri):
    with pytest.raises(ValueError, match=r"shapes:ROWS\?seed"):
        list_shards(Data(uri=uri))


# ---- listing


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("plain", ["plain"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{a,b{1..2}}", ["xa", "xb1", "xa", "xb2"]),
    ],
)
def test_braces_expand(pattern, expanded):
    assert expand_braces(pattern) == expanded


@pytest.fixture
def img2dataset(tmp_path) -> Path:
    """Three shards as img2dataset leaves them, side files included; 2 pairs each."""
    for n in range(3):
        write_tar(tmp_path / f"{n:05d}.tar", pair(f"{n:05d}0000", level=n) + pair(f"{n:05d}0001", level=n))
        write_json(tmp_path / f"{n:05d}_stats.json", {"count": 2})
        write_parquet(tmp_path / f"{n:05d}.parquet", {"url": ["http://x"], "status": ["success"]})
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["00000", "00001", "00002"]),
        ("/*", ["00000", "00001", "00002"]),
        ("/*[12].tar", ["00001", "00002"]),
        ("/{00000..00001}.tar", ["00000", "00001"]),
        ("/{00002,00000}.tar", ["00000", "00002"]),
        ("/00001.tar", ["00001"]),
    ],
)
def test_folder_glob_and_braces_find_the_tars_and_no_side_file(img2dataset, pattern, names):
    shards = list_shards(Data(uri=f"{img2dataset}{pattern}"))
    assert [shard.name for shard in shards] == names
    assert [shard.size_bytes for shard in shards] == [
        (img2dataset / f"{n}.tar").stat().st_size for n in names
    ]


def test_shards_of_one_stem_get_different_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", pair("x"))
    names = [shard.name for shard in list_shards(Data(uri=f"{tmp_path}/{{a,b}}/0.tar"))]
    assert len(set(names)) == 2
    assert all(safe_name(name) == name for name in names)


def test_a_record_that_may_not_be_seen_is_none(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", pair("x"))
    (shard,) = list_shards(Data(uri=f"{tmp_path}/0.tar"))

    def refuse(error):
        def cat_file(*_):
            raise error

        return cat_file

    local = fsspec.get_filesystem_class("file")
    monkeypatch.setattr(local, "cat_file", refuse(PermissionError("Access Denied")))
    assert read_downloads([shard]) == {}
    monkeypatch.setattr(local, "cat_file", refuse(OSError("timed out")))
    with pytest.raises(TransportError, match="timed out"):
        read_downloads([shard])


def test_validation_data_miss_no_file(tmp_path):
    write_tar(tmp_path / "0.tar", pair("x"))
    data = Data(uri=f"{tmp_path}/{{0..1}}.tar", max_reject_ratio=0.5)
    assert find_shards(data)[1] == ["1.tar"]
    with pytest.raises(
        ValueError, match=r"^evaluation\.val: data\.uri=.*: 1\.tar is not there; correct the range"
    ):
        check_data(data, Evaluation(val=data.uri, test=f"{tmp_path}/0.tar"))


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("{0}/nowhere", "no such file"),
        ("{0}/nowhere-*.tar", "no file matches"),
        (
            "{0}/{{0..9}}.tar",
            r"9 of 10 files are not there \(1\.tar, 2\.tar, 3\.tar, …\), .*max_reject_ratio=0\.2",
        ),
        ("{0}/{{1..9}}.tar", r"no such file.*1\.tar"),
        ("{0}/{{3..1}}.tar", "runs backwards"),
        ("{0}/empty", "no .tar, no .parquet and no image"),
        ("{0}/film.mp4", "film.mp4; expected .tar or .parquet"),
        ("{0}/broken.json", "is not JSON"),
        ("{0}/empty.tar", "holds no rows"),
        ("{0}/empty.parquet", "holds no rows"),
        ("nosuch://bucket/x.tar", "nosuch"),
        ("gs://bucket/x.tar", "gcsfs"),
    ],
)
def test_a_uri_without_data_is_one_sentence(tmp_path, uri, complaint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "broken.json").write_text("{")
    write_tar(tmp_path / "0.tar", pair("x"))
    write_tar(tmp_path / "empty.tar", [])
    write_parquet(
        tmp_path / "empty.parquet", {"image": pa.array([], "binary"), "text": pa.array([], "string")}
    )
    with pytest.raises(ValueError, match=complaint) as caught:
        list_shards(Data(uri=uri.format(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_tar_of_other_things_says_what_it_holds(tmp_path):
    films = write_tar(tmp_path / "films.tar", [("0.mp4", b"film"), ("0.json", b'{"title": "x", "url": "y"}')])
    with pytest.raises(
        ValueError, match=r"image \(jpg.*found members .json, .mp4 and JSON keys \['title', 'url'\]"
    ):
        list_shards(Data(uri=films))
    silent = write_tar(tmp_path / "silent.tar", [("0.jpg", jpeg()), ("0.json", b'{"title": "x"}')])
    with pytest.raises(ValueError, match="json with captions, caption, text"):
        list_shards(Data(uri=silent))
    assert fates(read(Data(uri=silent, caption_columns=("title",)))) == [("0", None)]


WRONG = [("0.mp4", b"film"), ("0.json", b'{"title": "x"}')]
DAMAGED = [*pair("0")[:1], ("0.json", b"{")]


@pytest.mark.parametrize(
    ("heads", "accepted"),
    [
        ([None, WRONG], False),
        ([DAMAGED + WRONG], False),
        ([None, DAMAGED, WRONG, pair("x")], True),
        ([WRONG] * 3 + [pair("x")], True),
        ([WRONG] * 4 + [pair("x")], False),
        ([[]] * 9 + [pair("x")], True),
        ([None] * 9 + [WRONG], False),
        ([None] * 9, True),
        ([DAMAGED], True),
        ([[]] * 9, False),
        ([[]] * 100, True),  # it stops looking; nothing is proven
    ],
)
def test_damaged_and_empty_tars_prove_nothing_about_the_layout(tmp_path, heads, accepted):
    for n, members in enumerate(heads):
        if members is None:
            (tmp_path / f"{n:03d}.tar").touch()
        else:
            write_tar(tmp_path / f"{n:03d}.tar", members)
    data = Data(uri=str(tmp_path))
    if accepted:
        assert len(list_shards(data)) == len(heads)
    else:
        with pytest.raises(UserError, match=r"none of the first 1 samples|holds no rows"):
            list_shards(data)


def test_unreadable_and_empty_parquet_prove_nothing_about_the_columns(tmp_path):
    good, wrong = {"image": [b"a"], "text": ["b"]}, {"image": [b"a"], "title": ["b"]}
    for n in range(5):
        (tmp_path / f"a{n}.parquet").write_bytes(b"PAR1 and no footer")
        write_parquet(tmp_path / f"b{n}.parquet", {"title": pa.array([], "string")})
    write_parquet(tmp_path / "c.parquet", wrong)
    with pytest.raises(UserError, match=r"data.caption_columns .* columns image, title"):
        list_shards(Data(uri=str(tmp_path)))
    write_parquet(tmp_path / "d.parquet", good)
    assert len(list_shards(Data(uri=str(tmp_path)))) == 12
    assert len(list_shards(Data(uri=f"{tmp_path}/a*"))) == 5
    with pytest.raises(UserError, match="holds no rows"):
        list_shards(Data(uri=f"{tmp_path}/b*"))


def test_labels_in_tars_that_are_no_integers_show_before_the_run(tmp_path):
    record = b'{"caption": "a dog", "label": "dog", "class": 3}'
    samples = [member for n in range(3) for member in ((f"{n}.jpg", jpeg()), (f"{n}.json", record))]
    uri = write_tar(tmp_path / "0.tar", samples)
    with pytest.raises(
        UserError, match=r"data.label_column='label' holds 'dog' .*'caption', 'class', 'label'"
    ):
        list_shards(Data(uri=uri))
    assert {row.label for row in read(Data(uri=uri, label_column="class"))} == {3}
    assert {(row.label, row.reject) for row in read(Data(uri=uri, label_column=""))} == {(None, None)}


@pytest.mark.parametrize("settings", [{"limit": 0}, {"rows_per_shard": 0}, {"split": "train"}])
def test_settings_that_make_no_sense_are_named(settings):
    with pytest.raises(ValueError, match=f"data.{next(iter(settings))}="):
        list_shards(Data(uri="shapes:5", **settings))


# ---- limits and addresses


def every_format(folder: Path) -> Iterator[Data]:
    """A small dataset of each kind, several shards each, with a refused row in the tars."""
    (folder / "tars").mkdir()
    for n in range(3):
        write_tar(folder / "tars" / f"{n}.tar", [*pair(f"a{n}"), (f"b{n}.txt", b"no image"), *pair(f"c{n}")])
    (folder / "parquet").mkdir()
    for n in range(2):
        columns = {"image": [b"%d" % i for i in range(5)], "text": ["a dog"] * 5}
        write_parquet(folder / "parquet" / f"{n}.parquet", columns, row_group_size=2)
    write_images(folder / "images", *(f"cat/{n}.jpg" for n in range(7)))
    yield Data(uri=str(folder / "tars"))
    yield Data(uri=str(folder / "parquet"))
    yield Data(uri=str(folder / "images"), rows_per_shard=3)
    yield Data(uri="shapes:7", rows_per_shard=3)


def test_a_limit_keeps_exactly_the_first_rows(tmp_path):
    for data in every_format(tmp_path):
        rows = read(data)
        for limit in (1, 3, 4, 6, len(rows), len(rows) + 5):
            assert read(replace(data, limit=limit)) == rows[:limit]


def test_only_reads_the_same_rows_as_a_filter(tmp_path):
    for data in every_format(tmp_path):
        for only in ({0}, {2}, {0, 2}, {1, 99}, set()):
            assert read(data, only) == [row for row in read(data) if row.index in only]


def test_listing_is_repeatable_and_names_are_unique(tmp_path):
    for data in every_format(tmp_path):
        shards = list_shards(data)
        assert shards == list_shards(data)
        assert len({shard.name for shard in shards}) == len(shards) > 1


# ---- names, tables, transport


def test_safe_names_stay_in_their_folder_and_apart():
    texts = [
        "../../etc/passwd",
        "a/b",
        "a_b",
        "a.b",
        "",
        ".",
        "..",
        "C:\\x",
        "\ud800",
        "é",
        "e",
        "-rf",
        "x" * 300,
    ]
    texts.append("x" * 299)
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in names
    )
    assert all(0 < len(name) <= 100 and name[0] != "-" for name in names)
    assert safe_name("1000268201_693b08cb0e") == "1000268201_693b08cb0e"


class FlakyFiles(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of each file, the first ``failures`` downloads break with status 500."""

    failures: dict[str, int]

    def do_GET(self) -> None:
        if self.failures.get(self.path, 0) > 0:
            self.failures[self.path] -= 1
            self.send_error(500)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[[dict[str, int]], str]]:
    """Starts an HTTP server of tmp_path with the given failures by path; returns its address."""
    servers = []

    def start(failures: dict[str, int]) -> str:
        handler = type("Handler", (FlakyFiles,), {"failures": failures})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_failing_storage_is_an_error_to_retry_and_not_damage(tmp_path, serve, kind):
    write_tar(tmp_path / "0.tar", pair("a"))
    write_parquet(tmp_path / "0.parquet", {"image": [b"a"], "text": ["b"]})
    failures: dict[str, int] = {}
    data = Data(uri=f"{serve(failures)}/0.{kind}")
    [shard] = list_shards(data)
    failures[f"/0.{kind}"] = 1
    with pytest.raises(TransportError, match=r"storage failed while reading http://.*500"):
        list(iter_shard(shard, data))
    failures[f"/0.{kind}"] = 1
    with pytest.raises(ValueError, match=r"data.uri=http://.* cannot be read .*500"):
        list_shards(data)
    assert [row.reject for row in iter_shard(shard, data)] == [None]


def test_s3_reads_like_a_local_folder(s3_server, img2dataset):
    fs = fsspec.filesystem("s3")
    fs.mkdir("pairs")
    fs.put(f"{img2dataset}/*", "pairs/cc3m/")
    fs.pipe("pairs/photos/cat/1.jpg", jpeg(1))
    fs.pipe("pairs/photos/cat/2.jpg", b"")
    local = read(Data(uri=str(img2dataset)))
    for pattern in ("", "/", "/*.tar", "/{00000..00002}.tar"):
        assert read(Data(uri=f"s3://pairs/cc3m{pattern}")) == local
    assert {row.reject for row in read(Data(uri="s3://pairs/photos"))} == {None, "zero-byte image"}
    for uri, complaint in (("s3://pairs/cc4m", "no such file"), ("s3://no-bucket/x.tar", "no such file")):
        with pytest.raises(ValueError, match=complaint):
            list_shards(Data(uri=uri))


def test_missing_s3_credentials_are_one_sentence(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"data.uri=s3://pairs/x.tar cannot be read .*credentials"):
        list_shards(Data(uri="s3://pairs/x.tar"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


# ---- Ray


@pytest.mark.ray
def test_ray_reads_every_row_once_through_damage_and_failing_storage(ray_cluster, serve, tmp_path):
    from mmdd_ray.data.sources import BLOCK_BYTES, fetch_pairs, read_pairs

    whole = tar_bytes([member for n in range(300) for member in pair(f"k{n}", level=n)])
    (tmp_path / "0.tar").write_bytes(whole)
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(tmp_path / "2.tar", [*pair("a"), ("b.txt", b"no image"), *pair("c")])
    failures: dict[str, int] = {}
    data = Data(uri=f"{serve(failures)}/{{0..2}}.tar")
    expected = read(data)
    assert {row.reject for row in expected} == {None, "truncated tar", "missing image"}

    dataset = read_pairs(data)
    failures |= {f"/{n}.tar": 1 for n in range(3)}
    rows = [Row(**row) for row in dataset.iter_rows()]
    assert sum(failures.values()) == 0
    assert sorted(rows, key=lambda row: (row.shard, row.index)) == expected
    assert dataset.schema().base_schema == PAIR_SCHEMA

    asked = [("2", 2), ("0", 299), ("2", 0), ("0", 299)]
    assert [row.key for row in fetch_pairs(data, asked)] == ["c", "k299", "a", "k299"]
    with pytest.raises(ValueError, match="no row 300 in a shard '0'"):
        fetch_pairs(data, [("0", 300)])

    large = [member for n in range(40) for member in ((f"{n}.jpg", b"0" * 2**20), (f"{n}.txt", b"a dog"))]
    blocks = read_pairs(Data(uri=write_tar(tmp_path / "large.tar", large))).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    block_bytes = [block.nbytes for block in blocks]
    assert sum(block_bytes) > 40 * 2**20
    assert max(block_bytes) < 1.1 * BLOCK_BYTES
    assert len(block_bytes) == 3


# ---- real data


@pytest.mark.real
def test_flickr8k_reads_whole(real_data):
    rows = read(Data(uri=str(real_data / "flickr8k" / "flickr8k-val-000.tar")))
    assert len(rows) == 1000
    assert {(len(row.captions), row.reject) for row in rows} == {(5, None)}
    images = [decode_image(row.image or b"", max_pixels=10**6) for row in rows[:50]]
    assert {image.shape for image in images} == {(128, 128, 3)}


@pytest.mark.real
def test_tiny_imagenet_reads_whole_with_labels(real_data):
    uri = str(real_data / "tiny-imagenet32" / "*-val-*.parquet")
    rows = read(Data(uri=uri, caption_columns=("class_name",)))
    assert len(rows) == 10_000
    assert {row.reject for row in rows} == {None}
    assert np.bincount([row.label for row in rows]).tolist() == [50] * 200
    assert len({(row.label, *row.captions) for row in rows}) == 200
