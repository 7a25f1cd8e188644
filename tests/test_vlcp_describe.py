"""Classes, their names, and descriptions of their images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_files import features_in

from mmdd_ray.config import Data
from mmdd_ray.data import shapes
from mmdd_ray.data.shards import list_shards
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.methods.vlcp.describe import (
    Descriptions,
    ImageClass,
    describe_images,
    read_classes,
)
from mmdd_ray.methods.vlcp.settings import Describe
from mmdd_ray.storage.store import Store


def test_classes_are_named_by_what_their_images_share(tmp_path):
    features = features_in(tmp_path, [5, 2, 5], [["dog", "a dog runs"], ["cat"], ["dog"]], np.ones((3, 4)))
    data = Data(uri="folder/")
    assert read_classes(features, data, Describe()) == [ImageClass(2, "cat", 1), ImageClass(5, "dog", 2)]

    names = tmp_path / "names.txt"
    names.write_text("a\nb\nfeline\nc\nd\ncanine\n")
    found = read_classes(features, data, Describe(class_names=str(names)))
    assert [one.name for one in found] == ["feline", "canine"]


@pytest.mark.parametrize(
    ("labels", "captions", "names", "message"),
    [
        (
            [1, None],
            ["a", "b"],
            None,
            r"1 of the 2 images of x have no label; name the column .* data\.label_column",
        ),
        ([1, 1], ["a", "a"], None, "all images of x are of one class"),
        ([0, 0, 1], ["a", "b", "c"], None, r"class 0 of x share no caption .* describe\.class_names"),
        ([0, 7], ["a", "b"], "one\ntwo\n", r"has 2 lines.* x has the label 7"),
        (
            [0, 1],
            ["a", "b"],
            "one\ntwo\nthree",
            r"has 3 lines, but x has 2 classes, called a, b …; give each",
        ),
        ([0, 1], ["a", "b"], "one\n\nthree", "has a blank line"),
        ([0, 1], ["a", "b"], "\none\ntwo", "has a blank line"),
        ([0, 1], ["a", "b"], b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_data_that_has_no_classes_is_one_sentence(tmp_path, labels, captions, names, message):
    features = features_in(tmp_path, labels, [[text] for text in captions], np.ones((len(labels), 4)))
    describe = Describe()
    if names is not None:
        file = tmp_path / "names.txt"
        file.write_bytes(names if isinstance(names, bytes) else names.encode())
        describe = Describe(class_names=str(file))
    with pytest.raises(UserError, match=message):
        read_classes(features, Data(uri="x"), describe)


def test_a_missing_file_of_names_is_one_sentence(tmp_path):
    features = features_in(tmp_path, [0, 1], [["a"], ["b"]], np.ones((2, 4)))
    with pytest.raises(UserError, match=r"describe\.class_names=.*none\.txt cannot be read"):
        read_classes(features, Data(uri="x"), Describe(class_names=str(tmp_path / "none.txt")))


@pytest.mark.ray
def test_a_model_describes_every_image_once_and_goes_on_by_shards(ray_cluster, tmp_path):
    data = Data(uri="shapes:20?seed=1&labelled=1", rows_per_shard=10)
    describe = Describe(source="vlm", chunk_images=4, max_new_tokens=8)
    classes = [ImageClass(label, name, 1) for label, name in enumerate(shapes.CLASS_NAMES)]
    stage = StageDir("describe", Store(str(tmp_path)), "describe")
    describe_images(stage, data, describe, classes)

    names = dict(enumerate(shapes.CLASS_NAMES))
    texts = Descriptions(describe, names, stage.store)
    shards = [shard.name for shard in list_shards(data)]
    row = {"shard": shards[1], "index": 3, "captions": ["not this"], "label": 0}
    (described,) = texts.of(row)
    assert described
    assert described != "not this"
    prefixed = Descriptions(replace(describe, prefix="a {class_name}, "), names, stage.store)
    assert prefixed.of(row) == [f"a red circle, {described}"]
    assert prefixed.first(row | {"index": 999}) == ""
    # what was not described, or with nothing, gets the template
    assert texts.of(row | {"index": 999}) == ["a photo of a red circle"]

    kept = tmp_path / "pairs" / shards[0] / "00000.parquet"
    before = kept.stat().st_mtime_ns
    (tmp_path / "shards" / f"{shards[1]}.json").unlink()
    describe_images(stage, data, describe, classes)
    assert kept.stat().st_mtime_ns == before
    again = Descriptions(describe, names, stage.store, version="another")  # reads again
    assert again.of(row) == [described]
    assert again.first(row | {"index": 999}) == ""

    # images of which the model says nothing are counted; if it says nothing at all, something is wrong
    files = sorted(Path(tmp_path, "pairs").rglob("*.parquet"))
    blank = 0
    for file in files:
        table = pq.read_table(file)
        silent = pa.array([" "] * len(table))
        pq.write_table(table.set_column(table.column_names.index("description"), "description", silent), file)
        blank += len(table)
        if file != files[-1]:
            assert describe_images(stage, data, describe, classes).extra["blank_descriptions"] == blank
    with pytest.raises(UserError, match=r"describe\.model=tiny-captioner has nothing to say of any image"):
        describe_images(stage, data, describe, classes)


def test_captions_and_templates_need_no_model():
    row = {"shard": "s", "index": 0, "captions": ["one", "two"], "label": 3}
    assert Descriptions(Describe(), {3: "owl"}, None).of(row) == ["one", "two"]
    prefixed = Descriptions(Describe(prefix="an {class_name}, "), {3: "owl"}, None)
    assert prefixed.of(row) == ["an owl, one", "an owl, two"]
    assert prefixed.first(row) == "an owl, one"
    assert Descriptions(Describe(source="template", template="an {class_name}"), {3: "owl"}, None).of(
        row
    ) == ["an owl"]
