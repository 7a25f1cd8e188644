import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from mmdd_ray.features.moments import Moments, MomentsSum


def pairs(n: int, *, mean: float = 0.0, d_v: int = 6, d_l: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Correlated image and text features of unit spread, float32."""
    rng = np.random.default_rng(n)
    shared = rng.normal(size=(n, d_v))
    image = mean + shared
    text = mean + shared[:, :d_l] + 0.5 * rng.normal(size=(n, d_l))
    return image.astype(np.float32), text.astype(np.float32)


def reference(image: np.ndarray, text: np.ndarray) -> Moments:
    """One shot in float64."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    v, l = image - image.mean(0), text - text.mean(0)  # noqa: E741
    return Moments(len(image), image.mean(0), text.mean(0), v.T @ v, l.T @ l, v.T @ l)


def weighted_reference(image: np.ndarray, text: np.ndarray, weights: np.ndarray) -> Moments:
    """One shot in float64, with the weights."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    total = weights.sum()
    mean_v, mean_l = weights @ image / total, weights @ text / total
    v, l = image - mean_v, text - mean_l  # noqa: E741
    scatter = [left.T @ (weights[:, None] * right) for left, right in ((v, v), (l, l), (v, l))]
    return Moments(total, mean_v, mean_l, *scatter)


def assert_same(ours: Moments, known: Moments, rtol: float) -> None:
    """Each entry to rtol of its own scale: that of a scatter entry (i, j) is √(S_ii S_jj)."""
    assert ours.count == known.count
    spread_v, spread_l = np.sqrt(known.vv.diagonal()), np.sqrt(known.ll.diagonal())
    assert_allclose(ours.mean_v, known.mean_v, rtol=rtol, atol=rtol)
    assert_allclose(ours.mean_l, known.mean_l, rtol=rtol, atol=rtol)
    assert (np.abs(ours.vv - known.vv) <= rtol * np.outer(spread_v, spread_v)).all()
    assert (np.abs(ours.ll - known.ll) <= rtol * np.outer(spread_l, spread_l)).all()
    assert (np.abs(ours.vl - known.vl) <= rtol * np.outer(spread_v, spread_l)).all()


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_long_block_agrees_with_float64_near_and_far_from_zero(mean, dtype):
    image, text = (features.astype(dtype) for features in pairs(20_000, mean=mean))
    assert_same(Moments.of(image, text), reference(image, text), rtol=1e-6)


def test_half_precision_features_lose_nothing_further():
    image, text = (features.astype(np.float16) for features in pairs(3000, mean=3.0))
    assert_same(Moments.of(image, text), reference(image, text), rtol=1e-6)


def test_blocks_of_one_row_far_from_zero_add_up():
    image, text = pairs(400, mean=1000.0)
    total = Moments.empty(6, 4)
    for row in range(len(image)):
        total += Moments.of(image[row : row + 1], text[row : row + 1])
    assert_same(total, reference(image, text), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=12), order=st.randoms(use_true_random=False))
def test_no_split_and_no_tree_of_merges_changes_the_moments(cuts, order):
    image, text = pairs(300, mean=50.0)
    edges = [0, *sorted(cuts), 300]  # equal cuts make empty blocks
    blocks = [Moments.of(image[a:b], text[a:b]) for a, b in itertools.pairwise(edges)]
    while len(blocks) > 1:
        order.shuffle(blocks)
        blocks.append(blocks.pop() + blocks.pop())
    assert_same(blocks[0], reference(image, text), rtol=1e-6)


def test_covariances_are_numpys_and_torchs():
    image, text = pairs(50)
    moments = Moments.of(image, text)
    biased = np.cov(image, text, rowvar=False, ddof=0)
    assert_allclose(moments.covariance_vv, biased[:6, :6], rtol=1e-6, atol=1e-6)
    assert_allclose(moments.covariance_ll, biased[6:, 6:], rtol=1e-6, atol=1e-6)
    assert_allclose(moments.cross_covariance, biased[:6, 6:], rtol=1e-6, atol=1e-6)
    assert_allclose(moments.covariance("vl", ddof=1), biased[:6, 6:] * 50 / 49, rtol=1e-6, atol=1e-6)


def test_a_covariance_of_too_few_pairs_is_an_error():
    image, text = pairs(1)
    with pytest.raises(ValueError, match="ddof=1 needs more than 1 pairs, got 1"):
        Moments.of(image, text).covariance("vl", ddof=1)


def test_removing_rows_inverts_adding_them():
    image, text = pairs(1000, mean=20.0)
    kept, removed = Moments.of(image[:700], text[:700]), Moments.of(image[700:], text[700:])
    assert_same(kept + removed - removed, kept, rtol=1e-10)
    assert_same((kept + removed) - kept, removed, rtol=1e-10)


def test_removing_everything_leaves_nothing():
    moments = Moments.of(*pairs(10))
    assert (moments - moments).count == 0
    assert not (moments - moments).vl.any()


def test_removing_more_than_was_counted_is_an_error():
    with pytest.raises(ValueError, match="cannot remove 6 pairs from moments of 5"):
        Moments.of(*pairs(5)) - Moments.of(*pairs(6))


@pytest.mark.parametrize("sizes", [[1], [5000], [512] * 9, [1023, 1, 1, 1024, 3000], [0, 700, 0, 2100]])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sum_over_batches_is_that_of_all_pairs(sizes, weighted):
    image, text = pairs(sum(sizes), mean=100.0)
    weights = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 4.0], size=len(image)) if weighted else None
    total, edges = MomentsSum(), np.cumsum([0, *sizes])
    for a, b in itertools.pairwise(edges):
        total.add(image[a:b], text[a:b], None if weights is None else weights[a:b])
        total.moments()  # a look in between changes nothing
    known = reference(image, text) if weights is None else weighted_reference(image, text, weights)
    assert_same(total.moments(), known, rtol=1e-6)


def test_a_sum_whose_batches_lie_far_from_the_first_is_as_exact():
    image, text = pairs(8192)
    image += 10 * np.arange(8).repeat(1024)[:, None].astype(np.float32)
    total = MomentsSum()
    for start in range(0, 8192, 512):
        total.add(image[start : start + 512], text[start : start + 512])
    assert_same(total.moments(), reference(image, text), rtol=1e-6)


def test_a_first_row_far_from_all_others_costs_no_digits():
    image, text = pairs(20_000, mean=1000.0)
    image[0], text[0] = 0, 0
    first, total = Moments.of(image[:1], text[:1]), MomentsSum()
    for a, b in ((0, 1), (1, 20_000)):
        total.add(image[a:b], text[a:b])
    assert_same(total.moments(), reference(image, text), rtol=3e-6)
    assert_same(total.moments() - first, reference(image[1:], text[1:]), rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_clusters_far_apart_add_up_whatever_their_order(weighted):
    """A scatter within each of them is a millionth of that between them."""
    image, text = pairs(6000)
    image += 1000 * np.arange(6).repeat(1000)[:, None].astype(np.float32)
    weights = np.random.default_rng(3).choice([0.5, 1.0, 4.0], size=6000) if weighted else np.ones(6000)
    total = MomentsSum()
    for start in range(0, 6000, 300):
        rows = slice(start, start + 300)
        total.add(image[rows], text[rows], weights[rows] if weighted else None)
    assert_same(total.moments(), weighted_reference(image, text, weights), rtol=1e-6)


def test_a_row_that_is_not_finite_is_found_with_its_products():
    image, text = pairs(2000)
    image[1990, 2] = np.inf
    total = MomentsSum()
    total.add(image, text)
    with pytest.raises(ValueError, match="image features hold values that are not finite"):
        total.moments()


def test_a_sum_takes_batches_of_one_width():
    image, text = pairs(10)
    total = MomentsSum()
    with pytest.raises(ValueError, match="no batch"):
        total.moments()
    total.add(image, text)
    with pytest.raises(ValueError, match="text features 3 wide do not combine with such of width 4"):
        total.add(image, text[:, :3])
    assert total.moments().count == 10


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_weighted_pairs_agree_with_float64_near_and_far_from_zero(mean, scale):
    image, text = pairs(20_000, mean=mean)
    weights = scale * np.random.default_rng(0).exponential(size=20_000)
    ours, known = Moments.of(image, text, weights), weighted_reference(image, text, weights)
    assert ours.count == pytest.approx(known.count, rel=1e-12)
    assert_same(replace(ours, count=known.count), known, rtol=1e-6)
    assert_allclose(ours.cross_covariance, known.vl / known.count, rtol=0, atol=1e-6 * 2)
    assert (ours.vv == ours.vv.T).all()


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=12), order=st.randoms(use_true_random=False))
def test_no_split_and_no_tree_of_merges_changes_weighted_moments(cuts, order):
    image, text = pairs(300, mean=50.0)
    weights = np.random.default_rng(1).choice([0.0, 0.25, 1.0, 7.5], size=300)
    edges = [0, *sorted(cuts), 300]
    blocks = [Moments.of(image[a:b], text[a:b], weights[a:b]) for a, b in itertools.pairwise(edges)]
    while len(blocks) > 1:
        order.shuffle(blocks)
        blocks.append(blocks.pop() + blocks.pop())
    assert_same(blocks[0], weighted_reference(image, text, weights), rtol=1e-6)  # dyadic: the total is exact


def test_unit_weights_give_the_bytes_of_no_weights():
    image, text = pairs(3000, mean=7.0)
    plain = Moments.of(image, text).to_bytes("e", "float16")
    for ones in (np.ones(3000), np.ones(3000, np.float32), np.ones(3000, bool)):
        assert Moments.of(image, text, ones).to_bytes("e", "float16") == plain


def test_a_weight_is_how_often_a_pair_counts():
    image, text = pairs(40, mean=3.0)
    times = np.arange(40) % 4
    repeated = Moments.of(np.repeat(image, times, axis=0), np.repeat(text, times, axis=0))
    weighted = Moments.of(image, text, times)
    assert_same(weighted, repeated, rtol=1e-6)
    assert_allclose(weighted.covariance("vl", ddof=1), repeated.covariance("vl", ddof=1), rtol=1e-5)
    assert Moments.from_bytes(weighted.to_bytes("e", "float16")).count == times.sum()


def test_pairs_of_weight_0_are_left_out_whatever_they_hold():
    image, text = pairs(50)
    kept = np.arange(50) % 3 == 0
    image[~kept] = np.nan
    weighted = Moments.of(image, text, kept)
    assert_same(weighted, Moments.of(image[kept], text[kept]), rtol=0)
    assert weighted.count == 17
    assert Moments.of(image, text, np.zeros(50)).count == 0


def test_weighted_pairs_can_be_removed_again():
    image, text = pairs(1000, mean=20.0)
    weights = np.random.default_rng(2).uniform(0.1, 1.0, size=1000)
    kept = Moments.of(image[:700], text[:700], weights[:700])
    removed = Moments.of(image[700:], text[700:], weights[700:])
    rest = kept + removed - removed
    assert rest.count == pytest.approx(kept.count, rel=1e-12)
    assert_same(replace(rest, count=kept.count), kept, rtol=1e-10)
    assert (kept + removed - removed - kept).count == 0
    assert not (kept + removed - removed - kept).vl.any()


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(4), np.array([1, 1, np.nan, 1]), np.ones((4, 1))])
def test_weights_that_cannot_be_are_errors(weights):
    with pytest.raises(ValueError, match="4 pairs need as many finite weights of at least 0"):
        Moments.of(*pairs(4), weights)


def test_bytes_round_trip_exactly_and_remember_the_encoder():
    moments = Moments.of(*pairs(100, mean=5.0))
    data = moments.to_bytes(encoder="tiny-clip", feature_dtype="float16")
    assert_same(Moments.from_bytes(data, encoder="tiny-clip"), moments, rtol=0)
    assert moments.to_bytes(encoder="tiny-clip", feature_dtype="float16") == data
    with pytest.raises(ValueError, match="of encoder 'tiny-clip', not 'ViT-B-32'"):
        Moments.from_bytes(data, encoder="ViT-B-32")


def test_features_that_cannot_be_counted_are_errors():
    image, text = pairs(4)
    with pytest.raises(ValueError, match="same B pairs"):
        Moments.of(image[:3], text)
    with pytest.raises(ValueError, match="do not combine"):
        Moments.of(image, text) + Moments.of(image[:, :5], text)
    image[2, 1] = np.nan
    with pytest.raises(ValueError, match="image features hold values that are not finite"):
        Moments.of(image, text)
