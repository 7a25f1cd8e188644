import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

from mmdd_ray.errors import UserError
from mmdd_ray.features.moments import Moments
from mmdd_ray.methods.edge.choose import choose_drawn, pair_quality
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.edge.prompts import check_prompts
from mmdd_ray.methods.edge.selection import moment_distance, select
from mmdd_ray.methods.edge.settings import Edge


def real_and_candidates(
    n_candidates: int, *, seed: int, d_v: int = 6, d_l: int = 5
) -> tuple[Moments, np.ndarray, np.ndarray]:
    """Moments of correlated real pairs, and candidates whose mean and correlation are off."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d_v, d_l))

    def pairs(n: int, shift: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
        image = rng.normal(shift, 1, size=(n, d_v))
        text = image @ mixing + noise * rng.normal(size=(n, d_l))
        return image.astype(np.float32), text.astype(np.float32)

    return Moments.of(*pairs(2000, shift=0.3, noise=0.3)), *pairs(n_candidates, shift=0.6, noise=1.5)


def objective_by_hand(target: Moments, image: np.ndarray, text: np.ndarray, mean_weight: float) -> float:
    """The definition, through NumPy's own covariance."""
    cross = np.cov(image, text, rowvar=False, ddof=0)[: image.shape[1], image.shape[1] :]
    gap = np.sum((target.mean_v - image.mean(0)) ** 2) + np.sum((target.mean_l - text.mean(0)) ** 2)
    return float(np.linalg.norm(target.cross_covariance - cross, "fro") ** 2 + mean_weight * gap)


def test_moment_distance_is_its_definition():
    target, image, text = real_and_candidates(10, seed=0)
    image, text = image.astype(np.float64), text.astype(np.float64)
    expected = objective_by_hand(target, image, text, 0.7)
    assert moment_distance(target, image, text, 0.7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mean_weight", [0.0, 1.0, 10.0])
def test_the_trajectory_is_the_exact_objective_of_every_subset(mean_weight):
    target, image, text = real_and_candidates(60, seed=1)
    greedy = select(target, image, text, 12, mean_weight=mean_weight, max_swaps=0)
    by_hand = [
        moment_distance(target, image[greedy.indices[:n]], text[greedy.indices[:n]], mean_weight)
        for n in range(1, 13)
    ]
    assert_allclose(greedy.history, by_hand, rtol=1e-9)

    swapped = select(target, image, text, 12, mean_weight=mean_weight)
    final = moment_distance(target, image[swapped.indices], text[swapped.indices], mean_weight)
    assert swapped.history[-1] == pytest.approx(final, rel=1e-9)


def test_each_greedy_pick_is_the_best_one():
    target, image, text = real_and_candidates(30, seed=2)
    picks = select(target, image, text, 6, mean_weight=1.0, max_swaps=0).indices.tolist()
    for n in range(6):
        scores = [
            np.inf
            if j in picks[:n]
            else moment_distance(target, image[[*picks[:n], j]], text[[*picks[:n], j]], 1.0)
            for j in range(30)
        ]
        assert picks[n] == int(np.argmin(scores))


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_swaps_only_improve_until_no_single_swap_can(seed):
    target, image, text = real_and_candidates(40, seed=seed)
    selection = select(target, image, text, 8, mean_weight=1.0)
    after_greedy = selection.history[7:]
    assert len(after_greedy) > 1
    assert (np.diff(after_greedy) < 0).all()

    chosen = selection.indices.tolist()
    assert len(set(chosen)) == 8
    for place, other in itertools.product(range(8), set(range(40)) - set(chosen)):
        swapped = [*chosen[:place], other, *chosen[place + 1 :]]
        assert moment_distance(target, image[swapped], text[swapped], 1.0) >= after_greedy[-1] * (1 - 1e-9)


def test_small_problems_are_solved_nearly_always():
    optimal = 0
    for seed in range(20):
        target, image, text = real_and_candidates(9, seed=seed, d_v=3, d_l=2)
        best = min(
            moment_distance(target, image[list(subset)], text[list(subset)], 1.0)
            for subset in itertools.combinations(range(9), 3)
        )
        optimal += select(target, image, text, 3, mean_weight=1.0).history[-1] <= best * (1 + 1e-9)
    assert optimal >= 14


def test_selected_pairs_match_far_better_than_random_ones():
    target, image, text = real_and_candidates(200, seed=4)
    rng = np.random.default_rng(0)
    subsets = [rng.choice(200, 20, replace=False) for _ in range(50)]
    random_best = min(moment_distance(target, image[s], text[s], 1.0) for s in subsets)
    assert select(target, image, text, 20, mean_weight=1.0).history[-1] < 0.1 * random_best


def test_a_subset_with_the_right_moments_is_found_among_decoys():
    target, image, text = real_and_candidates(10, seed=5)
    rng = np.random.default_rng(1)
    far_image = np.concatenate([image, 20 + rng.normal(size=image.shape)])
    far_text = np.concatenate([text, 20 + rng.normal(size=text.shape)])
    target = Moments.of(image, text)
    selection = select(target, far_image, far_text, 10, mean_weight=1.0)
    assert sorted(selection.indices.tolist()) == list(range(10))
    assert selection.history[-1] < 1e-9


def test_where_the_features_lie_does_not_matter():
    target, image, text = real_and_candidates(40, seed=6)
    shifted = Moments(target.count, target.mean_v + 100, target.mean_l - 50, target.vv, target.ll, target.vl)
    here = select(target, image.astype(np.float64), text.astype(np.float64), 8, mean_weight=1.0)
    there = select(shifted, image.astype(np.float64) + 100, text.astype(np.float64) - 50, 8, mean_weight=1.0)
    assert here.indices.tolist() == there.indices.tolist()


def test_copies_tie_and_the_lowest_index_wins():
    target, image, text = real_and_candidates(5, seed=7)
    selection = select(target, np.tile(image, (3, 1)), np.tile(text, (3, 1)), 1, mean_weight=1.0)
    assert selection.indices[0] < 5


def test_all_candidates_and_a_swap_limit():
    target, image, text = real_and_candidates(12, seed=8)
    assert sorted(select(target, image, text, 12, mean_weight=1.0).indices.tolist()) == list(range(12))
    assert len(select(target, image, text, 5, mean_weight=1.0, max_swaps=1).history) == 5 + 1


def test_impossible_requests_are_errors():
    target, image, text = real_and_candidates(5, seed=9)
    with pytest.raises(ValueError, match="cannot select 6 of 5 candidates"):
        select(target, image, text, 6, mean_weight=1.0)
    with pytest.raises(ValueError, match="encoder of the moments"):
        select(target, image[:, :4], text, 2, mean_weight=1.0)
    image[0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        select(target, image, text, 2, mean_weight=1.0)


def edge_of(images: int, candidates: int, fraction: float = 1.0) -> Edge:
    edge = edge_local()
    return replace(
        edge,
        synthesis=replace(
            edge.synthesis,
            pairs=images * edge.captions.per_image,
            candidates_per_image=candidates,
            clip_score_fraction=fraction,
        ),
    )


def test_the_candidates_nearest_to_the_real_moments_are_kept():
    target, image_MD, text_MD = real_and_candidates(24, seed=3, d_l=6)
    drawn = pa.table(
        {"index": range(100, 124), "image_feature": list(image_MD), "text_feature": list(text_MD)}
    )
    choice = choose_drawn(drawn, target, edge_of(images=6, candidates=4))
    rows = np.array(choice["kept"]) - 100
    assert len(set(rows)) == 6
    assert list(rows) == sorted(rows)
    assert choice["moment_distance"]["kept"] == moment_distance(target, image_MD[rows], text_MD[rows], 1.0)
    assert choice["moment_distance"]["kept"] < 0.8 * choice["moment_distance"]["unselected"]
    assert choice["quality"] == pair_quality(image_MD[rows], text_MD[rows])
    everything = choose_drawn(drawn.slice(0, 6), target, edge_of(images=6, candidates=1))
    assert everything["kept"] == list(range(100, 106))


@pytest.mark.parametrize(("fraction", "left"), [(0.5, 12), (0.25, 6)])
def test_only_candidates_that_agree_with_their_captions_are_chosen_from(fraction, left):
    target, image_MD, text_MD = real_and_candidates(24, seed=3, d_l=5, d_v=5)
    drawn = pa.table(
        {"index": range(100, 124), "image_feature": list(image_MD), "text_feature": list(text_MD)}
    )
    norms_M = np.linalg.norm(image_MD, axis=1) * np.linalg.norm(text_MD, axis=1)
    cosine_M = (image_MD * text_MD).sum(axis=1) / norms_M
    best = np.sort(np.argsort(-cosine_M)[:left])
    nearest = best[select(target, image_MD[best], text_MD[best], 6, mean_weight=1.0).indices]
    choice = choose_drawn(drawn, target, edge_of(images=6, candidates=4, fraction=fraction))
    assert choice["kept"] == sorted(int(row) + 100 for row in nearest)
    without = choose_drawn(drawn, target, edge_of(images=6, candidates=4))
    assert choice["quality"]["alignment"] > without["quality"]["alignment"]
    assert choice["moment_distance"]["kept"] >= without["moment_distance"]["kept"]


def test_drawn_features_that_are_not_finite_are_an_error_whatever_their_place():
    target, image_MD, text_MD = real_and_candidates(8, seed=3, d_l=5, d_v=5)
    image_MD[2, 0] = np.nan
    drawn = pa.table({"index": range(8), "image_feature": list(image_MD), "text_feature": list(text_MD)})
    with pytest.raises(ValueError, match="row 2 is not finite"):
        choose_drawn(drawn, target, edge_of(images=2, candidates=4, fraction=0.5))


def test_fewer_captions_than_candidates_are_one_sentence_and_every_caption_of_an_image_counts():
    features = SimpleNamespace(
        addresses=[0, 1, 2], caption_features=lambda: [np.zeros((3, 2)), np.zeros((2, 2))]
    )
    check_prompts(features, edge_of(images=2, candidates=2))
    with pytest.raises(
        UserError, match=r"pairs=2 needs 6 prompts, but shapes:2000.* has 5 captions; lower syn"
    ):
        check_prompts(features, edge_of(images=2, candidates=3))


def test_pair_quality_of_a_hand_worked_example():
    # two pairs, unit vectors: the first aligned, the second at a right angle and nearer to the first image
    image_ND = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    text_ND = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    quality = pair_quality(image_ND, text_ND)
    assert quality == {"alignment": 0.5, "recall": 50.0, "similarity": 0.5}
