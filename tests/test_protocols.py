"""Protocols: their schedules against tables written by hand, and what students under them are made of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from mmdd_ray.config import Classifiers, Evaluation, LabelledEvaluation, StudentForm, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import Row
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import caption_batches, redrawn_batches
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import is_above_chance
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.probes.score import probe_student
from mmdd_ray.evaluation.probes.sets import ClassSet, Probes
from mmdd_ray.evaluation.tasks.augment import cropped, draw_crops, jittered
from mmdd_ray.evaluation.tasks.classifiers import _optimizer as classifier_optimizer
from mmdd_ray.evaluation.tasks.classifiers import augmented, soft_loss, train_classifier
from mmdd_ray.evaluation.tasks.students import _optimizer as student_optimizer
from mmdd_ray.evaluation.tasks.students import (
    evaluate_student,
    frozen_text_features,
    train_student,
)
from mmdd_ray.evaluation.tasks.teacher import load_teacher, train_teacher
from mmdd_ray.evaluation.tasks.texts import texts_of
from mmdd_ray.evaluation.tasks.trainer import descend
from mmdd_ray.evaluation.teachers import (
    _no_use,
    _train,
    about_teacher,
    has_teacher,
    is_current_teacher,
    name_teacher,
)
from mmdd_ray.methods.evaluate_labelled.presets import local
from mmdd_ray.methods.vlcp.presets import imagenet1k as vlcp_imagenet1k
from mmdd_ray.models.classifiers import build_classifier
from mmdd_ray.models.open_clip_export import export_open_clip
from mmdd_ray.models.students import load_student, load_text_encoder, plain_caption
from mmdd_ray.protocols import (
    PUBLISHED_FOR_LABELS,
    PUBLISHED_FOR_PAIRS,
    Training,
    label_protocol,
    pair_protocol,
)
from mmdd_ray.protocols.hard_label import epochs_of
from mmdd_ray.protocols.soft_label import batch_of
from mmdd_ray.protocols.trainings import other_students, trainings
from mmdd_ray.storage.store import Store

PX = 32
STUDENTS = Students(image_px=PX, embed_dim=32, steps=4, batch_pairs=8)
CLASSIFIERS = Classifiers(width=8, image_px=PX, steps=3, batch_images=4, teacher_steps=60)
LORS, COVMATCH = PUBLISHED_FOR_PAIRS["lors-frozen-text"], PUBLISHED_FOR_PAIRS["covmatch-both-encoders"]
HARD, SOFT = PUBLISHED_FOR_LABELS["hard-label"], PUBLISHED_FOR_LABELS["soft-label"]


def rates(training: Training, rate: float, epochs: list[int]) -> list[float]:
    """The rate in the first step of these epochs, counted from 1."""
    return [rate * training.rate_factor((epoch - 1) * training.epoch_steps) for epoch in epochs]


# ---- schedules


def test_lors_trains_101_epochs_a_tenth_after_51_and_looks_eleven_times() -> None:
    training = LORS.training(500)  # four batches: 128, 128, 128, 116
    assert (training.batch, training.steps, training.epoch_steps) == (128, 404, 4)
    (rate,) = LORS.learning_rates
    assert rates(training, rate, [1, 51, 52, 101]) == pytest.approx([0.1, 0.1, 0.01, 0.01])
    looks = [step // 4 for step in (*training.looks_at, training.steps)]
    assert looks == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101]
    assert (LORS.momentum, LORS.weight_decay, LORS.students) == (0.9, 5e-4, 5)


def test_covmatch_trains_100_epochs_a_tenth_after_50_and_encoders_at_a_tenth() -> None:
    training = COVMATCH.training(100)
    assert (training.batch, training.steps) == (100, 100)
    assert rates(training, 0.1, [1, 50, 51, 100]) == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert 0.1 * COVMATCH.encoder_share == pytest.approx(0.01)
    assert (COVMATCH.trained, LORS.trained) == ("both-encoders", "frozen-text")


@pytest.mark.parametrize(
    ("per_class", "classes", "epochs"),
    [
        (1, 10, 3000), (10, 10, 2000), (11, 10, 1500), (50, 10, 1500), (100, 10, 1000), (500, 10, 500),
        (1000, 10, 300), (10, 100, 1300), (50, 100, 1000), (10, 1000, 2000),
    ],
)  # fmt: skip
def test_epochs_of_hard_labels_by_images_per_class(per_class: int, classes: int, epochs: int) -> None:
    assert epochs_of(per_class, classes) == epochs


def test_hard_labels_fall_to_a_fifth_twice() -> None:
    training = HARD.training(100, 10)  # two batches: 64 and 36
    assert (training.batch, training.epoch_steps, training.steps) == (64, 2, 4000)
    expected = [0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004]
    assert rates(training, 0.01, [1, 1333, 1334, 1666, 1667, 2000]) == pytest.approx(expected)
    assert len(training.looks_at) == 99
    assert (HARD.rate_of(0.01, 10), HARD.decay_of(5e-4, 10)) == (0.01, 5e-4)
    assert (HARD.rate_of(0.01, 1000), HARD.decay_of(5e-4, 1000)) == (0.1, 1e-4)
    assert HARD.training(10_000, 1000).batch == 128


def test_soft_labels_fall_along_half_of_a_cosine() -> None:
    training = SOFT.training(100, 10)
    assert (training.batch, training.steps) == (50, 600)
    cosine = 0.5 * (1 + np.cos(np.pi * np.array([0, 100, 150, 299]) / 600))
    assert rates(training, 1.0, [1, 101, 151, 300]) == pytest.approx(cosine.tolist())
    assert training.rate_factor(599) == training.rate_factor(598)  # one rate an epoch
    assert [step // 2 for step in training.looks_at] == [250, 260, 270, 280, 290]
    sizes = ((1, 10), (10, 10), (50, 10), (10, 100), (10, 200))
    assert [batch_of(per_class, classes) for per_class, classes in sizes] == [10, 50, 100, 100, 50]


def test_an_equal_budget_has_the_steps_of_the_settings_whatever_the_set() -> None:
    students = replace(STUDENTS, steps=9, looks=2)
    for images in (4, 400):
        training = pair_protocol("equal-budget", students).training(images)
        assert (training.steps, training.batch, training.looks_at) == (9, min(8, images), (3, 6))
        assert [training.rate_factor(step) for step in range(9)] == pytest.approx([1] * 5 + [0.1] * 4)
    labels = label_protocol("equal-budget", replace(CLASSIFIERS, steps=12)).training(400, 10)
    expected = [1] * 8 + [0.2] * 2 + [0.04] * 2
    assert [labels.rate_factor(step) for step in range(12)] == pytest.approx(expected)


def test_names_of_settings_are_those_of_the_protocols() -> None:
    assert Evaluation(val="a", test="b").protocols == ("equal-budget",)
    for evaluation, judged, published in (
        (Evaluation(val="a", test="b"), STUDENTS, PUBLISHED_FOR_PAIRS),
        (LabelledEvaluation(test="b"), CLASSIFIERS, PUBLISHED_FOR_LABELS),
    ):
        names: Any = ("equal-budget", *published)
        found = [protocol.name for protocol, _ in trainings(judged, replace(evaluation, protocols=names))]
        assert tuple(found) == names


def test_smaller_images_than_published_have_a_name_of_their_own() -> None:
    assert (LORS.shown_name(224), LORS.shown_name(64)) == ("lors-frozen-text", "lors-frozen-text-small")
    assert pair_protocol("equal-budget", STUDENTS).shown_name(64) == "equal-budget"


# ---- students of pairs


@pytest.fixture(scope="module")
def pairs() -> PairSet:
    drawn = shapes.pairs(0, 12, seed=5, image_px=PX)
    rows = [
        Row("s", i, one["key"], one["image"], one["captions"][:2], None, None) for i, one in enumerate(drawn)
    ]
    return PairSet.from_rows(rows, image_px=PX, max_pixels=10**6)[0]


def test_an_epoch_of_captions_has_each_pair_once_and_the_smaller_last_batch(pairs: PairSet) -> None:
    drawn = list(caption_batches(pairs, 10, 6, np.random.default_rng(0)))
    assert [len(caption_B) for _, caption_B in drawn] == [10, 10, 4] * 2
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(np.concatenate([caption_B for _, caption_B in epoch])) == list(range(24))
    assert all((pairs.owner_P[caption_B] == image_B).all() for image_B, caption_B in drawn)


def test_batches_of_lors_own_sets_are_drawn_anew_from_all_pairs_and_each_side_has_its_rate(
    pairs: PairSet,
) -> None:
    n, encoder = pairs.n_images, load_text_encoder(STUDENTS, "cpu", LORS.form)
    learnt = LearntPairs(
        pixels=np.random.default_rng(0).normal(size=(n, 3, PX, PX)).astype(np.float32),
        ids=np.ones((n, 1), np.int64),
        mask=np.ones((n, 1), np.int64),
        offsets=np.zeros((n, 1, 4), np.float32),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        vocabulary="",
        captions=[[""]] * n,
        nearest=[""] * n,
        vectors=np.random.default_rng(1).normal(size=(n, encoder.width)).astype(np.float32),
        encoder=encoder.weights_digest(),
        pooling="cls",
        similarity=np.eye(n, dtype=np.float32),
        rates=(1e-30, 0.1),
    )

    def told(pairs: LearntPairs, protocol: Any = LORS) -> str:
        return texts_of(pairs, encoder, protocol).note

    assert told(learnt) == ""
    assert "of another text encoder than its students'; students got the" in told(
        replace(learnt, encoder="other")
    )
    assert "are for frozen text encoders" in told(learnt, COVMATCH)
    assert "are made otherwise than this protocol reads captions" in told(replace(learnt, pooling=""))
    words = replace(learnt, vectors=None, similarity=None)
    assert "are of another vocabulary than its students'" in told(words)
    assert told(replace(words, vocabulary=encoder.vocabulary_digest()), COVMATCH) == ""

    drawn = [row_B for row_B, _ in redrawn_batches(learnt, 5, 40, np.random.default_rng(0))]
    assert all(len(set(row_B)) == 5 for row_B in drawn)
    assert len({row for row_B in drawn[:3] for row in row_B}) < n  # an epoch has not each pair
    assert np.bincount(np.concatenate(drawn), minlength=n).min() > 5

    short = replace(LORS, training=lambda pairs: Training.in_epochs(pairs, batch=5, epochs=1))
    arguments: dict[str, Any] = {"learning_rate": 0.1, "seed": 1, "device": "cpu", "protocol": short}
    student, losses, seen, loss, rates, notes = train_student(learnt, STUDENTS, **arguments)
    assert (seen, loss, rates, notes) == (3 * 5, "weighted BCE", (1e-30, 0.1), ())
    alone = train_student(replace(learnt, similarity=None), STUDENTS, **arguments)
    assert (alone.images_seen, alone.loss, alone.learnt_rates) == (n, "InfoNCE", None)
    assert len(losses) == 3
    fresh = load_student(STUDENTS, 1, "cpu", LORS.form)
    for own, began in zip(student.image.parameters(), fresh.image.parameters(), strict=True):
        torch.testing.assert_close(own, began, rtol=0, atol=1e-12)
    assert (student.text_head.project.weight != fresh.text_head.project.weight).any()


@pytest.mark.parametrize(
    ("caption", "plain"),
    [
        ('A "red" dog; runs (fast)!', "a red dog runs fast"),
        ("Two  birds: one, two~three.", "two birds one, two three"),
        ("...", "..."),
        ("a b c d e f g", "a b c d e"),
    ],
)
def test_captions_lose_punctuation_capitals_and_what_is_too_long(caption: str, plain: str) -> None:
    assert plain_caption(caption, 5) == plain


def test_lors_students_are_an_image_encoder_and_a_projection_of_the_first_token(pairs: PairSet) -> None:
    encoder = load_text_encoder(STUDENTS, "cpu", LORS.form)
    caption = pairs.captions[0][0]
    plain = encoder.tokenizer([plain_caption(caption, 30)], return_tensors="pt")
    with torch.no_grad():
        first_BT = encoder.backbone(**plain).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode_captions([caption]), first_BT, atol=1e-5, rtol=1e-5)

    student = load_student(STUDENTS, 3, "cpu", LORS.form).eval()
    image_BHWC = torch.tensor(pairs.images[:2])
    scaled = (image_BHWC.float() / 255 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    feature_BV = student.image(image_BHWC)
    torch.testing.assert_close(
        feature_BV, student.image.backbone(scaled.permute(0, 3, 1, 2)), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(student.embed_image(feature_BV), F.normalize(feature_BV, dim=1))

    head = student.text_head
    hidden_BD = F.linear(first_BT, head.project.weight, head.project.bias)
    refined_BD = F.linear(F.gelu(hidden_BD), head.refine.weight, head.refine.bias)
    expected_BD = F.layer_norm(hidden_BD + refined_BD, hidden_BD.shape[1:])
    torch.testing.assert_close(student.embed_text(first_BT), F.normalize(expected_BD, dim=1))
    again, other = (
        load_student(STUDENTS, seed, "cpu", LORS.form).text_head.project.weight for seed in (3, 4)
    )
    assert torch.equal(head.project.weight, again)
    assert not torch.equal(again, other)


def test_the_text_digest_tells_how_tokens_are_pooled() -> None:
    mean, first = (
        load_text_encoder(STUDENTS, "cpu", form).weights_digest() for form in (StudentForm(), LORS.form)
    )
    assert mean != first


@pytest.mark.parametrize("protocol", [LORS, COVMATCH])
def test_students_are_asked_beyond_retrieval_and_not_exported(
    protocol: Any, pairs: PairSet, tmp_path: Any
) -> None:
    """Under every protocol, whatever heads it has."""
    student = load_student(STUDENTS, 0, "cpu", protocol.form).eval()
    labels = LabelledSet(pairs.images, np.arange(12) % 3, (0, 1, 2))
    probes = Probes(classes=ClassSet(labels, ("dog", "cat", "bird"), ("a photo of a {}.",)))
    assert set(probe_student(student, probes)) == {"zero-shot/top-1", "zero-shot/top-5"}
    with pytest.raises(UserError, match="that a published protocol gives its students"):
        export_open_clip(student, tmp_path / "out")


@pytest.mark.parametrize("protocol", [LORS, COVMATCH])
def test_students_are_trained_and_looked_at_as_published(protocol: Any, pairs: PairSet) -> None:
    looks: list[tuple[int, bool, float]] = []

    def look(student: Any, steps: int) -> None:
        looks.append((steps, student.training, evaluate_student(student, pairs)["mean_recall"]))

    short = replace(
        protocol, training=lambda pairs: Training.in_epochs(pairs, batch=10, epochs=4, looks_after=(1, 3))
    )
    text_PT = None
    if protocol.trained == "frozen-text":
        text_PT = frozen_text_features(pairs, STUDENTS, "cpu", short)
    student, losses, *_ = train_student(
        pairs, STUDENTS, learning_rate=0.01, seed=1, device="cpu", text_PT=text_PT, protocol=short, look=look
    )
    assert len(losses) == 4 * 3
    assert [(steps, training) for steps, training, _ in looks] == [(3, False), (9, False)]
    assert not student.image_mean.any()  # nothing is centred
    _, same, *_ = train_student(
        pairs, STUDENTS, learning_rate=0.01, seed=1, device="cpu", text_PT=text_PT, protocol=short
    )
    np.testing.assert_array_equal(losses, same)  # a look changes nothing


def rates_in(optimizer: torch.optim.Optimizer, training: Training) -> list[list[float]]:
    """The rate of each group of weights at each step of a training, which is taken on a loss that moves nothing."""
    weight, found = optimizer.param_groups[0]["params"][0], []

    def losses() -> Iterator[torch.Tensor]:
        for _ in range(training.steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            yield 0 * weight.sum()

    descend(losses(), optimizer, training)
    return found


def test_the_optimiser_of_published_students_has_the_published_rates_at_each_step() -> None:
    student = load_student(STUDENTS, 0, "cpu")
    # heads of images and texts, the image encoder and, where it is trained, the text encoder
    tables = {
        "lors-frozen-text": [[0.1, 0.1, 0.1]] * 51 * 4 + [[0.01, 0.01, 0.01]] * 50 * 4,
        "covmatch-both-encoders": [[0.1, 0.1, 0.01, 0.01]] * 50 * 4 + [[0.01, 0.01, 0.001, 0.001]] * 50 * 4,
    }
    for name, table in tables.items():
        protocol = PUBLISHED_FOR_PAIRS[name]
        (rate,) = protocol.learning_rates
        optimizer = student_optimizer(student, protocol, rate, rate)
        assert isinstance(optimizer, torch.optim.SGD)
        assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {
            (0.9, 5e-4)
        }
        np.testing.assert_allclose(rates_in(optimizer, protocol.training(500)), table)


def test_the_optimiser_of_published_classifiers_has_the_published_rates_at_each_step() -> None:
    epochs = {
        "hard-label": [0.01] * 1333 + [0.002] * 333 + [0.0004] * 334,  # a fifth after 2/3 and 5/6 of 2,000
        "soft-label": [1e-3 * (1 + np.cos(np.pi * epoch / 600)) / 2 for epoch in range(300)],
    }
    for name, table in epochs.items():
        protocol = PUBLISHED_FOR_LABELS[name]
        (rate,) = protocol.learning_rates
        network = build_classifier(CLASSIFIERS, 10, protocol.norm)
        optimizer = classifier_optimizer(
            network, protocol, protocol.rate_of(rate, 10), protocol.decay_of(protocol.weight_decay, 10)
        )
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        if name == "hard-label":
            assert isinstance(optimizer, torch.optim.SGD)
            assert (decays, optimizer.param_groups[0]["momentum"]) == ({5e-4}, 0.9)
        else:
            assert isinstance(optimizer, torch.optim.AdamW)
            assert decays == {0.01, 0.0}
        found = rates_in(optimizer, protocol.training(100, 10))
        assert {len(set(groups)) for groups in found} == {1}  # all groups have one rate
        np.testing.assert_allclose([groups[0] for groups in found], np.repeat(table, 2))


# ---- classifiers


@pytest.fixture(scope="module")
def images() -> LabelledSet:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    levels = rng.integers(0, 90, (24, PX, PX, 3)) + 80 * labels[:, None, None, None]
    return LabelledSet(levels.astype(np.uint8), labels, (0, 1, 2))


def test_the_loss_of_soft_labels_is_the_divergence_of_softened_answers() -> None:
    rng = np.random.default_rng(1)
    own_BC, taught_BC = rng.normal(0, 3, (2, 5, 4))

    def softmax(logits: np.ndarray) -> np.ndarray:
        raised = np.exp(logits / 20)
        return raised / raised.sum(axis=1, keepdims=True)

    p_BC, q_BC = softmax(taught_BC), softmax(own_BC)
    expected = (p_BC * np.log(p_BC / q_BC)).sum(axis=1).mean()
    found = soft_loss(torch.tensor(own_BC), torch.tensor(taught_BC), 20.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert soft_loss(torch.tensor(taught_BC), torch.tensor(taught_BC), 20.0).item() == pytest.approx(
        0, abs=1e-12
    )


def test_crops_are_half_to_all_of_the_area_and_cut_what_they_say() -> None:
    boxes_N4 = draw_crops(500, np.random.default_rng(0))
    left, top, width, height = boxes_N4.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1 + 1e-9).all()
    assert (top + height <= 1 + 1e-9).all()
    area = width * height
    assert area.min() >= 0.5 - 1e-9
    image = torch.zeros(3, 100, 100)
    theirs = [RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(500)]
    assert area.mean() == pytest.approx(np.mean([h * w / 10_000 for _, _, h, w in theirs]), abs=0.03)
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    whole, right = (cropped(ramp, np.array([box])) for box in ([0, 0, 1, 1], [0.5, 0, 0.5, 1]))
    torch.testing.assert_close(whole, ramp, atol=1e-4, rtol=0)
    # pixel i of 32 lies at (i + 0.5) / 64 of the right half
    expected = (16 + (torch.arange(32) + 0.5) / 2 - 0.5).clip(0, 31)
    torch.testing.assert_close(right[0, 0, 0], expected, atol=1e-3, rtol=0)


def test_jitter_and_lighting_leave_greys_grey_but_for_lighting() -> None:
    grey = torch.full((200, 3, 4, 4), 0.5)
    found = jittered(grey, np.random.default_rng(0))
    assert found.std(dim=(2, 3)).max() < 1e-6  # no pattern where there was none
    brightness = found.mean(dim=(1, 2, 3))
    assert 0.25 < brightness.min() < 0.4  # lerp to black by up to 0.4, and away from it
    assert 0.6 < brightness.max() < 0.75
    tint = found.mean(dim=(2, 3)) - brightness[:, None]
    assert 3e-4 < tint.abs().mean() < 0.01


def test_images_of_published_protocols_have_the_statistics_of_imagenet(images: LabelledSet) -> None:
    found = augmented(images.images[:1], SOFT, np.random.default_rng(0), "cpu")
    level = images.images[:1].mean() / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert found.mean(dim=(0, 2, 3)).numpy() == pytest.approx((level - mean) / std, abs=0.1)


def test_soft_labels_take_a_teacher_and_hard_ones_none(images: LabelledSet, tmp_path: Any) -> None:
    larger = replace(CLASSIFIERS, batch_images=12)
    seen: list[int] = []
    weights, top_1 = train_teacher(images, larger, seed=0, device="cpu", on_steps=seen.append)
    assert seen == list(range(1, larger.teacher_steps))
    assert top_1 > 90  # the classes differ in their brightness
    from safetensors.torch import save_file

    file = tmp_path / "teacher.safetensors"
    save_file(weights, file)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "t.pth"
    )
    teacher, again = (load_teacher(str(path), CLASSIFIERS, 3, "cpu") for path in (file, tmp_path / "t.pth"))
    sample = torch.rand(2, 3, PX, PX)
    torch.testing.assert_close(teacher(sample), again(sample))
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in teacher.modules())

    soft, hard = (
        replace(one, training=lambda images, classes: Training.in_epochs(images, batch=8, epochs=2))
        for one in (SOFT, HARD)
    )
    arguments: Any = {"learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    _, taught = train_classifier(images, CLASSIFIERS, protocol=soft, teacher=teacher, **arguments)
    network, told = train_classifier(images, CLASSIFIERS, protocol=hard, **arguments)
    assert len(taught) == len(told) == 6
    assert np.isfinite([taught, told]).all()
    assert any(isinstance(layer, torch.nn.GroupNorm) for layer in network.modules())


def test_a_teacher_says_how_far_it_is_while_it_is_trained(images: LabelledSet) -> None:
    *told, last = _train(images, CLASSIFIERS, 0, "cpu")
    assert told == [{"steps": done} for done in range(1, 60)]
    assert last["steps"] == 60
    assert safetensors.torch.load(last["weights"])
    with pytest.raises(UserError, match=f"the images have {PX} px"):
        list(_train(images, replace(CLASSIFIERS, image_px=2 * PX), 0, "cpu"))


def test_the_teacher_is_named_beside_what_was_chosen() -> None:
    both = LabelledEvaluation(test="x", protocols=("soft-label", "hard-label"))
    settings = replace(local(), classifiers=CLASSIFIERS, evaluation=both)
    names = ("hard-label-small", "soft-label-small")
    first, second = ({"protocol": {"name": name, "chosen": "as published"}} for name in names)
    name_teacher(first | {"others": [second]}, "teacher: a file", settings)
    assert [panel["protocol"]["chosen"] for panel in (first, second)] == [
        "as published",
        "as published; teacher: a file",
    ]

    about = {"images": 4500, "training_top_1": 83.24, "test_top_1": 51.0}
    assert about_teacher(about, CLASSIFIERS) == (
        "teacher: trained by the run in 60 steps on 4,500 real images; names 83.2 % of them and 51.0 % of the test "
        "images rightly"
    )
    given = replace(CLASSIFIERS, teacher="s3://key:secret@bucket/t.pth")
    assert about_teacher(about, given) == (
        "teacher: s3://[redacted]@bucket/t.pth, which names 51.0 % of the test images rightly"
    )


@pytest.mark.parametrize(
    ("right", "of", "classes", "known"),
    [
        (10, 100, 10, False),  # chance
        (15, 100, 10, False),  # 7 % of the guesses are as good
        (16, 100, 10, True),  # 4 %
        (0, 100, 10, False),
        (12, 24, 2, False),
        (500, 1000, 2, False),
        (4, 4, 2, True),  # more cannot be asked of four images
        (0, 4, 2, True),  # nor can these tell anything
        (3, 1000, 1000, False),
        (4, 1000, 1000, True),
    ],
)
def test_a_teacher_must_know_more_than_chance(right: int, of: int, classes: int, known: bool) -> None:
    assert is_above_chance(100 * right / of, of, classes) is known
    if of > 4:
        luck = stats.binomtest(right, of, 1 / classes, alternative="greater").pvalue
        assert known is bool(luck < 0.05)


def test_a_teacher_of_no_use_is_refused_in_words_that_help() -> None:
    test = LabelledSet(np.zeros((1200, 1, 1, 3), np.uint8), np.arange(1200) % 10, tuple(range(10)))
    told = "10.2 % of the 1,200 test images rightly, and chance 10.0 %"
    given = _no_use(replace(CLASSIFIERS, teacher="t.pth"), 10.17, test)
    assert given.startswith(
        f"classifiers.teacher=t.pth names {told}: probably its classes are in another order"
    )
    trained = _no_use(CLASSIFIERS, 10.17, test)
    assert trained == (
        f"the teacher that was trained for classifiers.teacher_steps=60 names {told}; raise the steps, or name a "
        "teacher as classifiers.teacher"
    )


def test_another_teacher_is_tested_again_and_its_students_are_trained(tmp_path: Path) -> None:
    (tmp_path / "t.pth").write_bytes(b"one")
    soft = LabelledEvaluation(test="x", protocols=("soft-label",))
    trained = replace(local(), classifiers=CLASSIFIERS, evaluation=soft)
    given = replace(trained, classifiers=replace(CLASSIFIERS, teacher=str(tmp_path / "t.pth")))
    longer = replace(trained, classifiers=replace(CLASSIFIERS, teacher_steps=61))
    folder, compared = (Store(str(tmp_path / name)) for name in ("teacher", "evaluate"))
    assert is_current_teacher(folder, given)  # nothing is done
    assert has_teacher(compared, given)
    for store, file in ((folder, "teacher.json"), (compared, "evaluation.json")):
        store.write_json("manifest.json", {})
        store.write_json(file, {})
    assert not has_teacher(compared, trained)
    folder.remove("teacher.json")
    assert not is_current_teacher(folder, trained)  # of a version that did not test
    checksum = Store(str(tmp_path)).checksum("t.pth")
    for origin, same in ((checksum, given), ("60 steps", trained), ("61 steps", longer)):
        folder.write_json("teacher.json", {"made_from": origin})
        compared.write_json("evaluation.json", {"teacher": origin})
        for settings in (given, trained, longer):
            assert (
                is_current_teacher(folder, settings) is has_teacher(compared, settings) is (settings is same)
            )
    hard = replace(trained, evaluation=replace(soft, protocols=("hard-label",)))
    assert has_teacher(compared, hard)  # which needs none
    folder.write_json("teacher.json", {"made_from": checksum})
    (tmp_path / "t.pth").write_bytes(b"two")
    assert not is_current_teacher(folder, given)


def test_torchvisions_resnet_18_is_a_teacher_of_imagenet(tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("resnet18", pretrained=False).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    settings = vlcp_imagenet1k().classifiers
    assert settings.teacher is not None
    assert settings.teacher.endswith("/resnet18.tv_in1k/model.safetensors")
    teacher = load_teacher(str(tmp_path / "model.safetensors"), settings, 1000, "cpu")
    theirs = timm.create_model("resnet18", pretrained=False)
    theirs.load_state_dict(weights)
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(teacher(image), theirs.eval()(image))


def test_our_protocol_says_what_its_settings_do() -> None:
    plain = label_protocol(
        "equal-budget", replace(CLASSIFIERS, cutmix=0.0, flip=False, learning_rates=(0.1,))
    )
    assert plain.summary.endswith("one learning rate for all sets; images are shifted")
    mixed = label_protocol("equal-budget", replace(CLASSIFIERS, cutmix=0.5, learning_rates=(0.1, 0.2)))
    assert mixed.summary.endswith(
        "one grid on validation data; images are shifted and mirrored, 50 % of the batches mixed by CutMix"
    )
    pairs = pair_protocol("equal-budget", Students(learning_rates=(0.1,)))
    assert pairs.summary.endswith("one learning rate for all sets; images are shifted")


def test_weights_of_another_network_are_no_teacher(tmp_path: Any) -> None:
    other = build_classifier(replace(CLASSIFIERS, width=16), 3, "batch")
    torch.save(other.state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(
            UserError, match=r"teacher does not hold the weights of convnet-3 with batch norm.*None to"
        ):
            load_teacher(str(tmp_path / name), CLASSIFIERS, 3, "cpu")
    with pytest.raises(UserError, match="size mismatch"):
        load_teacher(str(tmp_path / "other.pth"), CLASSIFIERS, 3, "cpu")
    with pytest.raises(FileNotFoundError):
        load_teacher(str(tmp_path / "none.pth"), CLASSIFIERS, 3, "cpu")


# ---- further students


def test_further_students_are_named_by_their_models() -> None:
    evaluation = Evaluation(val="a", test="b", students=("nf_resnet50+bert,vit_tiny+bert", "resnet18+other"))
    found = other_students(STUDENTS, evaluation)
    names = [(one.image_model, one.text_model) for one in found]
    assert names == [("nf_resnet50", "bert"), ("vit_tiny", "bert"), ("resnet18", "other")]
    assert {one.steps for one in found} == {STUDENTS.steps}
    labelled = LabelledEvaluation(test="b", students=("convnet-4",))
    assert [one.model for one in other_students(CLASSIFIERS, labelled)] == ["convnet-4"]


@pytest.mark.parametrize(
    ("judged", "students", "message"),
    [
        (STUDENTS, ("resnet18",), "must name an image and a text encoder, as in tiny-nf\\+tiny-bert"),
        (STUDENTS, ("a+b", "a+b"), "names the same twice"),
        (STUDENTS, ("tiny-nf+tiny-bert",), "which the students of the run are already"),
        (CLASSIFIERS, ("vgg",), "evaluation.students=vgg is no classifier; choose from resnet-ap-10"),
        (CLASSIFIERS, ("convnet-6",), "halves the side of images 6 times"),
    ],
)
def test_students_that_cannot_be_are_refused(judged: Any, students: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        other_students(judged, Evaluation(val="a", test="b", students=students))
