"""Validation and test images: rows of one image are one image, and a sample is of all the source."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from source_files import jpeg, write_parquet

from mmdd_ray.config import Data
from mmdd_ray.data.contrasts import list_contrasts
from mmdd_ray.data.pair import Row, digest64
from mmdd_ray.evaluation.held_out import about_held_out, common_images, join_rows, read_held_out
from mmdd_ray.evaluation.retrieval import retrieval_metrics

ROW = Row("a", 0, "k", b"image", ["a dog"], None, None)


def row(index: int, image: bytes, *captions: str, label: int | None = None, shard: str = "a") -> Row:
    return Row(shard, index, f"k{index}", image, list(captions), label, None)


def test_rows_of_one_image_are_one_image_with_all_of_their_captions():
    rows = [
        row(0, b"x", "one"),
        row(1, b"y", "other"),
        row(2, b"x", "two", "one"),
        row(3, b"x", "one"),
        row(4, b"y", "other"),
        replace(ROW, index=5, image=None, reject="missing image"),
    ]
    for order in (rows, rows[::-1]):
        found = join_rows(order, 10)
        assert [(one.index, one.image, one.captions) for one in found.rows] == [
            (0, b"x", ["one", "two"]),
            (1, b"y", ["other"]),
        ]
        assert (found.rows_in, found.images, found.repeated) == (6, 2, 2)
        assert found.rejects == [("a", "k", "missing image")]


def test_an_image_with_two_labels_keeps_the_first_and_the_other_is_refused():
    found = join_rows(
        [row(1, b"x", "b", label=2), row(0, b"x", "a", label=1), row(2, b"x", "a", label=1)], 10
    )
    assert [(one.label, one.captions) for one in found.rows] == [(1, ["a"])]
    assert found.rejects == [("a", "k1", "same image with another label")]
    assert found.repeated == 1


def test_a_sample_is_of_the_whole_source_and_the_same_however_it_is_stored():
    rows = [row(n % 300, b"%d" % n, "x", label=n // 300, shard=f"{n // 300:02d}") for n in range(3000)]
    found = join_rows(rows, 500)
    counts = Counter(one.label for one in found.rows)
    assert (len(found.rows), found.images) == (500, 3000)
    assert set(counts) == set(range(10))  # sorted by label as the rows are
    assert max(counts.values()) < 80  # 50 expected, with a deviation of 6.2
    assert [(one.shard, one.index) for one in found.rows] == sorted(
        (one.shard, one.index) for one in found.rows
    )
    shuffled = [
        replace(rows[n], shard="z", index=i) for i, n in enumerate(np.random.default_rng(0).permutation(3000))
    ]
    assert {one.image for one in join_rows(shuffled, 500).rows} == {one.image for one in found.rows}
    assert {one.image for one in join_rows(rows, 100).rows} < {one.image for one in found.rows}
    assert len(join_rows(rows, 5000).rows) == 3000


def test_images_in_common_are_counted_by_their_bytes():
    val = join_rows([row(0, b"x", "a"), row(1, b"y", "b")], 10)
    test = join_rows([row(7, b"y", "c"), row(8, b"z", "d"), row(9, b"w", "d"), row(9, b"w", "d")], 10)
    training = np.array([digest64(image) for image in (b"z", b"w", b"v")], np.int64)
    about = common_images({"val": val, "test": test}, training)
    assert about["val"]["common"] == {"training": 0}
    assert about["test"]["common"] == {"training": 2, "val": 1}
    assert about_held_out(about) == [
        "val: 2 images, captions: 2",
        "test: 3 images, captions: 3",
        "test: 1 of 4 rows repeat another, and were left out",
        "test: 2 of 3 images are also training images, byte for byte: a/k8, a/k9",
        "test: 1 of 3 images are also val images, byte for byte: a/k7; learning rates that val images choose are "
        "chosen on them, too",
    ]
    assert about_held_out(
        common_images({"test": join_rows([row(0, b"x", "a"), row(1, b"y", "b")], 1)}, training)
    ) == ["test: 1 of 2 images, drawn by their content, captions: 1"]


def test_images_in_common_are_all_kept_by_key_and_ten_of_them_are_named():
    test = join_rows([row(n, b"%d" % n, "a", shard="t") for n in range(20)], 100)
    planted = [b"%d" % n for n in range(3, 15)]
    training = np.array([digest64(one) for one in planted], np.int64)
    pixels = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)
    pixels[:, 0, 0, 0] = np.arange(20)
    test = test.decoded(test.rows, pixels)
    about = common_images({"test": test}, training, {"photos": pixels[3:5], "others": pixels[:1] + 1})["test"]
    assert about["common"] == {"training": 12, "set photos": 2, "set others": 0}
    assert about["common_keys"]["training"] == [f"t/k{n}" for n in range(3, 15)]
    first = ", ".join(f"t/k{n}" for n in range(3, 13))
    assert about_held_out({"test": about}) == [
        "test: 20 images, captions: 20",
        f"test: 12 of 20 images are also training images, byte for byte: {first} and 2 more",
        "test: 2 of 20 images are also set photos images, pixel for pixel: t/k3, t/k4",
    ]
    del about["common_keys"], about["captions"]  # as earlier versions wrote it
    size, _, of_set = about_held_out({"test": about})
    assert size == "test: 20 images"
    assert of_set.endswith("also set photos images, pixel for pixel")


def test_a_sample_of_images_with_hard_negatives_is_told(tmp_path):
    entries = {str(n): {"filename": f"{n}.png", "caption": "a", "negative_caption": "b"} for n in range(20)}
    (tmp_path / "swap.json").write_text(json.dumps(entries))
    none = np.empty(0, np.int64)
    for uri, says in (
        (str(tmp_path), "compositional: 5 of 20 images, drawn by their names"),
        ("shapes:20?seed=1", "compositional: 5 of 20 images, the first ones"),
    ):
        assert about_held_out(common_images({"compositional": list_contrasts(uri, None, 5)}, none)) == [says]
        assert about_held_out(common_images({"compositional": list_contrasts(uri, None, 20)}, none)) == [
            "compositional: 20 images"
        ]


@pytest.mark.ray
def test_a_perfect_model_is_perfect_on_one_row_a_caption(ray_cluster, tmp_path):
    images = [jpeg(10 * n) for n in range(20)]
    columns = {
        "image": [image for image in images for _ in range(5)],
        "caption": [f"no. {n}, view {view}" for n in range(20) for view in range(5)],
    }
    found = read_held_out(Data(uri=write_parquet(tmp_path / "test.parquet", columns)), 1000)
    assert [one.image for one in found.rows] == images
    assert [one.captions for one in found.rows] == [
        [f"no. {n}, view {view}" for view in range(5)] for n in range(20)
    ]
    owner = np.repeat(np.arange(20), 5)
    feature_N = np.eye(20, dtype=np.float32)
    scores = retrieval_metrics(feature_N, feature_N[owner], owner)
    assert scores["ir@1"] == scores["tr@1"] == 100


def test_images_that_cannot_be_decoded_are_not_counted():
    test = join_rows([row(n, b"%d" % n, "a") for n in range(3)], 10)
    decoded = test.decoded([test.rows[0], test.rows[2]], np.zeros((2, 4, 4, 3), np.uint8))
    assert about_held_out(common_images({"test": decoded}, np.empty(0, np.int64))) == [
        "test: 2 images, captions: 2"
    ]
    assert decoded.about()["images"] == decoded.about()["of_images"] == 2
