"""Classifiers: the networks of the protocol, their training, and the labelled sets that they are trained on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from mmdd_ray.config import Classifiers
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import Row
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import accuracy_chance
from mmdd_ray.evaluation.tasks.classifiers import cutmix, evaluate_classifier, train_classifier
from mmdd_ray.models.classifiers import build_classifier

SMALL = Classifiers(width=16, steps=30, batch_images=16, image_px=32, flip=False)


def coloured(n: int, seed: int, *, hues: int = 3) -> LabelledSet:
    """Noise around one colour of each class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % hues
    colour = np.eye(3)[labels][:, None, None] * 160
    images = np.clip(colour + rng.normal(40, 20, size=(n, 32, 32, 3)), 0, 255).astype(np.uint8)
    return LabelledSet(images, labels, tuple(range(10, 10 + hues)))


@pytest.mark.parametrize("model", ["resnet-ap-10", "resnet-18", "convnet-3", "convnet-5"])
@pytest.mark.parametrize("image_px", [32, 128])
def test_every_network_gives_logits_of_images_of_its_size(model, image_px):
    network = build_classifier(replace(SMALL, model=model, image_px=image_px), 7)
    assert network(torch.zeros(2, 3, image_px, image_px)).shape == (2, 7)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_resnet_ap_pools_where_resnet_has_strides():
    pooled = build_classifier(replace(SMALL, model="resnet-ap-10", image_px=224), 10)
    convolutions = [module for module in pooled.modules() if isinstance(module, nn.Conv2d)]
    assert {convolution.stride for convolution in convolutions} == {(1, 1)}
    assert len([c for c in convolutions if c.kernel_size != (1, 1)]) == 9  # and the last layer: ten
    sides: list[int] = []
    for stage in (pooled.layer1, pooled.layer2, pooled.layer3, pooled.layer4):
        stage.register_forward_hook(lambda *found: sides.append(found[2].shape[-1]))
    pooled(torch.zeros(1, 3, 224, 224))
    assert sides == [56, 28, 14, 7]


@pytest.mark.parametrize(("model", "least"), [("resnet-18", 9), ("resnet-ap-10", 16)])
def test_images_that_a_resnet_would_end_as_single_pixels_are_refused(model, least):
    network = build_classifier(replace(SMALL, model=model, image_px=least), 7)
    assert network(torch.rand(2, 3, least, least)).std() > 0
    with pytest.raises(
        UserError, match=rf"needs images of {least} px, but classifiers\.image_px={least - 1}"
    ):
        build_classifier(replace(SMALL, model=model, image_px=least - 1), 7)


def layers_of(depth: int) -> list[nn.Module]:
    """A convolution of ConvNet, its norm, activation and pooling."""
    return [*build_classifier(replace(SMALL, model=f"convnet-{depth}"), 7)][:4]


def test_the_norm_is_instance_norm_with_scale_and_shift():
    norm = layers_of(3)[1]
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    feature = torch.randn(4, 16, 8, 8)
    expected = torch.nn.functional.instance_norm(feature, weight=norm.weight, bias=norm.bias)
    for mode in (norm.train(), norm.eval()):
        torch.testing.assert_close(mode(feature), expected)


@pytest.mark.parametrize("sides", [(8, 6), (7, 8), (9, 9)])
def test_pooling_is_the_mean_of_two_by_two_pixels(sides):
    feature = torch.randn(2, 3, *sides).requires_grad_()
    probe = torch.randn(2, 3, sides[0] // 2, sides[1] // 2)
    own, expected = (
        (found := pool(feature), torch.autograd.grad((found * probe).sum(), feature)[0])
        for pool in (layers_of(3)[3], nn.AvgPool2d(2))
    )
    torch.testing.assert_close(own, expected)


def test_images_too_small_for_the_poolings_are_refused():
    with pytest.raises(UserError, match=r"classifiers\.model=convnet-6 halves the side .* 6 times"):
        build_classifier(replace(SMALL, model="convnet-6"), 10)


def test_a_classifier_learns_and_its_seed_decides_everything():
    train, test = coloured(48, 0), coloured(60, 1)
    found = [train_classifier(train, SMALL, learning_rate=0.01, seed=s, device="cpu") for s in (1, 1, 2)]
    scores = [evaluate_classifier(network, test) for network, _ in found]

    assert scores[0]["top-1"] > 90
    assert scores[0]["top-5"] == 100  # of three classes
    assert scores[0] == scores[1]
    assert_array_equal(found[0][1], found[1][1])
    assert (found[0][1] != found[2][1]).any()
    assert found[0][1][-5:].mean() < found[0][1][:5].mean()


def test_the_learning_rate_falls_to_a_fifth_twice(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o: (seen.append(o.param_groups[0]["lr"]), step(o))[1])
    train_classifier(coloured(16, 0), replace(SMALL, steps=12), learning_rate=0.1, seed=0, device="cpu")
    assert seen == pytest.approx([0.1] * 8 + [0.02] * 2 + [0.004] * 2)


def test_a_diverged_classifier_finds_nothing():
    network, losses = train_classifier(coloured(16, 0), SMALL, learning_rate=1e9, seed=0, device="cpu")
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    assert evaluate_classifier(network, coloured(9, 1)) == {"top-1": 0.0, "top-5": 0.0}
    assert len(losses) == SMALL.steps


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"the images have 32 px, but classifiers\.image_px=64"):
        train_classifier(coloured(4, 0), replace(SMALL, image_px=64), learning_rate=0.1, seed=0, device="cpu")


def test_cutmix_mixes_labels_as_it_mixes_pixels():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 20, 20)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        mixed, order, share = cutmix(images, rng)
        kept = (mixed == images)[:, 0].float().mean(dim=(1, 2))
        moved = order != torch.arange(6)
        assert torch.allclose(kept[moved], torch.full_like(kept[moved], share))
        assert set(mixed[0].unique().tolist()) <= {0.0, float(order[0])}
        shares.append(share)
    assert 0.4 < np.mean(shares) < 0.75  # about a half, and more where the rectangle leaves the image
    assert min(shares) < 0.25
    assert max(shares) > 0.9


def test_chance_of_few_classes_is_no_more_than_certain():
    assert accuracy_chance(200) == {"top-1": 0.5, "top-5": 2.5}
    assert accuracy_chance(3) == {"top-1": pytest.approx(100 / 3), "top-5": 100}


# ---- labelled sets


def rows(n: int) -> list[Row]:
    drawn = shapes.pairs(0, n, seed=1, labelled=True)
    return [Row("s", i, p["key"], p["image"], p["captions"], p["label"], None) for i, p in enumerate(drawn)]


def test_labels_become_places_among_the_classes_and_strange_ones_are_listed():
    some = rows(12)
    classes = tuple(sorted({row.label for row in some[:9] if row.label is not None}))
    broken = replace(some[0], key="broken", image=b"no image")
    found, rejects = LabelledSet.from_rows([*some, broken], classes, image_px=32, max_pixels=10**6)

    wanted = [row for row in some if row.label in classes]
    assert [classes[place] for place in found.labels] == [row.label for row in wanted]
    reasons = Counter(reason for *_, reason in rejects)
    assert reasons["label of no class"] == 12 - len(wanted)
    assert reasons["not an image"] == 1
    assert found.n_pairs == found.n_images == len(wanted)


def test_the_fingerprint_sees_pixels_and_labels():
    one = coloured(6, 0)
    other = LabelledSet(one.images, one.labels[::-1].copy(), one.classes)
    assert one.fingerprint() == coloured(6, 0).fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_labels_must_be_classes():
    with pytest.raises(ValueError, match="labels below 2"):
        LabelledSet(np.zeros((1, 4, 4, 3), np.uint8), np.array([2]), (0, 1))
