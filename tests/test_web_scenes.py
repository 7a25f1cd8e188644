"""The web's world: each flaw is what its setting says, and changes nothing else."""

import hashlib
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mmdd_ray.config import Data
from mmdd_ray.data import shapes
from mmdd_ray.data.formats.scenes import shapes_spec
from mmdd_ray.data.shards import list_shards
from mmdd_ray.data.web_scenes import NAME_TEMPLATES, STYLES, WebScene, World, pairs, scene

N = 1500
RIGHT = World(wrong=0, vague=0, captions=5)


def drawn(world: World, n: int = N, *, labelled: bool = False, seed: int = 3) -> list[WebScene]:
    return [scene(index, seed=seed, labelled=labelled, world=world) for index in range(n)]


@pytest.mark.parametrize(
    ("labelled", "checksum"),
    [
        (0, "8a776eaaeb63f115d68ed95f1df9ab5087b07595e9303c648148ad9d006e778b"),
        (1, "9d510e7a0c7391acd388439fa67ede5b98f92eaf58ac5cc99e414bb423c1399e"),
    ],
)
def test_the_clean_world_keeps_its_bytes(labelled: int, checksum: str) -> None:
    _, draw = shapes_spec(f"shapes:200?seed=1&world=clean&labelled={labelled}")
    found = hashlib.sha256()
    for pair in draw(0, 200):
        found.update(
            pair["image"] + json.dumps([pair[name] for name in ("key", "captions", "label")]).encode()
        )
    assert found.hexdigest() == checksum


def test_a_slice_is_the_same_wherever_it_is_drawn() -> None:
    whole = list(pairs(0, 12, seed=4, world=World()))
    assert whole[5:9] == list(pairs(5, 9, seed=4, world=World()))
    assert whole[0]["image"] != next(pairs(0, 1, seed=5, world=World()))["image"]


def test_captions_are_wrong_vague_and_as_many_as_the_settings_say() -> None:
    world = World(wrong=0.3, vague=0.2)
    scenes = drawn(world)
    captions = [one.captions() for one in scenes]
    assert {len(own) for own in captions} == {1}
    right = [own[0] in one.true_captions() for one, own in zip(scenes, captions, strict=True)]
    assert np.mean(right) == pytest.approx(0.7 * 0.8, abs=0.03)
    others = [own[0] for one, own in zip(scenes, captions, strict=True) if own[0] not in one.true_captions()]
    vague = sum(len(caption.split()) <= 6 and " at the " not in caption for caption in others)
    assert vague / N == pytest.approx(0.2, abs=0.03)


def test_right_captions_name_every_named_object_of_the_picture() -> None:
    for one in drawn(RIGHT, 200):
        captions = one.captions()
        assert len(set(captions)) == 5
        for caption in captions:
            for item in one.named.objects:
                names = shapes.SYNONYMS.get(item.shape, (item.shape,))
                assert any(
                    f"{s} {item.colour} {n}" in caption for s in shapes.SYNONYMS[item.size] for n in names
                )


def test_a_higher_rate_only_adds_wrong_captions() -> None:
    few, many = (
        {
            one.named.caption_seed[1]: one.captions()[0]
            for one in drawn(World(wrong=rate, vague=0), 400)
            if one.captions()[0] not in one.true_captions()
        }
        for rate in (0.1, 0.4)
    )
    assert 0 < len(few) < len(many)
    assert few.items() <= many.items()


def test_noise_of_captions_leaves_the_pictures_alone() -> None:
    noisy = [pair["image"] for pair in pairs(0, 20, seed=1, world=World(wrong=0.5, vague=0.5))]
    assert noisy == [pair["image"] for pair in pairs(0, 20, seed=1, world=RIGHT)]


def test_clutter_and_tail_are_as_frequent_as_they_should_be() -> None:
    scenes = drawn(World())
    assert np.mean([len(one.marks) for one in scenes]) == pytest.approx(5.8, rel=0.05)
    assert not any(one.marks for one in drawn(World(clutter=0), 50))
    counts = Counter(item.colour for one in scenes for item in one.named.objects)
    ranks = np.array([counts[colour] for colour in shapes.COLOURS])
    zipf = 1 / np.arange(1, len(ranks) + 1)
    assert ranks / ranks.sum() == pytest.approx(zipf / zipf.sum(), abs=0.02)
    labels = Counter(one.label for one in drawn(World(), labelled=True))  # balanced, as ImageNet is
    assert max(labels.values()) < 3 * min(labels[label] for label in range(len(shapes.CLASS_NAMES)))


def test_without_nuisance_a_background_is_one_colour() -> None:
    grey = next(i for i in range(50) if scene(i, seed=1).named.background == "grey")  # white would be cut off
    still, disturbed = (
        np.asarray(scene(grey, seed=1, world=World(nuisance=n, clutter=0)).render(32), float) for n in (0, 1)
    )
    corner = still[-4:, :4].reshape(-1, 3)
    assert (corner == corner[0]).all()
    assert disturbed[-4:, :4].reshape(-1, 3).std(axis=0).min() > 2


def test_the_broad_world_holds_the_web_among_other_domains_that_mostly_name_their_style() -> None:
    scenes = drawn(World(broad=True))
    domains = Counter(one.domain for one in scenes)
    assert domains["web"] / N == pytest.approx(0.4, abs=0.04)
    assert domains.keys() == {"web", *STYLES}
    for domain, styles in STYLES.items():
        openings = tuple(style.removesuffix("{}") for style in styles)
        of_domain = [one for one in scenes if one.domain == domain]
        named = [caption.startswith(openings) for one in of_domain for caption in one.true_captions()]
        assert np.mean(named) == pytest.approx(0.8, abs=0.06)
    plain = {t.format(name="red circle") for t in NAME_TEMPLATES}
    assert any(plain.intersection(one.true_captions()) for one in scenes)


def test_a_uri_sets_what_the_world_has() -> None:
    rows, draw = shapes_spec("shapes:40?seed=2&wrong=0&vague=0&captions=5&clutter=0&nuisance=0&tail=0")
    assert rows == 40
    quiet = World(wrong=0, vague=0, captions=5, clutter=0, nuisance=0, tail=0)
    assert list(draw(3, 6)) == list(islice(pairs(3, 6, seed=2, world=quiet), 3))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("shapes:5?wrong=1.2", r"wrong=1\.2 must be from 0 to 1"),
        ("shapes:5?captions=6", "captions=6 must be from 1 to 5"),
        ("shapes:5?wrong=nan", "wrong=nan must be from 0 to 1"),
        ("shapes:5?world=clean&wrong=0.1", "world=web also takes wrong, vague, captions, clutter"),
        ("shapes:5?seed=1&seed=2", "each option once"),
        ("shapes:5?world=wild", r"world=web \(or world=clean\)"),
    ],
)
def test_settings_that_mean_nothing_are_refused(uri: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list_shards(Data(uri=uri))
