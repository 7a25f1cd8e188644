"""Prototypes of a class: against a plain implementation, on a class whose right answer is known, and on odd input."""

import re
from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mmdd_ray.methods.vlcp.prototypes import (
    class_prototypes,
    clusters,
    inliers,
    rank_descriptions,
    word_counts,
)

STOP = {
    "a",
    "the",
    "is",
    "on",
    "with",
    "in",
    "of",
    "and",
    "it",
}  # those of scikit-learn that the texts here have


def plain_outlier_factor(points: np.ndarray, neighbours: int) -> np.ndarray:
    """LOF as Breunig et al. define it, point by point."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = [sorted((j for j in range(len(points)) if j != i), key=lambda j: distance[i, j])[:neighbours]
            for i in range(len(points))]  # fmt: skip
    reach = [distance[i, near[i][-1]] for i in range(len(points))]
    density = [1 / np.mean([max(reach[j], distance[i, j]) for j in near[i]]) for i in range(len(points))]
    return np.array([np.mean([density[j] for j in near[i]]) / density[i] for i in range(len(points))])


def plain_text_prototype(texts: list[str], cluster: list[int], class_name: str, words: int) -> int:
    """The description by the words of the method, with dictionaries."""
    found = [re.findall("[a-z]+", text.lower()) for text in texts]
    in_texts = Counter(word for one in found for word in set(one))
    banned = STOP | set(class_name.split()) | {w for w, n in in_texts.items() if n >= 0.7 * len(texts)}
    counts = Counter(word for row in cluster for word in found[row] if word not in banned)
    top = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    scores = {row: sum(counts[word] for word in top if word in found[row]) for row in cluster}
    return max(cluster, key=lambda row: (scores[row], -row))


@pytest.fixture
def birds() -> tuple[np.ndarray, list[str]]:
    """Two groups of eight around (0, 0, …) and (10, 10, …), and two strays."""
    rng = np.random.default_rng(0)
    group = rng.normal(size=(16, 6)) * 0.3
    group[8:] += 10
    strays = np.stack([np.full(6, 30.0), np.full(6, -25.0)])
    flying = [
        f"a bird in flight over the sea, wings spread, number {['one', 'two', 'three'][i % 3]}"
        for i in range(8)
    ]
    sitting = [f"the bird is on a branch with leaves{', singing' * (i == 5)}" for i in range(8)]
    return np.concatenate([group, strays]), [*flying, *sitting, "a bird", "a bird of glass"]


def test_a_class_of_two_groups_and_two_strays_gives_their_centres_and_typical_descriptions(birds) -> None:
    latents, texts = birds
    one, other = class_prototypes(latents, texts, "bird", 2, contamination=2 / 18, neighbours=5)

    assert_array_equal(one.members, np.arange(8))
    assert_array_equal(other.members, np.arange(8, 16))
    assert_allclose(one.latent_D, latents[:8].mean(0), rtol=1e-6)
    assert_allclose(other.latent_D, latents[8:16].mean(0), rtol=1e-6)
    assert other.text == 13  # branch, leaves and singing
    assert one.text == plain_text_prototype(texts, list(range(8)), "bird", 30)


def test_outliers_are_those_of_a_plain_local_outlier_factor() -> None:
    points = np.random.default_rng(1).standard_t(2, size=(60, 4))
    worst = np.argsort(plain_outlier_factor(points, 10))[-6:]

    assert_array_equal(inliers(points, 10, 0.1, at_least=5), np.setdiff1d(np.arange(60), worst))


@pytest.mark.parametrize("words", [1, 3, 30])
def test_text_prototypes_are_those_of_a_plain_implementation(words: int) -> None:
    rng = np.random.default_rng(2)
    vocabulary = [
        "red",
        "green",
        "small",
        "large",
        "striped",
        "furry",
        "wet",
        "tail",
        "ear",
        "grass",
        "snow",
        "dog",
    ]
    texts = [f"the dog is {' and '.join(rng.choice(vocabulary, 4))}" for _ in range(40)]
    for _ in range(20):
        cluster = np.sort(rng.choice(40, 9, replace=False))
        counts = word_counts(texts, "dog", 0.7)
        best = cluster[rank_descriptions(counts[cluster], words)[0]]
        assert best == plain_text_prototype(texts, cluster.tolist(), "dog", words)


def test_clusters_are_no_worse_than_the_best_of_plain_k_means_from_many_starts() -> None:
    rng = np.random.default_rng(3)
    points = rng.normal(size=(80, 5)) + rng.integers(0, 4, size=(80, 1)) * 4
    centres, label = clusters(points, 4, seed=0)

    def plain(start: np.ndarray) -> float:
        for _ in range(100):
            near = ((points[:, None] - start) ** 2).sum(-1).argmin(1)
            start = np.stack([points[near == k].mean(0) if (near == k).any() else start[k] for k in range(4)])
        return ((points[:, None] - start) ** 2).sum(-1).min(1).sum()

    found = ((points - centres[label]) ** 2).sum()
    assert found <= min(plain(points[rng.choice(80, 4, replace=False)]) for _ in range(50)) * (1 + 1e-6)
    assert (np.diff(np.bincount(label)) <= 0).all()  # large ones first


def test_the_same_class_gives_the_same_prototypes_and_mini_batches_find_clear_groups(birds) -> None:
    latents, texts = birds
    first, again = (class_prototypes(latents, texts, "bird", 3, seed=7) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert_array_equal(one.latent_D, other.latent_D)
        assert_array_equal(one.members, other.members)
        assert one.text == other.text
    small = class_prototypes(latents[:16], texts[:16], "bird", 2, contamination=0, mini_batch_from=10)
    assert [len(one.members) for one in small] == [8, 8]


def test_fewer_images_than_prototypes_are_used_in_turn() -> None:
    latents, texts = np.eye(3), ["a red one", "a green one", "a blue one"]
    found = class_prototypes(latents, texts, "thing", 7)

    assert [one.members.tolist() for one in found] == [[0], [1], [2], [0], [1], [2], [0]]
    assert [one.text for one in found] == [0, 1, 2, 0, 1, 2, 0]


def test_a_cluster_that_is_used_again_gives_its_next_description() -> None:
    texts = ["wet grass", "wet grass, wet snow", "wet"]
    found = class_prototypes(np.ones((3, 4)), texts, "dog", 4)  # identical images: one cluster

    assert [one.members.tolist() for one in found] == [[0, 1, 2]] * 4
    assert [one.text for one in found] == [1, 0, 2, 1]  # wet is in all: grass 2, snow 1


def test_one_image_is_its_own_prototype() -> None:
    (found,) = class_prototypes(np.full((1, 4), 2.0), ["a dog that runs"], "dog", 1)

    assert_array_equal(found.latent_D, np.full(4, 2, np.float32))
    assert found.text == 0


def test_outliers_are_kept_where_they_are_needed_to_fill_the_class() -> None:
    latents = np.concatenate([np.random.default_rng(0).normal(size=(11, 3)), np.full((1, 3), 99.0)])

    assert len(inliers(latents, 10, 0.1, at_least=11)) == 11
    assert len(inliers(latents, 10, 0.1, at_least=12)) == 12
    assert sum(len(one.members) for one in class_prototypes(latents, ["x"] * 12, "dog", 12)) == 12


def test_blank_descriptions_are_no_prototypes() -> None:
    found = class_prototypes(np.array([[0.0], [0.1], [9.0]]), ["", "spotted", "  "], "dog", 2)

    assert [one.text for one in found] == [1, None]


def test_other_scripts_are_counted_and_words_in_most_descriptions_are_left_out() -> None:
    texts = ["Собака бежит по снегу", "Собака бежит по траве", "Собака спит", "Собака бежит по снегу домой"]
    counts = word_counts(texts, "собака", 0.7).toarray()
    assert counts.shape == (4, 4)  # without собака, бежит and по: three of four

    (found,) = class_prototypes(np.zeros((4, 2)), texts, "собака", 1)
    assert found.text == 3


def test_letters_are_words_where_words_are_not_spaced() -> None:
    texts = ["一只白色的狗", "狗在雪地里", "雪地里的狗"]
    counts = word_counts(texts, "狗", 0.7).toarray()
    assert counts.sum(axis=1).tolist() == [5, 4, 4]  # without 狗
    assert class_prototypes(np.zeros((3, 2)), texts, "狗", 1)[0].text == 2
    mixed = [
        "カメラ と Hund",
        "หมา",
        "สีขาว",
        "हिन्दी",
    ]  # runs of katakana, Latin and Devanagari; letters of the others
    assert word_counts(mixed, "x", 0.9).toarray().sum(axis=1).tolist() == [3, 3, 4, 1]


def test_possessives_contractions_and_marks_are_no_words_of_their_own() -> None:
    texts = ["The dog's coat isn't brown", "a dog’s tail", "हिन्दी"]
    assert word_counts(texts, "dog", 0.7).toarray().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_descriptions_without_any_word_leave_the_order() -> None:
    assert [one.text for one in class_prototypes(np.eye(2), ["42", "!"], "dog", 2, seed=1)] == [0, 1]


def test_input_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="0 latents"):
        class_prototypes(np.zeros((0, 3)), [], "dog", 1)
    with pytest.raises(ValueError, match="finite"):
        class_prototypes(np.array([[np.nan]]), ["x"], "dog", 1)
