"""Students beyond retrieval: against references, and with models whose score is known."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score

from mmdd_ray.config import Evaluation, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.class_names import names_to_recognise
from mmdd_ray.data.contrasts import list_contrasts
from mmdd_ray.data.hard_negatives import KINDS, Contrast, contrasts
from mmdd_ray.data.pair import Row
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import chance
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.probes.compositional import compositional_accuracy
from mmdd_ray.evaluation.probes.linear import linear_probe
from mmdd_ray.evaluation.probes.score import probe_student
from mmdd_ray.evaluation.probes.sets import ClassSet, ContrastSet, ProbedPairs, Probes
from mmdd_ray.evaluation.probes.zero_shot import class_embeddings, zero_shot_accuracy
from mmdd_ray.evaluation.tasks.retrieval import Retrieval
from mmdd_ray.models.students import DualEncoder, load_student
from mmdd_ray.protocols import pair_protocol

PX = 32
SETTINGS = Students(image_px=PX, embed_dim=16, steps=2, batch_pairs=4, learning_rates=(0.03,))


def pair_set(start: int, stop: int) -> PairSet:
    rows = [
        Row("shapes", i, pair["key"], pair["image"], pair["captions"][:2], None, None)
        for i, pair in enumerate(shapes.pairs(start, stop, seed=5))
    ]
    return PairSet.from_rows(rows, image_px=PX, max_pixels=10**6)[0]


def class_set(n: int, **changes: object) -> ClassSet:
    rows = [
        Row("shapes", i, pair["key"], pair["image"], [], pair["label"], None)
        for i, pair in enumerate(shapes.pairs(0, n, seed=7, labelled=True))
    ]
    classes = tuple(range(len(shapes.CLASS_NAMES)))
    images, _ = LabelledSet.from_rows(rows, classes, image_px=PX, max_pixels=10**6)
    given = {"templates": ("a photo of a {}.", "{}"), "linear": True} | changes
    return ClassSet(images, shapes.CLASS_NAMES, **given)  # type: ignore[arg-type]


def contrast_set(n: int) -> ContrastSet:
    found = list_contrasts(f"shapes:{n}?seed=9&world=clean", None, n)
    return ContrastSet.read(found.images, image_px=PX, max_pixels=10**6, max_bytes=10**6)[0]


# ---- zero-shot


def test_zero_shot_agrees_with_a_reference() -> None:
    rng = np.random.default_rng(0)
    image, classes, label = rng.normal(size=(300, 8)), rng.normal(size=(12, 8)), rng.integers(12, size=300)
    cosine = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ (
        classes / np.linalg.norm(classes, axis=1, keepdims=True)
    ).T
    found = zero_shot_accuracy(*map(torch.from_numpy, (image, classes, label)))
    assert found == {
        f"zero-shot/top-{k}": pytest.approx(
            100 * top_k_accuracy_score(label, cosine, k=k, labels=np.arange(12))
        )
        for k in (1, 5)
    }


def test_zero_shot_of_known_models() -> None:
    label = torch.arange(40) % 8
    ideal = zero_shot_accuracy(F.one_hot(label, 8), torch.eye(8), label)
    assert ideal == {"zero-shot/top-1": 100.0, "zero-shot/top-5": 100.0}
    blind = zero_shot_accuracy(torch.ones(40, 8), torch.ones(8, 8), label)
    assert blind == {"zero-shot/top-1": 0.0, "zero-shot/top-5": 0.0}  # equals stand before the right class
    two = zero_shot_accuracy(F.one_hot(label // 2, 4), torch.eye(4).repeat_interleave(2, dim=0), label)
    assert two == {"zero-shot/top-1": 0.0, "zero-shot/top-5": 100.0}  # it cannot tell 0 from 1, 2 from 3


def test_templates_are_averaged_as_unit_vectors() -> None:
    vectors = {"a": [3.0, 0.0], "b": [0.0, 0.5], "c": [-1.0, 0.0], "d": [0.0, 2.0]}
    class_CD = class_embeddings(
        lambda texts: torch.tensor([vectors[t] for t in texts]), [["a", "b"], ["c", "d"]]
    )
    half = 0.5**0.5
    assert class_CD.tolist() == [pytest.approx([half, half]), pytest.approx([-half, half])]


def test_a_template_takes_the_name_and_nothing_else() -> None:
    prompts = class_set(4, templates=("a {} {0} {x}", "{}")).prompts
    assert prompts[1] == ["a red square {0} {x}", "red square"]


# ---- linear probe


def test_the_probe_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(4, size=200)
    feature = rng.normal(size=(4, 6))[label] + rng.normal(size=(200, 6))
    feature *= np.geomspace(0.01, 100, 6)  # scales that must not matter
    trains = np.arange(200) % 2 == 0
    mean, std = feature[trains].mean(axis=0), feature[trains].std(axis=0)
    unit = (feature - mean) / std
    wanted = LogisticRegression(C=1.0, max_iter=1000).fit(unit[trains], label[trains])
    assert linear_probe(feature, label, trains) == pytest.approx(
        100 * wanted.score(unit[~trains], label[~trains])
    )
    assert linear_probe(7 * feature + 3, label, trains) == pytest.approx(linear_probe(feature, label, trains))


def test_the_probe_of_known_features() -> None:
    label = np.arange(120) % 6
    trains = np.arange(120) < 60
    assert linear_probe(np.eye(6, dtype=np.float32)[label], label, trains) == 100.0
    assert linear_probe(np.ones((120, 3)), label, trains) == pytest.approx(100 / 6)  # one class for all


def test_an_image_that_is_there_twice_is_on_one_side() -> None:
    once = class_set(60)
    images = once.images
    twice = replace(
        once,
        images=LabelledSet(
            np.concatenate([images.images, images.images]),
            np.concatenate([images.labels, images.labels]),
            images.classes,
        ),
    )
    assert np.array_equal(twice.trains_N, np.tile(once.trains_N, 2))
    assert 15 <= once.trains_N.sum() <= 45
    order = np.random.default_rng(0).permutation(60)
    shuffled = LabelledSet(images.images[order], images.labels[order], images.classes)
    assert np.array_equal(replace(once, images=shuffled).trains_N, once.trains_N[order])
    once.check_halves()
    with pytest.raises(UserError, match="name more images"):
        class_set(1).check_halves()


# ---- compositional


def bags(texts: list[str], words: list[str]) -> torch.Tensor:
    """A model that reads texts as bags of words."""
    counts = (Counter(text.replace(",", "").split()) for text in texts)
    return torch.tensor([[float(count[word]) for word in words] for count in counts])


def test_a_bag_of_words_finds_replacements_and_no_swap() -> None:
    found = [one for index in range(150) for one in contrasts(shapes.scene(index, seed=2))]
    captions, negatives = [one.caption for one in found], [one.negative for one in found]
    words = sorted({word for text in [*captions, *negatives] for word in text.replace(",", "").split()})
    caption_MD, negative_MD = bags(captions, words), bags(negatives, words)
    kinds = [one.kind for one in found]
    scores = compositional_accuracy(caption_MD, caption_MD, negative_MD, np.arange(len(found)), kinds)
    assert scores == {
        f"compositional/{kind}": 0.0 if kind.startswith("swap") else 100.0 for kind in KINDS
    } | {"compositional": pytest.approx(100 * 4 / 7)}


def test_contrasts_are_scored_with_their_own_images_and_ties_count_against() -> None:
    image = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    right, wrong = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    caption = torch.stack([right, wrong, wrong, 5 * right])
    negative = torch.stack([wrong, right, right, right])  # the last is a tie, whatever its length
    scores = compositional_accuracy(image, caption, negative, np.array([0, 1, 0, 0]), ["a", "a", "a", "b"])
    assert scores == {
        "compositional/a": pytest.approx(200 / 3),
        "compositional/b": 0.0,
        "compositional": pytest.approx(100 / 3),
    }


# ---- students


@pytest.fixture(scope="module")
def student() -> DualEncoder:
    return load_student(SETTINGS, seed=0, device="cpu").eval()


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes(class_set(60), contrast_set(12))


def test_a_student_is_asked_all_of_it(student: DualEncoder, probes: Probes) -> None:
    found = probe_student(student, probes)
    assert found.keys() == probes.chance().keys()
    assert found == probe_student(student, probes)
    classes, pairs = probes.classes, probes.contrasts
    assert classes is not None
    assert pairs is not None
    with torch.no_grad():
        feature = student.image(torch.from_numpy(classes.images.images))
        texts = student.embed_text(
            student.text.encode_captions([f"a photo of a {n}." for n in classes.names])
        )
        bare = student.embed_text(student.text.encode_captions(list(classes.names)))
        score = student.embed_image(feature) @ F.normalize(texts + bare, dim=1).T
        image = student.embed_image(student.image(torch.from_numpy(pairs.images)))[pairs.owner_M]
        own, other = (
            (image * student.embed_text(student.text.encode_captions(list(said)))).sum(dim=1).numpy()
            for said in (pairs.captions, pairs.negatives)
        )
    label = classes.images.labels
    assert found["zero-shot/top-5"] == pytest.approx(
        100 * top_k_accuracy_score(label, score.numpy(), k=5, labels=np.arange(48))
    )
    assert found["linear-probe"] == linear_probe(feature.numpy(), label, classes.trains_N)
    shape = np.array(pairs.kinds) == "replace-shape"
    assert found["compositional/replace-shape"] == pytest.approx(100 * (own > other + 1e-6)[shape].mean())


def test_chance_is_that_of_random_answers(probes: Probes) -> None:
    found = probes.chance()
    assert found["zero-shot/top-1"] == found["linear-probe"] == pytest.approx(100 / 48)
    assert found["zero-shot/top-5"] == pytest.approx(500 / 48)
    assert {found[f"compositional/{kind}"] for kind in KINDS} == {found["compositional"]} == {50.0}
    assert Probes().chance() == {}
    assert "linear-probe" not in Probes(class_set(4, linear=False)).chance()


def test_a_student_that_diverged_scores_nothing(probes: Probes) -> None:
    lost = load_student(SETTINGS, seed=0, device="cpu")
    lost.image_head.weight.data.fill_(torch.nan)
    lost.text_head.weight.data.fill_(torch.nan)
    assert probe_student(lost, probes) == dict.fromkeys(probes.chance(), 0.0)


def test_the_fingerprint_of_test_pairs_holds_what_is_asked(probes: Probes) -> None:
    pairs = pair_set(0, 3)
    classes = probes.classes
    assert classes is not None
    variants = [
        Probes(),
        probes,
        replace(probes, contrasts=None),
        replace(probes, classes=replace(classes, templates=("{}",))),
        replace(probes, classes=replace(classes, linear=False)),
        replace(probes, contrasts=contrast_set(11)),
    ]
    found = [ProbedPairs(pairs.images, pairs.captions, one).fingerprint() for one in variants]
    assert len({*found, pairs.fingerprint()}) == len(variants) + 1


def test_the_task_asks_and_says_chance(student: DualEncoder, probes: Probes) -> None:
    pairs, task = pair_set(0, 4), Retrieval(SETTINGS, pair_protocol("equal-budget", SETTINGS))
    plain = task.test(student, pairs, None)
    found = task.test(student, ProbedPairs(pairs.images, pairs.captions, probes), None)
    assert found == plain | probe_student(student, probes)
    assert task.chance(pairs) == chance(4, 2)
    assert task.chance(ProbedPairs(pairs.images, pairs.captions, probes)) == chance(4, 2) | probes.chance()


# ---- names of classes


def test_names_come_from_the_first_place_that_has_them(tmp_path: Path) -> None:
    shared: dict[int | None, set[str]] = {0: {"cat"}, 1: {"dog"}}
    file = tmp_path / "names.txt"
    file.write_text("tom cat\nhot dog\nrat\n")
    assert names_to_recognise("x.parquet", None, [], shared) == {0: "cat", 1: "dog"}
    assert names_to_recognise("x", None, ["a_cat", "b"], shared) == {0: "a cat", 1: "b"}
    assert names_to_recognise("x.tar", str(file), [], shared) == {0: "tom cat", 1: "hot dog", 2: "rat"}
    assert len(names_to_recognise("shapes:9?labelled=1", None, [], {3: {"x", "y"}})) == 48


@pytest.mark.parametrize(
    ("shared", "folders", "message"),
    [
        ({0: {"cat"}, 1: {"a", "b"}}, [], "no name for the class 1"),
        ({0: {"cat"}, 1: {"1"}}, [], "no name for the class 1"),  # the label, which stands in for a caption
        ({0: {"cat"}, 1: set()}, [], "no name for the class 1"),
        ({0: {"cat"}}, [], "1 classes with a name"),
        ({0: {"cat"}, 1: {"cat"}}, [], "both 'cat'"),
        ({}, ["a_b", "a b"], "both 'a b'"),
    ],
)
def test_classes_without_names_are_refused(shared: dict, folders: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        names_to_recognise("x.parquet", None, folders, shared)


def test_a_file_of_names_must_fit(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n")
    with pytest.raises(UserError, match="no name for the class 2"):
        names_to_recognise("x.tar", str(file), [], {0: set(), 2: set()})
    with pytest.raises(UserError, match=r"3 folders of classes.*2 lines"):
        names_to_recognise("x", str(file), ["a", "b", "c"], {})
    with pytest.raises(UserError, match=r"evaluation\.zero_shot_names=.* cannot be read"):
        names_to_recognise("x", str(tmp_path / "nowhere"), [], {})


def test_the_first_rows_show_only_that_there_are_no_names() -> None:
    assert names_to_recognise("x.tar", None, [], {0: {"cat", "a photo"}}, is_whole=False).keys() == {0}
    with pytest.raises(UserError, match="no name for the class 0"):
        names_to_recognise("x.tar", None, [], {0: set()}, is_whole=False)


# ---- a comparison


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_comparison_has_all_of_it(tmp_path: Path) -> None:
    from mmdd_ray.evaluation.compare import compare
    from mmdd_ray.evaluation.held_out import about_held_out, common_images
    from mmdd_ray.evaluation.sets import held_out_sets
    from mmdd_ray.features.rejects import RejectList
    from mmdd_ray.methods.evaluate.presets import local
    from mmdd_ray.storage.store import Store

    images = tmp_path / "classes"
    for label, colour in enumerate(("red", "blue", "lime")):
        (images / f"{colour}_thing").mkdir(parents=True)
        for i in range(12):
            pixels = np.full((PX, PX, 3), Image.new("RGB", (1, 1), colour).getpixel((0, 0)), np.uint8)
            pixels[i, label] = 9
            Image.fromarray(pixels).save(images / f"{colour}_thing" / f"{i}.png")
    (images / "red_thing" / "broken.png").write_bytes(b"no image")
    crepe = tmp_path / "crepe"
    crepe.mkdir()
    Image.new("RGB", (8, 8)).save(crepe / "1.png")
    said = {"filename": "1.png", "caption": "red", "negative_caption": "blue"}
    (crepe / "swap_att.json").write_text(json.dumps({"0": said, "1": said, "2": said, "3": said, "4": {}}))
    evaluation = Evaluation(
        val="shapes:6?seed=2",
        test="shapes:6?seed=3",
        seeds=2,
        zero_shot=str(images),
        linear_probe=True,
        compositional=str(crepe),
    )
    settings = replace(local(), students=SETTINGS, evaluation=evaluation)
    store = Store(str(tmp_path / "run"))
    listed = RejectList(store.child("evaluate"), store)
    held_out, read = held_out_sets(settings, listed)
    assert (read["zero_shot"].images, set(read)) == (36, {"val", "test", "zero_shot", "compositional"})
    assert about_held_out(common_images(read, np.empty(0, np.int64))) == [  # all of the images are there
        "val: 6 images, captions: 6",
        "test: 6 images, captions: 6",
        "zero_shot: 36 images, captions: 36",
        "compositional: 1 images",
    ]
    assert {(shard.split("/")[0], reason) for shard, _, reason in listed.rows} == {
        ("zero_shot", "not an image"),
        ("compositional", "missing filename"),
    }
    test = held_out["test"]
    assert isinstance(test, ProbedPairs)
    given = {"classes": test.probes.classes.images.images[:5]}
    common = common_images(read, np.empty(0, np.int64), given)
    assert {part: about["common"].get("set classes") for part, about in common.items()} == {
        "val": 0,
        "test": 0,
        "zero_shot": 5,
        "compositional": None,
    }
    assert test.probes.classes is not None
    assert test.probes.classes.names == ("blue thing", "lime thing", "red thing")
    assert not isinstance(held_out["val"], ProbedPairs)
    stage = StageDir("evaluate", store.child("evaluate"), "evaluate")
    report = compare({"few": pair_set(0, 4)}, held_out["val"], test, SETTINGS, evaluation, 7, stage)
    metrics = report["sets"]["few"]["metrics"]
    extra = ["zero-shot/top-1", "zero-shot/top-5", "linear-probe", "compositional/swap_att", "compositional"]
    assert list(metrics) == list(report["chance"]) == [*chance(6, 1), *extra]
    assert metrics["zero-shot/top-5"]["runs"] == [100.0, 100.0]  # of three classes
    assert metrics["linear-probe"]["mean"] == 100.0  # three colours
    assert report["chance"]["zero-shot/top-1"] == pytest.approx(100 / 3)
    (crepe / "swap_att.json").write_text(json.dumps({"0": said, "1": {}}))
    with pytest.raises(UserError, match="max_reject_ratio"):
        held_out_sets(settings, listed)


def test_contrast_sets_need_something_to_tell_apart() -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="must be as many"):
        ContrastSet(images, np.array([0]), ("a",), ("b",), ())
    one = list_contrasts("shapes:1?seed=1", None, 1).images[0]

    def lost() -> bytes:
        raise FileNotFoundError

    two = [Contrast("kind", "a", "b"), Contrast("kind", "a", "c")]
    gone = replace(one, read=lost, contrasts=two)
    with pytest.raises(UserError, match="2 missing image"):
        ContrastSet.read([gone], image_px=8, max_pixels=10**6, max_bytes=10**6)
