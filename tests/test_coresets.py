import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mmdd_ray.features.coresets import (
    clip_score,
    herding,
    joint_features,
    k_center,
    k_means,
    kept_rows,
    pair_scores,
    random_subset,
)
from mmdd_ray.features.row_passes import products, squared_distance

CHOOSERS = [herding, k_center, k_means]


@pytest.fixture
def rows() -> np.ndarray:
    """A hundred rows on a grid, so that equal distances are exactly equal in float16, float32 and float64."""
    return np.random.default_rng(0).integers(-4, 5, size=(100, 3)).astype(np.float32)


def brute_force_herding(rows: np.ndarray, k: int) -> list[int]:
    picks: list[int] = []
    for _ in range(k):
        gaps = [
            np.inf if i in picks else np.linalg.norm(rows.mean(0) - rows[[*picks, i]].mean(0))
            for i in range(len(rows))
        ]
        picks.append(int(np.flatnonzero(gaps <= min(gaps) + 1e-9)[0]))  # lowest index among equals
    return picks


def brute_force_k_center(rows: np.ndarray, k: int, first: int) -> list[int]:
    picks = [first]
    while len(picks) < k:
        radius = np.linalg.norm(rows[:, None] - rows[picks], axis=2).min(axis=1)
        radius[picks] = -1
        picks.append(int(radius.argmax()))
    return picks


class Reopened:
    """A store whose every iteration reads the blocks anew."""

    def __init__(self, rows: np.ndarray, cuts: list[int]) -> None:
        self.rows, self.cuts, self.passes = rows, cuts, 0

    def __iter__(self):
        self.passes += 1
        return iter(np.split(self.rows, self.cuts))


@pytest.mark.parametrize("k", [1, 7, 100])
def test_herding_is_brute_force_mean_matching(rows, k):
    # 64 rows and dyadic coordinates keep the float32 mean exact, so ties are ties in both programs
    k = min(k, 64)
    calls: list[None] = []
    herding([rows[:64]], k, on_pick=lambda: calls.append(None))
    assert len(calls) == k
    assert herding([rows[:64]], k).tolist() == brute_force_herding(rows[:64].astype(np.float64), k)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_k_center_is_brute_force_farthest_point(rows, k):
    calls: list[None] = []
    picks = k_center([rows], k, 3, on_pick=lambda: calls.append(None))
    assert len(calls) == k
    assert picks.tolist() == brute_force_k_center(rows.astype(np.float64), k, first=picks[0])


def test_herding_a_line_by_hand():
    # mean 2; first the row nearest 2; then nearest 2*2-2 = 2 of the rest, 1 and 3 tie; then nearest 3*2-(2+1)
    # = 3
    line = np.array([[0], [1], [2], [3], [4]], dtype=np.float32)
    assert herding([line], 3).tolist() == [2, 1, 3]


def test_herding_matches_the_mean_better_than_random():
    features = np.random.default_rng(1).normal(size=(500, 16)).astype(np.float32)

    def gap(picks: np.ndarray) -> float:
        return float(np.linalg.norm(features.mean(0) - features[picks].mean(0)))

    random_gaps = [gap(random_subset(500, 20, seed)) for seed in range(20)]
    assert gap(herding([features], 20)) < 0.5 * min(random_gaps)


@pytest.mark.parametrize("choose", CHOOSERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_how_the_store_is_cut_does_not_matter(choose, dtype):
    features = np.random.default_rng(2).normal(size=(3000, 65)).astype(dtype)
    features[1700:1800] = features[:100]  # exact copies, which must tie wherever they stand
    whole = choose([features], 12, seed=5)
    cut = Reopened(features, cuts=[1, 2, 700, 700, 1703, 2999])
    assert_array_equal(choose(cut, 12, seed=5), whole)
    assert whole.dtype == np.int64


@pytest.mark.parametrize(("choose", "most"), [(herding, 75), (k_center, 15)])
def test_a_pass_over_all_products_serves_several_picks(choose, most, monkeypatch):
    features = np.random.default_rng(4).normal(size=(3000, 65)).astype(np.float16)
    passes = []

    def counted(*arguments):
        passes.append(1)
        products(*arguments)

    monkeypatch.setattr("mmdd_ray.features.row_passes.products", counted)
    choose([features], 100, seed=0)
    assert len(passes) < most


def test_k_means_makes_three_passes(rows):
    store = Reopened(rows, cuts=[10])
    k_means(store, 50, seed=0)
    assert store.passes == 3


@pytest.mark.parametrize("choose", [herding, k_center])
def test_rows_that_are_copies_are_asked_once_for_the_distance_to_a_pick(choose, monkeypatch):
    asked = []

    def counted(rows_BD, point_D):
        asked.append(len(rows_BD))
        return squared_distance(rows_BD, point_D)

    monkeypatch.setattr("mmdd_ray.features.coresets.squared_distance", counted)
    features = np.random.default_rng(6).normal(size=(20, 16)).astype(np.float32)[np.arange(1000) % 20]
    assert len(set(choose([features], 200, seed=0).tolist())) == 200
    assert sum(asked) < 250 * 1000


def test_coresets_are_chosen_on_one_thread_in_a_process_without_torch():
    code = """
import numpy as np
from mmdd_ray.features import coresets, row_passes
import sys
assert "torch" not in sys.modules
products = row_passes.products
def seen(*arguments):
    import torch
    assert torch.get_num_threads() == 1, torch.get_num_threads()
    products(*arguments)
coresets.products = row_passes.products = seen
coresets.herding([np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)], 3)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_blocks_may_be_views_and_read_only(dtype):
    features = np.random.default_rng(7).normal(size=(300, 12)).astype(dtype)
    known = herding([features[::-1].copy()], 5)
    view = features[::-1]
    view.flags.writeable = False
    assert_array_equal(herding([view], 5), known)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("choose", [herding, k_center])
def test_picks_are_those_of_exact_distances_to_all_rows(choose, scale):
    """Approximate products decide nothing: clusters of near copies, whose distances differ in the last digits."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(40, 130))[rng.integers(40, size=2000)] + 1e-3 * rng.normal(size=(2000, 130))
    rows = (scale * features).astype(np.float16).astype(np.float64)
    picks = choose([rows.astype(np.float16)], 60, seed=1).tolist()
    expected = [picks[0]] if choose is k_center else []
    while len(expected) < 60:
        if choose is herding:
            score = -np.linalg.norm(
                rows - ((len(expected) + 1) * rows.mean(0) - rows[expected].sum(0)), axis=1
            )
        else:
            score = np.min([np.linalg.norm(rows - rows[pick], axis=1) for pick in expected], axis=0)
        score[expected] = -np.inf
        expected.append(int(score.argmax()))
    assert picks == expected


@pytest.mark.parametrize("choose", CHOOSERS)
def test_all_rows_can_be_chosen_even_when_many_are_copies(choose):
    copies = np.repeat(np.array([[1, 0], [0, 1]], dtype=np.float32), 10, axis=0)
    assert sorted(choose([copies], 20, seed=0).tolist()) == list(range(20))
    assert len(set(choose([copies], 5, seed=0).tolist())) == 5


def test_ties_go_to_the_lowest_index():
    copies = np.repeat(np.array([[1, 0], [0, 1]], dtype=np.float32), 10, axis=0)
    first, second = k_center([copies], 2, seed=0)
    assert second == (10 if first < 10 else 0)
    assert herding([copies], 2).tolist() == [0, 10]


def test_k_means_takes_the_row_nearest_to_each_blob():
    rng = np.random.default_rng(0)
    middles = 100 * np.eye(5)
    blobs = np.concatenate([middle + rng.normal(size=(40, 5)) for middle in middles]).astype(np.float32)
    blobs[[17, 57, 97, 137, 177]] = middles  # one row of each blob lies (almost) at its mean
    picks = k_means([blobs[:90], blobs[90:]], 5, seed=1)
    assert sorted(picks.tolist()) == [17, 57, 97, 137, 177]


def test_choices_follow_the_seed():
    features = [np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)]
    assert_array_equal(random_subset(200, 10, seed=1), random_subset(200, 10, seed=1))
    assert random_subset(200, 10, seed=1).tolist() != random_subset(200, 10, seed=2).tolist()
    assert len(set(random_subset(200, 200, seed=1).tolist())) == 200
    for choose in (k_center, k_means):
        assert_array_equal(choose(features, 10, seed=1), choose(features, 10, seed=1))
        assert choose(features, 10, seed=1).tolist() != choose(features, 10, seed=2).tolist()


def test_more_picks_than_rows_is_an_error(rows):
    for choose in CHOOSERS:
        with pytest.raises(ValueError, match="k=101 rows from 100"):
            choose([rows], 101, seed=0)
    with pytest.raises(ValueError, match="k=8 rows from 7"):
        random_subset(7, 8, seed=0)


@pytest.mark.parametrize("choose", CHOOSERS)
def test_unusable_features_are_errors(choose, rows):
    with pytest.raises(ValueError, match="read many times, not a list_iterator"):
        choose(iter([rows]), 2, seed=0)
    with pytest.raises(ValueError, match="read many times, not a ndarray"):
        choose(rows, 2, seed=0)
    with pytest.raises(ValueError, match="of one width"):
        choose([rows, rows[:, :2]], 2, seed=0)
    for value in (np.nan, 1e25):
        rows[7, 0] = value
        with pytest.raises(ValueError, match="rows 0 to 99 is not finite"):
            choose([rows], 2, seed=0)


def test_joint_features_weigh_both_modalities_alike():
    joint = joint_features(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0, 2.0]], dtype=np.float16))
    assert_allclose(joint, [[0.6, 0.8, 0, 0, 1]], rtol=1e-6)


# ---- clip-score


def test_scores_are_cosines_of_each_pair() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(300, 65)), 7 * rng.normal(size=(300, 65))
    image, text = image.astype(np.float16), text.astype(np.float16)
    found = pair_scores(image, text)
    assert found.dtype == np.float32
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(image.astype(float), text.astype(float), strict=True)
    ]
    assert_allclose(found, expected, atol=1e-6)
    assert_allclose(pair_scores(text, text), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("width", [1, 65, 512])
def test_a_score_does_not_depend_on_the_rows_beside_it(dtype, width):
    rng = np.random.default_rng(1)
    image, text = (rng.normal(size=(1000, width)).astype(dtype) for _ in range(2))
    image[700:800], text[700:800] = (
        image[:100],
        text[:100],
    )  # exact copies, which must tie wherever they stand
    whole = pair_scores(image, text)
    assert_array_equal(whole[700:800], whole[:100])
    cuts = [1, 2, 333, 333, 703, 999]
    parts = zip(np.split(image, cuts), np.split(text, cuts), strict=True)
    assert_array_equal(np.concatenate([pair_scores(*part) for part in parts]), whole)
    columns = (np.asfortranarray(part) for part in (image, text))
    assert_array_equal(pair_scores(*columns), whole)


@pytest.mark.parametrize("kept", [1, 2, 13, 50, 99, 100])
def test_only_the_best_scored_are_drawn_and_ties_go_to_the_lowest_index(kept):
    score = np.random.default_rng(2).integers(0, 5, size=100).astype(np.float32)  # twenty of each
    best = sorted(sorted(range(100), key=lambda row: (-score[row], row))[:kept])
    assert sorted(clip_score(score, kept, 0, kept).tolist()) == best
    for seed in range(3):
        few = max(kept // 3, 1)
        picks = clip_score(score, few, seed, kept)
        assert picks.tolist() == [best[at] for at in random_subset(kept, few, seed)]
        assert picks.dtype == np.int64


def test_each_of_the_kept_rows_is_drawn_as_often_as_another():
    score = np.arange(40, dtype=np.float32)
    drawn = np.bincount(
        np.concatenate([clip_score(score, 5, seed, 20) for seed in range(2000)]), minlength=40
    )
    assert (drawn[:20] == 0).all()
    assert_allclose(drawn[20:], 500, atol=5 * np.sqrt(2000 * 0.25 * 0.75))  # five standard deviations


def test_the_kept_part_is_rounded_and_never_empty():
    assert [kept_rows(n, 0.5) for n in (1, 2, 3, 4, 100)] == [1, 1, 2, 2, 50]
    assert (kept_rows(10, 0.3), kept_rows(100, 0.29), kept_rows(7, 1.0), kept_rows(3, 0.1)) == (3, 29, 7, 1)


def test_more_picks_than_are_kept_and_scores_that_are_none_are_errors():
    score = np.arange(10, dtype=np.float32)
    with pytest.raises(ValueError, match="k=6 rows from 5"):
        clip_score(score, 6, 0, 5)
    score[3] = np.nan
    with pytest.raises(ValueError, match="CLIP score of row 3 is not finite"):
        clip_score(score, 2, 0, 5)
