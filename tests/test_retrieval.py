import numpy as np
import pytest

from mmdd_ray.evaluation.metrics import chance
from mmdd_ray.evaluation.retrieval import retrieval_metrics


def hit_ranks(score: np.ndarray, is_match: np.ndarray) -> np.ndarray:
    """Per query (row) the place of its first match in the sorted row, wrong answers first among equals."""
    order = np.lexsort((is_match, -score), axis=1)
    return np.take_along_axis(is_match, order, axis=1).argmax(axis=1)


def brute_force(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    score = np.round(text @ image.T, 5)  # so that equal cosines are exactly equal
    is_match = owner[:, None] == np.arange(len(image))
    recalls = {f"ir@{k}": 100 * np.mean(hit_ranks(score, is_match) < k) for k in (1, 5, 10)}
    recalls |= {f"tr@{k}": 100 * np.mean(hit_ranks(score.T, is_match.T) < k) for k in (1, 5, 10)}
    return recalls | {"mean_recall": np.mean(list(recalls.values()))}


def test_an_example_by_hand():
    image = np.eye(3)
    owner = np.array([0, 0, 1, 1, 2, 2])
    text = np.array(
        [
            [3, 1, 0],  # caption of image 0, nearest to it
            [0, 2, 1],  # caption of image 0, image 1 first, image 2 second, its own third
            [0, 1, 0],  # caption of image 1, nearest to it
            [1, 2, 0],  # caption of image 1, nearest to it
            [0, 2, 1],  # caption of image 2, image 1 before it
            [2, 0, 1],  # caption of image 2, image 0 before it
        ]
    )
    # cosines to image 0: .95 0 0 .45 0 .89, best is its own; to image 1: .32 .89 1 .89 .89 0, best is its
    # own; to image 2: 0 .45 0 0 .45 .45: its two captions tie with a wrong one, so the first place is lost
    metrics = retrieval_metrics(image, text.astype(float), owner)
    assert metrics == pytest.approx(
        {
            "ir@1": 50,
            "ir@5": 100,
            "ir@10": 100,
            "tr@1": 200 / 3,
            "tr@5": 100,
            "tr@10": 100,
            "mean_recall": 1550 / 18,
        }
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk_captions", [1, 64, 10_000])
def test_brute_force_agrees_with_ties_and_five_captions_an_image(seed, chunk_captions):
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(40), 5))
    image = rng.integers(-1, 2, size=(40, 4)) + np.array([0, 0, 0, 3])  # few values, so many exact ties
    text = image[owner] + rng.integers(-1, 2, size=(200, 4)) * [1, 1, 1, 0]
    known = brute_force(image, text, owner)
    assert 0 < known["ir@1"] < known["ir@10"] < 100
    found = retrieval_metrics(
        image.astype(np.float32), text.astype(np.float64), owner, chunk_captions=chunk_captions
    )
    assert found == pytest.approx(known)


def test_a_perfect_model_scores_100_and_norms_do_not_matter():
    rng = np.random.default_rng(0)
    image, owner = rng.normal(size=(30, 16)), np.repeat(np.arange(30), 5)
    text = image[owner] * rng.uniform(0.01, 100, size=(150, 1))
    assert set(retrieval_metrics(image, text, owner).values()) == {100.0}


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_collapsed_model_scores_0(value):
    same = np.full((1, 7), value, dtype=np.float32)
    owner = np.repeat(np.arange(50), 5)
    metrics = retrieval_metrics(
        np.repeat(same, 50, axis=0), np.repeat(same, 250, axis=0), owner, chunk_captions=33
    )
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize(("n_images", "captions_per_image"), [(25, 5), (8, 1), (2, 3)])
def test_chance_is_what_random_embeddings_score(n_images, captions_per_image):
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(n_images), captions_per_image)
    draws = [
        retrieval_metrics(rng.normal(size=(n_images, 64)), rng.normal(size=(len(owner), 64)), owner)
        for _ in range(800)
    ]
    known = chance(n_images, captions_per_image)
    for name, percent in known.items():
        scores = np.array([draw[name] for draw in draws])
        assert abs(scores.mean() - percent) <= 4 * scores.std() / np.sqrt(len(scores)) + 1e-9, name


def test_chance_by_hand():
    # 5 of 10 captions are an image's own: 1 - (5/10)(4/9)(3/8)(2/7)(1/6) = 1 - 120/30240 for five places
    assert chance(2, 5)["tr@5"] == pytest.approx(100 * (1 - 120 / 30240))
    assert chance(1000, 5)["ir@10"] == pytest.approx(1.0)
    assert chance(1000, 5)["tr@1"] == pytest.approx(0.1)


def test_unusable_embeddings_are_errors():
    image, text, owner = np.eye(3), np.eye(3), np.arange(3)
    with pytest.raises(ValueError, match="of one D"):
        retrieval_metrics(image[:, :2], text, owner)
    with pytest.raises(ValueError, match="there are 3 captions"):
        retrieval_metrics(image, text, owner[:2])
    for wrong in ([0, 1, 1], [0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="every one of the 3 images and no other"):
            retrieval_metrics(image, text, np.array(wrong))
    text[1, 1] = np.nan
    with pytest.raises(ValueError, match="text embeddings hold values that are not finite"):
        retrieval_metrics(image, text, owner)
