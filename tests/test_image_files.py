"""Annotation files (COCO, Karpathy), and image folders with a sub-folder for each class."""

from dataclasses import replace

import pytest
from source_files import coco, jpeg, read, write_images, write_json

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.pair import Row, safe_name
from mmdd_ray.data.shards import list_shards
from mmdd_ray.errors import UserError


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
        ("/etc/passwd", "absolute image path"),
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
    with pytest.raises(
        UserError, match=r"holds several splits: restval, test, train, val; .* data.split=train"
    ):
        list_shards(data)
    assert [row.captions for row in read(replace(data, split="all"))] == [[split] for split in splits]
    assert [row.key for row in read(replace(data, split="train"))] == ["train", "restval"]
    assert [row.image for row in read(replace(data, split="test"))] == [jpeg(3)]
    with pytest.raises(ValueError, match=r"data.split='extra' .* restval, test, train, val"):
        list_shards(replace(data, split="extra"))


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
    with pytest.raises(UserError, match=r"^evaluation.test_image_root=.*nowhere"):
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
    with pytest.raises(UserError, match=r"^evaluation.test_split='extra' is not in"):
        check_data(data, replace(evaluation, test_split="extra"))


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
    with pytest.raises(ValueError, match="put each image into the folder of its class"):
        list_shards(Data(uri=str(tmp_path)))
