"""Labelled sets are judged by classifiers beside real images, and refused where their classes are not the data's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_files import features_in
from safetensors.torch import load_file, save_file
from source_files import jpeg, write_images, write_parquet, write_tar

import mmdd_ray
from mmdd_ray.cli import parse
from mmdd_ray.config import Data, LabelledEvaluation
from mmdd_ray.data import shapes
from mmdd_ray.data.images import encode_png
from mmdd_ray.data.inventory import Source
from mmdd_ray.data.shards import find_shards
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled_sets import class_coresets
from mmdd_ray.methods.evaluate_labelled import METHOD
from mmdd_ray.methods.evaluate_labelled.classes import (
    DataClasses,
    all_classes,
    check_classes,
    check_same_classes,
    check_set_classes,
    templates,
)
from mmdd_ray.methods.evaluate_labelled.presets import PRESETS, local
from mmdd_ray.methods.evaluate_labelled.reading import GivenImages, read_sets
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.evaluate_labelled.stages import STEPS
from mmdd_ray.methods.execute import check
from mmdd_ray.protocols.soft_label import IMAGENET_TEACHER
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
CLASSES = ("crane", "owl", "wren")


def distilled(folder: Path, labels: list[int | None], names: dict[int, str] | None) -> str:
    samples = [
        Sample(
            key=f"{number:06d}",
            image=encode_png(np.full((8, 8, 3), number, np.uint8)),
            captions=(f"a photo of a {names[label] if names and label is not None else 'bird'}",),
            seed=0,
            source_key="",
            label=label,
        )
        for number, label in enumerate(labels)
    ]
    write_distilled(
        samples, Store(str(folder)), method="VLCP", settings={}, seed=0, inputs={}, class_names=names
    )
    return str(folder)


def class_folders(folder: Path, *counts: int, classes: tuple[str, ...] = CLASSES) -> str:
    """An image folder with so many images of each class."""
    names = [
        f"{name}/{number}.jpg" for name, count in zip(classes, counts, strict=True) for number in range(count)
    ]
    write_images(folder, *names)
    return str(folder)


def asking(given: str | tuple[str, ...], data: str, test: str = "", **changes: object) -> EvaluateLabelled:
    """Settings of an evaluation of these sets with classifiers of small images."""
    settings = replace(local(), set=given, data=Data(uri=data))
    return replace(
        settings,
        classifiers=replace(settings.classifiers, image_px=8),
        evaluation=replace(settings.evaluation, test=test or settings.evaluation.test),
        **changes,
    )


def read_set(settings: EvaluateLabelled) -> GivenImages:
    """The only set."""
    (found,) = read_sets(settings)
    return found


@pytest.fixture
def birds(tmp_path: Path) -> str:
    """Real images of three classes in folders."""
    return class_folders(tmp_path / "birds", 9, 9, 9)


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    return class_folders(tmp_path / "held_out", 4, 4, 4)


def test_the_same_images_are_the_same_set_in_every_layout(tmp_path: Path, birds: str, held_out: str) -> None:
    images = {(label, number): jpeg(10 * label + number) for label in range(3) for number in range(label + 1)}
    keys = {place: f"{place[0]}{place[1]}" for place in images}
    for (label, number), image in images.items():
        path = tmp_path / "folder" / CLASSES[label] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    tar = write_tar(
        tmp_path / "set.tar",
        [
            member
            for place, image in images.items()
            for member in ((f"{keys[place]}.jpg", image), (f"{keys[place]}.cls", str(place[0]).encode()))
        ],
    )
    parquet = write_parquet(
        tmp_path / "set.parquet",
        {"image": list(images.values()), "label": [label for label, _ in images], "key": list(keys.values())},
    )
    sets = [read_set(asking(given, birds)) for given in (str(tmp_path / "folder"), tar, parquet)]
    assert len({one.checksum for one in sets}) == 1
    assert [one.counts for one in sets] == [{0: 1, 1: 2, 2: 3}] * 3
    assert [one.names for one in sets] == [dict(enumerate(CLASSES)), {}, {}]
    assert [one.named.label for one in sets] == ["folder", "set", "set"]
    for one in sets:
        check(asking(one.named.uri, birds, held_out))


def test_a_distilled_set_and_its_image_folder_are_read_alike(
    tmp_path: Path, birds: str, held_out: str
) -> None:
    given = distilled(tmp_path / "set", [0, 0, 1, 1, 2, 2], dict(enumerate(CLASSES)))
    own, folder, tars = (read_set(asking(f"{given}{part}", birds)) for part in ("", "/images", "/*.tar"))
    assert own.checksum == folder.checksum == tars.checksum
    assert (own.named.label, own.named.name, own.names) == ("VLCP", "vlcp", dict(enumerate(CLASSES)))
    assert folder.names[2] == "0002_wren"
    for one in (given, f"{given}/images", f"{given}/*.tar"):
        check(asking(one, birds, held_out))


def test_shapes_are_a_set_like_any_other() -> None:
    settings = asking("shapes:400?seed=9&labelled=1&wrong=0", "shapes:200?seed=1&labelled=1&wrong=0")
    assert read_set(settings).names[0] == shapes.CLASS_NAMES[0]
    check(settings)


def test_classes_that_are_not_those_of_the_data_are_refused_before_ray(tmp_path: Path, birds: str) -> None:
    def refused(given: str, **changes: object) -> str:
        with pytest.raises(UserError) as error:
            check(asking(given, birds, **changes))
        return str(error.value)

    lacking = class_folders(tmp_path / "lacking", 2, 2, classes=("crane", "wren"))
    assert f"set={lacking} has no image of the class 1 ('owl') of data.uri={birds}; a set" in refused(lacking)
    others = class_folders(tmp_path / "others", 1, 1, 1, classes=("crane", "heron", "owl"))
    assert "has no image of the class 2 ('wren')" in refused(others)
    moved = distilled(tmp_path / "moved", [0, 1, 2], {0: "owl", 1: "crane", 2: "wren"})
    assert f"set={moved} has the label 0 for 'owl', data.uri={birds} for 'crane'" in refused(moved)
    shifted = write_parquet(tmp_path / "from_one.parquet", {"image": [jpeg()] * 3, "label": [1, 2, 3]})
    assert "has no image of the class 0 ('crane')" in refused(shifted)
    more = write_parquet(tmp_path / "more.parquet", {"image": [jpeg()] * 4, "label": [0, 1, 2, 3]})
    assert "has 1 images of the class 3, which data.uri" in refused(more)
    empty = distilled(tmp_path / "empty", [0, 2], dict(enumerate(CLASSES)))
    assert "has no image of the class 1 ('owl')" in refused(empty)


def test_a_set_that_cannot_be_used_whole_is_refused_before_ray(tmp_path: Path, birds: str) -> None:
    def refused(given: str, **changes: object) -> str:
        with pytest.raises(UserError) as error:
            check(asking(given, birds, **changes))
        return str(error.value)

    assert refused(str(tmp_path / "nothing")).startswith(f"set={tmp_path}/nothing: no such file")
    pairs = distilled(tmp_path / "pairs", [None, None], None)
    assert "give sets of pairs to jobs/evaluate.py" in refused(pairs)
    unlabelled = write_parquet(tmp_path / "un.parquet", {"image": [jpeg()], "caption": ["a crane"]})
    assert "1 of its 1 images have no label" in refused(unlabelled)
    broken = class_folders(tmp_path / "broken", 1, 1, 2)
    (tmp_path / "broken/wren/1.jpg").write_bytes(b"no image")
    assert "1 of its 4 images cannot be used (the first, " in refused(broken)
    splits = tmp_path / "splits"
    for part in ("train", "test"):
        class_folders(splits / part, 1, 1, 1)
    assert "set_split" in refused(str(splits))
    assert read_set(asking(str(splits), birds, set_split="test")).counts == {0: 1, 1: 1, 2: 1}


def test_settings_that_cannot_be_are_refused_before_ray(tmp_path: Path, birds: str) -> None:
    given = class_folders(tmp_path / "given", 1, 1, 1)
    settings = asking(given, birds)

    def refused(**changes: object) -> str:
        with pytest.raises(UserError) as error:
            check(replace(settings, **changes))
        return str(error.value)

    evaluation = settings.evaluation
    assert "has no generator" in refused(evaluation=LabelledEvaluation(test=evaluation.test))
    assert "cannot be drawn again" in refused(evaluation=replace(evaluation, draws=2))
    assert "template='a bird' does not have {class_name}" in refused(template="a bird")
    several = replace(settings.classifiers, learning_rates=(0.1, 0.2))
    assert "name images to choose with as evaluation.val" in refused(classifiers=several)
    taught = replace(settings.classifiers, teacher=str(tmp_path / "t.pth"))
    assert "is for soft labels; add soft-label to evaluation.protocols, or say" in refused(classifiers=taught)
    soft = replace(evaluation, protocols=("soft-label",))
    assert "t.pth does not exist; name a file of weights" in refused(classifiers=taught, evaluation=soft)
    names = tmp_path / "names.txt"
    names.write_text("crane\nowl")
    assert "has 2 lines, one for each class from 0 on, but" in refused(class_names=str(names))
    names.write_text("crane\nowl\nwren\nyak")
    assert "has 3 folders of classes" in refused(class_names=str(names))
    assert "class_names=/none.txt cannot be read" in refused(class_names="/none.txt")
    numbers = write_parquet(tmp_path / "data.parquet", {"image": [jpeg()] * 3, "label": [0, 1, 2]})
    unnamed = write_parquet(tmp_path / "set.parquet", {"image": [jpeg()] * 3, "label": [0, 1, 2]})
    data = Data(uri=numbers, needs_captions=False)
    assert "clip-score, but nothing says what the class 0" in refused(set=unnamed, data=data)


def test_the_teacher_of_a_preset_is_no_mistake_where_none_is_needed(
    tmp_path: Path, birds: str, held_out: str
) -> None:
    settings = asking(class_folders(tmp_path / "given", 1, 1, 1), birds, held_out)
    check(replace(settings, classifiers=replace(settings.classifiers, teacher=IMAGENET_TEACHER)))


def test_a_single_class_is_refused_before_ray(tmp_path: Path) -> None:
    one = class_folders(tmp_path / "one", 3, classes=CLASSES[:1])
    given = class_folders(tmp_path / "given", 1, classes=CLASSES[:1])
    with pytest.raises(
        UserError, match=r"all images of .*one are of one class; classifiers need at least two"
    ):
        check(asking(given, one))


def test_the_plan_knows_how_many_images_the_first_set_has(tmp_path: Path, birds: str) -> None:
    given = class_folders(tmp_path / "given", 1, 2, 3)
    settings = asking(given, birds)
    assert METHOD.size(settings, METHOD.look(settings)) == ("set", 6)


def test_all_classes_of_the_data_are_known_once_all_images_are_read(tmp_path: Path, birds: str) -> None:
    settings = asking(class_folders(tmp_path / "given", 1, 1, 1), birds)
    given = read_set(settings)
    shared: dict[int | None, set[str]] = {0: {"crane"}, 1: {"owl"}, 2: {"wren"}, 3: {"yak"}}
    classes = all_classes(settings, {0: 9, 1: 9, 2: 9, 3: 1}, lambda at_least: shared)
    with pytest.raises(UserError, match=r"has no image of the class 3 \('yak'\)"):
        check_set_classes(given, classes, settings)
    known = all_classes(settings, {0: 9, 1: 9, 2: 9}, lambda at_least: dict(list(shared.items())[:3]))
    check_set_classes(given, known, settings)
    assert templates([given], known, "one {class_name}") == {0: "one crane", 1: "one owl", 2: "one wren"}
    # the caption of a class's only image need not be its name
    captions: dict[int | None, set[str]] = {0: {"a bird in a tree"}, 1: set(), 2: set()}
    loose = all_classes(settings, {0: 1, 1: 9, 2: 9}, lambda at_least: {} if at_least > 1 else captions)
    assert loose == DataClasses([0, 1, 2], {}, {}, True)
    with pytest.raises(UserError, match=r"2 of the 11 images of .* have no label"):
        all_classes(settings, {0: 9, None: 2}, lambda at_least: {})
    with pytest.raises(UserError, match="are of one class"):
        all_classes(settings, {0: 9}, lambda at_least: {})


# ---- several sets


def test_several_sets_have_names_of_their_own_and_are_described(
    tmp_path: Path, birds: str, held_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(enumerate(CLASSES))
    uris = (
        distilled(tmp_path / "a", [0, 0, 1, 1, 2, 2], names),
        distilled(tmp_path / "b", [0, 1, 2], names),
        class_folders(tmp_path / "random", 1, 2, 3),
    )
    settings = asking(uris, birds, held_out)
    check(settings)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("set ")]
    assert shown == [
        "set             vlcp: distilled set; 6 images of 3 classes, 2 of each",
        "set             vlcp-2: distilled set; 3 images of 3 classes, 1 of each",
        f"set             random-set: {shown[2].partition(': ')[2]}",
    ]
    assert shown[2].endswith("; 6 images of 3 classes, 1 to 3 of each")
    first, second, third = sets = read_sets(settings)
    assert [one.named.label for one in sets] == ["VLCP", "VLCP-2", "random"]
    assert [one.about(first)["kind"] for one in sets] == ["distilled", "distilled", "images"]
    assert [one.about(first)["notes"] for one in (first, second)] == [[], []]
    assert third.about(third)["notes"] == [
        "it has 1 to 3 images of each class, and baselines have as many of each"
    ]
    assert third.about(first)["notes"] == [
        "it has 1 to 3 images of each class",
        "it has as many images as VLCP, but not of each class: 1 of the class 0 ('crane'), of which VLCP has 2",
    ]


def test_one_set_is_written_as_before(tmp_path: Path) -> None:
    assert parse("evaluate_labelled", PRESETS, ["--set", "a"])[1].set == ("a",)
    assert parse("evaluate_labelled", PRESETS, ["local", "--set", "a", "b"])[1].set == ("a", "b")
    assert replace(local(), set="abc").set == ("abc",)
    assert mmdd_ray.settings("evaluate-labelled", changes={"set": "abc"}).set == ("abc",)
    assert mmdd_ray.settings("evaluate-labelled", changes={"set": ["a", "b"]}).set == ("a", "b")
    file = tmp_path / "settings.yaml"
    file.write_text("set: abc")
    assert parse("evaluate_labelled", PRESETS, ["--config", str(file)])[1].set == ("abc",)


def test_the_plan_counts_the_classifiers_of_every_set() -> None:
    settings, source = local(), Source(rows=100, classes=48)
    one, three = (
        STEPS.compare.cost(replace(settings, set=uris), 0, source).actors
        for uris in (("a",), ("a", "b", "c"))
    )
    assert three - one == 2 * settings.evaluation.seeds


def test_sets_that_cannot_stand_beside_each_other_are_refused(
    tmp_path: Path, birds: str, held_out: str
) -> None:
    def refused(*uris: str, data: str | Data = birds) -> str:
        settings = asking(uris, birds, held_out)
        with pytest.raises(UserError) as error:
            check(settings if isinstance(data, str) else replace(settings, data=data))
        return str(error.value)

    good = class_folders(tmp_path / "good", 2, 2, 2)
    assert refused(good, f"{tmp_path}/../{tmp_path.name}/good/").endswith("good/ twice; name each set once")
    lacking = distilled(tmp_path / "lacking", [0, 2], dict(enumerate(CLASSES)))
    assert f"set={lacking} has no image of the class 1 ('owl') of data.uri" in refused(good, lacking)
    assert f"set={held_out}: 12 of its 12 files are among those of evaluation.test, too" in refused(held_out)
    vectors = tmp_path / "lors.pt"
    vectors.write_bytes(b"")
    assert f"set={vectors} is a file of pixels and sentence vectors, which have no classes" in refused(
        good, str(vectors)
    )


def test_sets_are_compared_with_each_other_where_the_data_have_no_names(tmp_path: Path, birds: str) -> None:
    uris = {
        "wren": distilled(tmp_path / "wren", [0, 1], {0: "owl", 1: "wren"}),
        "yak": distilled(tmp_path / "yak", [0, 1], {0: "owl", 1: "yak"}),
        "more": distilled(tmp_path / "more", [0, 1, 2], {0: "owl", 1: "wren", 2: "yak"}),
        "prompts": write_parquet(
            tmp_path / "prompts.parquet",
            {
                "image": [jpeg(number) for number in range(20)],
                "label": [0] * 10 + [1] * 10,
                "caption": ["a photo of a owl"] * 10 + ["a photo of a wren"] * 10,
            },
        ),
        "numbers": write_parquet(tmp_path / "numbers.parquet", {"image": [jpeg()] * 2, "label": [0, 1]}),
    }
    uris["folders"] = f"{uris['wren']}/images"

    def sets(*names: str) -> list[GivenImages]:
        return read_sets(asking(tuple(uris[name] for name in names), birds))

    settings = asking("shapes:3", birds)
    alike = sets("numbers", "folders", "prompts", "wren")
    assert [one.names.get(1) for one in alike] == [None, "0001_wren", "a photo of a wren", "wren"]
    for first in range(4):
        check_same_classes(alike[first:] + alike[:first], settings)
    with pytest.raises(UserError) as error:
        check_same_classes(sets("folders", "yak"), settings)
    assert str(error.value) == (
        f"set={uris['folders']} calls the class 1 '0001_wren', and set={uris['yak']} 'yak'; name sets with the same "
        "classes"
    )
    for names in (("more", "wren"), ("wren", "more")):
        with pytest.raises(UserError) as error:
            check_same_classes(sets(*names), settings)
        assert str(error.value) == (
            f"set={uris['more']} has images of the class 2 ('yak'), and set={uris['wren']} has none; name sets with "
            "the same classes"
        )
    # the first rows of the data need not show all of its classes; names come from the first set that has them
    seen = DataClasses([0, 1], {}, {}, False)
    with pytest.raises(UserError, match="has images of the class 2"):
        check_classes(sets("wren", "more"), seen, settings)
    check_classes(sets("numbers", "wren"), seen, settings)
    assert templates(sets("numbers", "wren"), seen, "one {class_name}") == {0: "one owl", 1: "one wren"}
    with pytest.raises(UserError, match="nothing says what the class 0"):
        check_classes(sets("numbers"), seen, settings)


def test_coresets_have_as_many_images_of_each_class_as_the_set(tmp_path: Path) -> None:
    labels: list[int | None] = [4, 7, 7, 4, 7, 7, 7, 4]
    images = np.random.default_rng(0).normal(size=(8, 4))
    features = features_in(tmp_path, labels, [["a"]] * 8, images)
    names = ("random", "herding", "k-center", "clip-score")
    found = class_coresets(features, (4, 7), {4: 1, 7: 3}, names, 2, np.arange(8.0), 0.5)
    assert found.keys() == {*names}
    for rows in found.values():
        chosen = [labels[row] for row in rows]
        assert (chosen.count(4), chosen.count(7)) == (1, 3)
    for name in names[:3]:
        alike = [class_coresets(features, (4, 7), count, [name], 2)[name] for count in (2, {4: 2, 7: 2})]
        np.testing.assert_array_equal(*alike)


@pytest.mark.job
@pytest.mark.timeout(900)
def test_an_image_folder_is_evaluated_and_again_where_it_changed(tmp_path: Path) -> None:
    source = "shapes:160?seed=1&labelled=1&world=clean"
    real = {pair["label"] for pair in shapes.pairs(0, 160, seed=1, labelled=True)}
    own: dict[int, list[bytes]] = {}
    for pair in shapes.pairs(0, 600, seed=5, labelled=True):
        if pair["label"] in real and len(own.setdefault(pair["label"], [])) < 1 + (pair["label"] == 0):
            own[pair["label"]].append(pair["image"])
    assert own.keys() == real
    rows = [(image, label) for label, images in sorted(own.items()) for image in images]
    given = write_parquet(
        tmp_path / "given.parquet", {"image": [row[0] for row in rows], "label": [row[1] for row in rows]}
    )
    # another set without the second image of class 0, of which the first images are test images, too
    even = {label: images[-1] for label, images in sorted(own.items())}
    other = write_parquet(tmp_path / "other.parquet", {"image": [*even.values()], "label": [*even]})
    tested = [row for row in shapes.pairs(0, 50, seed=3, labelled=True) if row["label"] in real]
    planted = write_parquet(
        tmp_path / "test.parquet",
        {
            "image": [*even.values()][:3] + [row["image"] for row in tested],
            "label": [*even][:3] + [row["label"] for row in tested],
            "caption": ["a drawing"] * 3 + [row["captions"][0] for row in tested],
        },
    )
    command = [sys.executable, "jobs/evaluate_labelled.py", "local", "--run.dir", str(tmp_path / "run")]
    command += ["--set", given, other, "--evaluation.test", planted, "--data.uri", source]
    command += ["--run.num_cpus", "2", "--classifiers.steps", "4"]
    command += ["--classifiers.width", "8", "--evaluation.seeds", "3", "--evaluation.max_pairs", "60"]
    command += ["--evaluation.baselines", "random", "clip-score", "--evaluation.audit"]

    def run() -> tuple[str, dict]:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout, json.loads((tmp_path / "run" / "report.json").read_text())

    shown, report = run()
    assert report["task"] == "classification"
    assert list(report["scores"]) == ["given", "other", "random", "clip-score", "chance"]
    sizes = {name: one["images"] for name, one in report["sets"].items()}
    assert (sizes["given"], sizes["other"]) == (len(real) + 1, len(real))
    assert sizes["random"] == sizes["clip-score"] <= sizes["given"]
    assert report["labels"] == {"given": "given", "other": "other"}
    assert {name: list(beside) for name, beside in report["differences"].items()} == {
        "given": ["other", "random", "clip-score"],
        "other": ["random", "clip-score"],
    }
    left, right = (report["scores"][name]["top-1"]["runs"] for name in ("given", "other"))
    found = report["differences"]["given"]["other"]
    assert (found["over"], found["count"]) == ("students", 3)
    assert found["metrics"]["top-1"]["mean"] == pytest.approx(np.mean(left) - np.mean(right))
    test = report["held_out"]["test"]
    assert (test["common"]["set other"], len(test["common_keys"]["set other"])) == (3, 3)
    assert test["common_keys"]["set other"][0] in shown
    assert "Top-1" in shown
    assert report["audit"]["copies"]["images"] == len(real) + 1
    assert "Looked at is given, the first set." in (tmp_path / "run" / "report.html").read_text()
    flat = " ".join(shown.split())
    assert "given: it has 1 to 2 images of each class, and baselines have as many of each" in flat
    size = f"given {len(real) + 1} images like the baselines, other {len(real)}"
    assert f"sets differ in size, so they are no fair comparison: {size}" in flat
    assert "images are also set other images, pixel for pixel: " in flat
    write_parquet(
        tmp_path / "given.parquet",
        {"image": [row[0] for row in rows[::-1]], "label": [row[1] for row in rows[::-1]]},
    )
    again, _ = run()
    assert "features     done already" in again
    assert "evaluate     starts afresh, because set changed" in again


@pytest.mark.job
@pytest.mark.timeout(900)
def test_a_teacher_is_tested_before_its_answers_are_learnt(tmp_path: Path) -> None:
    levels = {"crane": 20, "owl": 120, "wren": 220}

    def folder(name: str, images: int) -> str:
        """An image folder whose classes differ in their brightness."""
        for place, (label, level) in enumerate(levels.items()):
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(images):
                image = np.full((8, 8, 3), level + number + place, np.uint8)
                (tmp_path / name / label / f"{name}{number}.png").write_bytes(encode_png(image))
        return str(tmp_path / name)

    command = [sys.executable, "jobs/evaluate_labelled.py", "local", "--run.dir", str(tmp_path / "run")]
    command += ["--set", folder("set", 2), "--data.uri", folder("data", 12), "--run.num_cpus", "2"]
    command += ["--evaluation.test", folder("test", 8), "--evaluation.baselines", "random"]
    command += ["--evaluation.protocols", "soft-label", "--classifiers.model", "convnet-3"]
    command += [
        "--classifiers.image_px",
        "8",
        "--classifiers.width",
        "8",
        "--classifiers.teacher_steps",
        "100",
    ]

    def run(*further: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *further], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )

    made = run()
    assert made.returncode == 0, made.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    teacher = json.loads((tmp_path / "run" / "teacher" / "teacher.json").read_text())
    assert teacher["test_top_1"] > 80
    told = f"and {teacher['test_top_1']:.1f} % of the test images rightly"
    assert told in report["protocol"]["chosen"]
    assert told in " ".join(made.stdout.split())

    weights = load_file(tmp_path / "run" / "teacher" / "teacher.safetensors")
    (last,) = {name.rpartition(".")[0] for name, value in weights.items() if len(value.shape) == 2}
    turned = {name: value.roll(1, 0) if name.startswith(last) else value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in turned.items()}, tmp_path / "turned.safetensors")
    refused = run(
        "--classifiers.teacher", str(tmp_path / "turned.safetensors"), "--run.dir", str(tmp_path / "other")
    )
    assert refused.returncode == 2
    message = " ".join(refused.stderr.split())
    assert "turned.safetensors names 0.0 % of the 24 test images rightly, and chance 33.3 %" in message
    assert "its classes are in another order" in message
    assert not (tmp_path / "other" / "evaluate").exists()

    save_file(weights, tmp_path / "right.safetensors")
    taken = run("--classifiers.teacher", str(tmp_path / "right.safetensors"))
    assert taken.returncode == 0, taken.stderr[-3000:]
    assert "evaluate     continues" in taken.stdout  # whose students had this very teacher
    chosen = json.loads((tmp_path / "run" / "report.json").read_text())["protocol"]["chosen"]
    assert (
        f"right.safetensors, which names {teacher['test_top_1']:.1f} % of the test images rightly" in chosen
    )


def test_the_folders_of_a_distilled_set_are_sorted_as_its_labels(tmp_path: Path) -> None:
    names = {0: "zebra", 7: "owl", 12: "a/b c"}
    given = distilled(tmp_path, [0, 7, 12], names)
    assert find_shards(Data(uri=f"{given}/images")).classes == ["0000_zebra", "0007_owl", "0012_a_b_c"]
