"""What folders hold, as people have them: read for what it is, or refused before the run."""

import csv
import json
from pathlib import Path

import pytest
from source_files import (
    captions_of,
    coco,
    fates,
    jpeg,
    pair,
    read,
    says,
    write_images,
    write_json,
    write_parquet,
    write_tar,
)

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.shards import list_shards
from mmdd_ray.data.splits import path_split
from mmdd_ray.errors import UserError


def test_an_image_folder_says_its_classes_and_what_it_leaves_out(tmp_path):
    write_images(tmp_path, "cat/0.jpg", "dog/1.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/cat/._0.jpg")
    write_images(tmp_path, "cat/._0.jpg")
    assert {(row.captions[0], row.label) for row in read(Data(uri=str(tmp_path)))} == {("cat", 0), ("dog", 1)}
    assert says(tmp_path) == [
        "2 images in 2 classes: cat, dog; not read: 3 hidden files, e.g. .ipynb_checkpoints/0.jpg"
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_images(tmp_path / "store", "dog/0.jpg", "dog/1.jpg", "cats/0.jpg")
    write_images(tmp_path / "subset", "fox/0.jpg")
    (tmp_path / "subset/dog").symlink_to("../store/dog")
    (tmp_path / "subset/cat").mkdir()
    (tmp_path / "subset/cat/0.jpg").symlink_to("../../store/cats/0.jpg")
    (tmp_path / "subset/fox/up").symlink_to("..")
    (tmp_path / "subset/fox/lost.jpg").symlink_to("nowhere.jpg")
    rows = read(Data(uri=str(tmp_path / "subset")))
    good = sorted((row.captions[0], row.label) for row in rows if row.reject is None)
    assert good == [("cat", 0), ("dog", 1), ("dog", 1), ("fox", 2)]
    assert [row.reject for row in rows if row.reject] == ["missing image"]


def test_a_link_to_nothing_among_tars_is_one_sentence(tmp_path):
    write_tar(tmp_path / "0.tar", pair("x"))
    (tmp_path / "1.tar").symlink_to("/nowhere/1.tar")
    with pytest.raises(UserError, match=r"1\.tar is a link to /nowhere/1\.tar, which is not there"):
        list_shards(Data(uri=str(tmp_path)))


def test_whole_numbers_as_classes_are_sorted_by_value(tmp_path):
    write_images(tmp_path, *(f"{n}/x.jpg" for n in range(12)))
    assert {row.captions[0]: row.label for row in read(Data(uri=str(tmp_path)))} == {
        str(n): n for n in range(12)
    }


def test_folders_of_splits_are_no_classes(tmp_path):
    write_images(tmp_path, "train/cat/0.jpg", "train/dog/1.jpg", "val/cat/2.jpg", "noise.csv")
    with pytest.raises(UserError, match=r"splits, not of classes: train, val; .*/train, or data.split=train"):
        list_shards(Data(uri=str(tmp_path)))
    assert len(read(Data(uri=str(tmp_path / "train")))) == 2
    assert [row.image for row in read(Data(uri=str(tmp_path), split="validation"))] == [jpeg(2)]
    with pytest.raises(UserError, match=r"data.split='test' is not in"):
        list_shards(Data(uri=str(tmp_path), split="test"))


def tree(root: Path, *paths: str, **texts: str) -> str:
    """A folder with images at these paths, and text files."""
    write_images(root, *(path for path in paths if not path.endswith("/")))
    for folder in (path for path in paths if path.endswith("/")):
        (root / folder).mkdir(parents=True)
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("paths", "texts", "complaint"),
    [
        (
            ["Images/0.jpg"],
            {"captions_dot_txt": "image,caption\n0.jpg,a dog"},
            r"captions\.txt, which says what",
        ),
        (
            ["f_images/0.jpg"],
            {"results_dot_csv": "image_name| comment_number| comment\n"},
            r"results\.csv, which says",
        ),
        (
            ["images/0.jpg"],
            {"val_annotations_dot_txt": "0.JPEG\tn03444034\t0\n"},
            "the folder images for a class",
        ),
        (["images/0.jpg", "masks/0.png"], {}, "the folder images for a class, of 2"),
        (
            ["part-1/u0.png", "part-2/u1.png"],
            {"part-1__p_dot_json": '{"u0.png": {"p": "a dog"}}'},
            "p.json, which says",
        ),
        (
            ["images/cat/0.jpg", "images/dog/0.jpg"],
            {},
            r"the folder images for a class.*/images if that holds the folders",
        ),
        (
            ["animals/animals/cat/0.jpg", "animals/animals/dog/0.jpg"],
            {},
            "the folder animals for a class, of 1",
        ),
        (["images/0.jpg", "images/1.jpg"], {"annotations__list_dot_xml": "<x>"}, "without any that is read"),
        (
            ["training_set/cat/0.jpg", "test_set/cat/0.jpg"],
            {},
            "folders of splits, not of classes: test_set, training_set",
        ),
        (
            ["seg_train/sea/0.jpg", "seg_test/sea/0.jpg", "seg_pred/0.jpg"],
            {},
            r"splits.*\(beside seg_pred\).*data.split=all",
        ),
        (["train/cat/0.jpg", "val/cat/0.jpg", "samples/0.jpg"], {}, r"train, val \(beside samples\)"),
        (
            ["train_images/0.jpg", "val_images/0.jpg"],
            {"train_images__0_dot_txt": "a dog"},
            "folders of splits",
        ),
        (
            ["cat/0.jpg", "fox/0.jpg"],
            {"dog__0_dot_heic": "heic"},
            r"without any that is read \(dog; \.heic\)",
        ),
        (["cat/0.jpg", "fox/0.jpg", "bird/"], {}, r"empty ones \(bird\)"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, paths, texts, complaint):
    with pytest.raises(UserError, match=complaint):
        list_shards(Data(uri=tree(tmp_path / "x", *paths, **texts)))


@pytest.mark.parametrize(
    ("paths", "texts", "classes"),
    [
        (["bullet_train/0.jpg", "car/1.jpg", "eval_kit/2.jpg"], {}, ["bullet_train", "car", "eval_kit"]),
        (["cat/0.jfif", "dog/1.JPG", "eel/2.jpe"], {}, ["cat", "dog", "eel"]),
        (
            ["a/0.jpg", "b/0.jpg"],
            {"dataset_infos_dot_json": '{"features": {"image": [{}]}}', "README_dot_txt": "x"},
            ["a", "b"],
        ),
        (["a/images/0.jpg", "b/images/1.jpg"], {"words_dot_txt": "n01\ta dog"}, ["a", "b"]),
        (["a/0.jpg", "b/0.jpg"], {"noisy_dot_csv": "path,noisy_labels_0,is_valid\n"}, ["a", "b"]),
    ],
)
def test_folders_of_classes_beside_other_files_are_read(tmp_path, paths, texts, classes):
    rows = read(Data(uri=tree(tmp_path / "x", *paths, **texts)))
    assert {(row.captions[0].replace(" ", "_"), row.label) for row in rows} == {
        (n, i) for i, n in enumerate(classes)
    }


def test_boxes_and_facts_beside_images_are_no_captions(tmp_path):
    paths, boxes = ["cat/0.jpg", "dog/1.jpg"], "0 0.5 0.5 0.1 0.1\n"
    yolo = tree(tmp_path / "yolo", *paths, cat__0_dot_txt=boxes, dog__1_dot_txt=boxes)
    facts = tree(tmp_path / "facts", *paths, cat__0_dot_json='{"width": 8}', dog__1_dot_json='{"width": 8}')
    few = tree(tmp_path / "few", *paths, "cat/2.jpg", "dog/3.jpg", cat__0_dot_txt="a cat")
    for root in (yolo, facts, few):
        assert {(row.captions[0], row.label) for row in read(Data(uri=root))} == {("cat", 0), ("dog", 1)}
        assert "beside images, e.g. cat/0" in says(root)[0]
    boxed = tree(
        tmp_path / "tiny", "n01/images/0.jpg", "n02/images/1.jpg", n01__n01_boxes_dot_txt="n01_0.JPEG\t1\t2\n"
    )
    assert {row.label for row in read(Data(uri=boxed))} == {0, 1}


def test_images_with_captions_keep_the_class_of_their_folder(tmp_path):
    root = tree(tmp_path / "x", "cat/0.jpg", "dog/1.jpg", cat__0_dot_txt="a tabby", dog__1_dot_txt="a pug")
    assert sorted((row.captions[0], row.label) for row in read(Data(uri=root))) == [
        ("a pug", 1),
        ("a tabby", 0),
    ]


def test_a_link_that_is_no_data_stops_nothing(tmp_path):
    write_tar(tmp_path / "0.tar", pair("x"))
    (tmp_path / "README").symlink_to("/nowhere")
    assert fates(read(Data(uri=str(tmp_path)))) == [("x", None)]
    root = tree(tmp_path / "x", "cat/0.jpg", "dog/1.jpg")
    (tmp_path / "x/cat/2.jpg").symlink_to("2.jpg")
    (tmp_path / "x/README").symlink_to("/nowhere")
    assert [row.reject for row in read(Data(uri=root)) if row.reject] == ["missing image"]


def test_folders_that_are_linked_to_are_the_same_images(tmp_path):
    data = Data(uri=tree(tmp_path / "real", "cat/0.jpg", "dog/1.jpg"))
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(f"../real/{name}")
    with pytest.raises(UserError, match=r"2 of its 2 files are among those of data.uri"):
        check_data(data, Evaluation(val=None, test=f"{tmp_path}/linked"))  # type: ignore[arg-type]


def test_what_img2dataset_writes_beside_its_data_is_none(tmp_path):
    write_tar(tmp_path / "00000.tar", pair("x"))
    write_json(tmp_path / "00000_stats.json", {"count": 1})
    write_parquet(tmp_path / "00000.parquet", {"url": ["http://x"]})
    written = [f"{tmp_path}/00000{end}" for end in (".parquet", ".tar", "_stats.json")]
    for uri in (
        str(tmp_path),
        f"{tmp_path}/*",
        "::".join(written),
        f"{tmp_path}/00000{{.tar,.parquet,_stats.json}}",
    ):
        assert fates(read(Data(uri=uri))) == [("x", None)]


def test_two_tables_of_one_folder_are_refused(tmp_path):
    write_images(tmp_path, *METADATA)
    for name in ("metadata.jsonl", "metadata.csv"):
        _write_metadata(tmp_path / name)
    with pytest.raises(UserError, match=r"two tables of metadata in one folder \(\.\)"):
        list_shards(Data(uri=str(tmp_path)))


def test_a_pattern_of_folders_keeps_to_one_split(tmp_path):
    root = tree(tmp_path / "x", "train/cat/0.jpg", "train/dog/1.jpg", "val/cat/2.jpg", "val/dog/3.jpg")
    with pytest.raises(UserError, match=r"has several splits: train .* validation"):
        list_shards(Data(uri=f"{root}/*"))
    assert {row.image for row in read(Data(uri=f"{root}/*", split="val"))} == {jpeg(2), jpeg(3)}
    assert len(read(Data(uri=root, split="all"))) == 4


def test_a_lost_link_to_a_class_does_not_move_the_others(tmp_path):
    root = tree(tmp_path / "x", "train/cat/0.jpg", "train/fox/1.jpg")
    (tmp_path / "x/train/dog").symlink_to("/nowhere")
    for uri, split in ((root, "train"), (f"{root}/train", None)):
        with pytest.raises(UserError, match=r"dog is a link to /nowhere"):
            list_shards(Data(uri=uri, split=split))


def test_test_images_have_the_classes_of_the_training_images(tmp_path):
    data = Data(uri=tree(tmp_path / "train", "cat/0.jpg", "dog/1.jpg", "fox/2.jpg"), needs_captions=False)
    test = Evaluation(val=None, test=tree(tmp_path / "test", "cat/3.jpg", "fox/4.jpg"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^evaluation.test: its folders of classes .*: it lacks dog;"):
        check_data(data, test, labelled=True)
    check_data(data, test)


def test_img2dataset_files_are_samples(tmp_path):
    for shard, key in (("00000", "000000000"), ("00001", "000010000")):
        write_images(tmp_path, f"{shard}/{key}.jpg")
        (tmp_path / shard / f"{key}.txt").write_text(f"a picture of {key}")
        write_json(tmp_path / shard / f"{key}.json", {"caption": f"a picture of {key}", "status": "success"})
        write_json(tmp_path / f"{shard}_stats.json", {"count": 1})
        write_parquet(tmp_path / f"{shard}.parquet", {"url": ["http://x"], "caption": ["a picture"]})
    assert sorted(captions_of(Data(uri=str(tmp_path))).values()) == [
        ["a picture of 000000000"],
        ["a picture of 000010000"],
    ]


def test_captions_in_text_files_beside_images_are_read_and_lacking_ones_counted(tmp_path):
    write_images(tmp_path, "10_dogs/1.png", "10_dogs/2.png")
    (tmp_path / "10_dogs/1.txt").write_text("a dog on a chair")
    rows = read(Data(uri=str(tmp_path)))
    assert sorted((row.captions, row.reject) for row in rows) == [
        ([], "missing caption"),
        (["a dog on a chair"], None),
    ]
    assert says(tmp_path) == ["2 images with captions in .txt of the same name; 1 of them have none"]


def test_captions_beside_images_may_be_called_otherwise(tmp_path):
    texts = {
        "a__0_dot_caption": "one",
        "a__1_dot_jpg_dot_txt": "two",
        "a__2_dot_jpg_dot_json": '{"text": "three"}',
    }
    root = tree(tmp_path / "x", "a/0.jpg", "a/1.jpg", "a/2.jpg", **texts)
    assert sorted(captions_of(Data(uri=root)).values()) == [["one"], ["three"], ["two"]]


METADATA = {"0.png": "a red field", "1.png": "a blue field"}


def _write_metadata(path: Path) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *METADATA.items()])
    else:
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in METADATA.items()]
        path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_of_a_hugging_face_folder_are_the_captions(tmp_path, name):
    write_images(tmp_path / "train", *METADATA, "2.png")
    _write_metadata(tmp_path / "train" / name)
    for uri in (tmp_path, tmp_path / "train"):
        assert sorted(captions_of(Data(uri=str(uri))).values()) == [["a blue field"], ["a red field"]]
    assert says(tmp_path) == [
        f"2 images of train/{name}; not read: 1 image that no row names, e.g. train/2.png"
    ]
    write_images(tmp_path / "test", *METADATA)
    _write_metadata(tmp_path / "test" / name)
    with pytest.raises(UserError, match=r"has several splits: test .* train"):
        list_shards(Data(uri=str(tmp_path)))
    assert len(read(Data(uri=str(tmp_path), split="train"))) == 2
    assert len(read(Data(uri=str(tmp_path), split="all"))) == 4


def test_a_checkout_with_a_banner_is_its_parquet(tmp_path):
    write_images(tmp_path, "assets/banner.png")
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", {"image": [jpeg()], "text": ["a dog"]})
    assert [row.captions for row in read(Data(uri=str(tmp_path)))] == [["a dog"]]
    assert says(tmp_path) == ["1 Parquet file (train); not read: 1 image, e.g. assets/banner.png"]


def test_folders_of_hive_are_columns(tmp_path):
    for label in (3, 12):
        (tmp_path / f"label={label}").mkdir()
        write_parquet(tmp_path / f"label={label}" / "0.parquet", {"image": [jpeg(label)], "text": ["a dog"]})
    assert {row.label: row.image for row in read(Data(uri=str(tmp_path)))} == {3: jpeg(3), 12: jpeg(12)}


def test_tars_one_folder_deeper_are_read(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", pair(folder))
    assert [row.key for row in read(Data(uri=str(tmp_path)))] == ["a", "b"]


@pytest.mark.parametrize("names", [("x-train-0.tar", "x-test-0.tar"), ("0.tar", "x-test-0.tar")])
def test_tars_of_several_splits_are_not_mixed(tmp_path, names):
    for level, name in enumerate(names):
        write_tar(tmp_path / name, pair("x", level=level))
    for uri in (str(tmp_path), f"{tmp_path}/*.tar"):
        with pytest.raises(UserError, match=r"has several splits: .*test .*; name one as data.split"):
            list_shards(Data(uri=uri))
        assert [row.image for row in read(Data(uri=uri, split="test"))] == [jpeg(1)]
        assert len(read(Data(uri=uri, split="all"))) == 2
    named = ",".join(names)
    assert len(read(Data(uri=f"{tmp_path}/{{{named}}}"))) == 2  # who names each file means it
    with pytest.raises(UserError, match=r"data.split='val' is not in .*: it has "):
        list_shards(Data(uri=str(tmp_path), split="val"))


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("cc3m-train-0000.tar", "train"),
        ("valid-00000-of-00001.parquet", "validation"),
        ("val2017/0.tar", "validation"),
        ("data/test/train/0.tar", "train"),
        ("latest/contrast.tar", None),
        ("split=test/0.parquet", "test"),
        ("2017/0.tar", None),
    ],
)
def test_words_of_splits_in_paths(path, split):
    assert path_split(path) == split


def test_cocos_root_points_to_its_captions(tmp_path):
    write_images(tmp_path / "train2017", "1.jpg")
    (tmp_path / "annotations").mkdir()
    write_json(tmp_path / "annotations" / "captions_train2017.json", coco("1.jpg"))
    with pytest.raises(
        UserError, match=r"annotations/captions_train2017\.json, and the folder of its images"
    ):
        list_shards(Data(uri=str(tmp_path)))


def test_tars_and_foreign_parquet_are_told_apart(tmp_path):
    write_tar(tmp_path / "0.tar", pair("x"))
    write_parquet(tmp_path / "other.parquet", {"image": [jpeg()], "text": ["a dog"]})
    with pytest.raises(
        UserError, match=r"Parquet files that do not belong to them.*; name the one or the other"
    ):
        list_shards(Data(uri=str(tmp_path)))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for path in tmp_path.glob("*.*"):
        path.rename(tmp_path / "deep" / ("er" if path.suffix == ".tar" else "") / path.name)
    with pytest.raises(UserError, match=r"Parquet files that do not belong to them"):
        list_shards(Data(uri=str(tmp_path)))


@pytest.mark.parametrize("folder", ["[2024] photos", "x{1}", "x{1,2}", "q?", "star*", "50%off", "c#1", "a b"])
def test_a_path_that_exists_is_that_path(tmp_path, folder):
    (tmp_path / folder).mkdir()
    write_tar(tmp_path / folder / "00000.tar", pair("x"))
    for uri in (folder, f"{folder}/00000.tar"):
        assert fates(read(Data(uri=f"{tmp_path}/{uri}"))) == [("x", None)]
    if "{1,2}" not in folder:
        assert fates(read(Data(uri=f"{tmp_path}/{folder}/{{00000..00000}}.tar"))) == [("x", None)]
