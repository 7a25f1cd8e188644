"""Nested subsets: a smaller one is the beginning of a larger one."""

import numpy as np
import pytest

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.nested import nested_subsets
from mmdd_ray.evaluation.pairs import PairSet

N = 9


def pair_set() -> PairSet:
    images = np.arange(N, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    return PairSet(images, [[f"{i}"] * (1 + i % 3) for i in range(N)])


def learnt(with_vectors: bool) -> LearntPairs:
    own_N = np.arange(N)
    return LearntPairs(
        pixels=np.tile(own_N[:, None, None, None], (1, 3, 2, 2)).astype(np.float32),
        ids=np.tile(own_N[:, None], (1, 4)),
        mask=np.ones((N, 4), np.int64),
        offsets=np.tile(own_N[:, None, None], (1, 4, 5)).astype(np.float32),
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        vocabulary="words",
        captions=[[f"{i}"] for i in own_N],
        nearest=[f"near {i}" for i in own_N],
        vectors=own_N[:, None].astype(np.float32) if with_vectors else None,
        similarity=(own_N[:, None] * 10 + own_N).astype(np.float32) if with_vectors else None,
    )


def test_smaller_subsets_begin_larger_ones() -> None:
    large, small, all_of_it = nested_subsets(pair_set(), [5, 2, N], seed=3)
    assert (small.n_images, large.n_images) == (2, 5)
    assert np.array_equal(large.images[:2], small.images)
    assert np.array_equal(all_of_it.images[:5], large.images)
    assert large.captions[:2] == small.captions
    for one in (small, large, all_of_it):  # captions are still those of their images
        assert [own[0] for own in one.captions] == [str(image[0, 0, 0]) for image in one.images]
        assert [len(own) for own in one.captions] == [1 + image[0, 0, 0] % 3 for image in one.images]
    assert sorted(own[0] for own in all_of_it.captions) == [str(i) for i in range(N)]


def test_the_seed_alone_decides() -> None:
    (one,), (again,), (other,) = (nested_subsets(pair_set(), [6], seed) for seed in (1, 1, 2))
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("with_vectors", [False, True])
def test_learnt_pairs_are_taken_with_all_that_is_theirs(with_vectors: bool) -> None:
    small, large = nested_subsets(learnt(with_vectors), [3, 6], seed=0)
    rows = small.ids[:, 0]
    assert np.array_equal(large.ids[:3, 0], rows)
    assert np.array_equal(small.pixels[:, 0, 0, 0], rows)
    assert np.array_equal(small.offsets[:, 3, 4], rows)
    assert small.captions == [[f"{row}"] for row in rows]
    assert small.nearest == [f"near {row}" for row in rows]
    assert (small.mean, small.std, small.vocabulary) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "words")
    if with_vectors:
        assert np.array_equal(small.vectors[:, 0], rows)
        assert np.array_equal(small.similarity, rows[:, None] * 10 + rows)
    else:
        assert small.vectors is None
        assert small.similarity is None


@pytest.mark.parametrize("count", [0, N + 1])
def test_counts_that_cannot_be_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"choose from 1 to {N}"):
        nested_subsets(pair_set(), [2, count], seed=0)
