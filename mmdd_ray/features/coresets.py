"""Coresets: rows chosen from a feature store, as baselines and as the initialisation of a distilled set.

Features come as re-iterable blocks (a list of arrays, or an object whose ``__iter__`` opens the store anew),
so a store of millions of rows is never in memory: ``herding`` and ``k_center`` make a pass for several picks,
``k_means`` three in all; ``clip_score`` takes one float a row. Results depend on the rows and the seed, not on
how the rows are cut into blocks.
"""

# N rows of the store, B rows of a chunk, D feature width, K rows to pick

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from mmdd_ray.features.row_passes import (
    FeatureBlocks,
    LookAhead,
    best_row,
    chunks,
    dots,
    products,
    rows_at,
    squared_distance,
    survey_rows,
)

Choose = TypeVar("Choose", bound=Callable[..., np.ndarray])

# Rows that k-means is fitted on, per cluster: the default of FAISS (Johnson et al., 2017).
_SAMPLES_PER_CLUSTER = 256


def joint_features(image_BV: np.ndarray, text_BL: np.ndarray) -> np.ndarray:
    """Rows [image, text] for coresets of pairs, (B, d_v + d_l) float32; each part is brought to unit norm."""
    return np.concatenate([_unit_rows(image_BV), _unit_rows(text_BL)], axis=1)


def random_subset(n_rows: int, k: int, seed: int) -> np.ndarray:
    """K distinct rows drawn uniformly; int64 indices in order of the draw.

    Raises:
        ValueError: if k is below 1 or above n_rows.
    """
    _check_k(k, n_rows)
    return np.random.default_rng(seed).choice(n_rows, size=k, replace=False)


def pair_scores(image_BD: np.ndarray, text_BD: np.ndarray) -> np.ndarray:
    """CLIP score of each pair: the cosine of its image's and its caption's features, (B,) float32.

    A pair's score does not depend on the rows beside it, so copies have exactly the same score.

    Examples:
        >>> pair_scores(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 2.0]])).tolist()
        [1.0, 0.0]
    """
    image_BD, text_BD = (np.ascontiguousarray(part_BD, np.float32) for part_BD in (image_BD, text_BD))
    norms_B = np.sqrt(dots(image_BD, image_BD)) * np.sqrt(dots(text_BD, text_BD))
    return dots(image_BD, text_BD) / norms_B


def kept_rows(n_rows: int, fraction: float) -> int:
    """How many rows are the fraction of them with the best CLIP scores: rounded, but at least one."""
    return max(round(fraction * n_rows), 1)


def clip_score(score_N: np.ndarray, k: int, seed: int, kept: int) -> np.ndarray:
    """K rows drawn uniformly from the ``kept`` rows with the highest scores, DataComp's filtering baseline.

    Gadre et al. (2023, arXiv 2304.14108) keep the pairs whose image and caption agree best under CLIP. Ties for the
    last places go to the lowest indices.

    Args:
        score_N: Of every row, as ``pair_scores`` gives it.
        kept: Rows to draw from, at most all.

    Returns:
        (K,) int64 indices in order of the draw.

    Raises:
        ValueError: if k is below 1 or above the number of kept rows, or a score is not finite.
    """
    best = best_rows(score_N, kept)
    return best[random_subset(len(best), k, seed)]


def best_rows(score_N: np.ndarray, kept: int) -> np.ndarray:
    """The ``kept`` rows with the highest scores, (kept,) int64 in ascending order; ties go to the lowest indices.

    Raises:
        ValueError: if a score is not finite.
    """
    strange = np.flatnonzero(~np.isfinite(score_N))
    if len(strange):
        raise ValueError(f"the CLIP score of row {strange[0]} is not finite; drop or re-encode that row")
    return np.sort(np.argsort(-score_N, kind="stable")[:kept])


def _on_one_thread(choose: Choose) -> Choose:
    """Several threads would wait for each other more than they work: a chunk is a millisecond's work."""

    @wraps(choose)
    def limited(*arguments: Any, **options: Any) -> np.ndarray:
        import torch  # noqa: F401  # before its threads are limited
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return choose(*arguments, **options)

    return limited  # type: ignore[return-value]


@_on_one_thread
def herding(
    features: FeatureBlocks, k: int, seed: int = 0, on_pick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Greedy mean matching (Welling, 2009): each pick brings the picks' mean closest to the mean of all.

    The t-th pick minimises ‖μ − (Σ picks + x)/t‖, that is, it is the unpicked row nearest to t·μ − Σ picks;
    ties go to the lowest index. Nothing is random: ``seed`` has no effect and is there so that all coresets
    are called alike.

    Args:
        on_pick: called after every pick.

    Returns:
        (K,) int64 indices in order of choice.

    Raises:
        ValueError: if k is not in 1 … number of rows, or the features are not finite (rows, D) blocks.
    """
    survey = survey_rows(features)
    _check_k(k, survey.n_rows)
    half_norm_N = survey.squared_norm_N
    half_norm_N /= 2  # in place: these arrays have as many numbers as there are rows
    wanted_D = survey.mean_D.copy()
    mean_product_N = np.empty(survey.n_rows, np.float32)
    products(features, wanted_D.astype(np.float32)[None], mean_product_N[None])
    # the row nearest to w is the one with the greatest ⟨x, w⟩ - ‖x‖²/2
    score_N = mean_product_N - half_norm_N
    ahead = LookAhead(features, survey.n_rows)
    picks: list[int] = []

    def exact(_: np.ndarray, rows_BD: np.ndarray) -> np.ndarray:
        return -squared_distance(rows_BD, wanted_D) / 2

    while True:
        index = best_row(features, score_N, survey.slack(wanted_D) * (1 + ahead.used), exact)
        picks.append(index)
        on_pick()
        if len(picks) == k:
            return np.array(picks, dtype=np.int64)
        half_norm_N[index] = np.inf
        if index not in ahead:
            np.subtract(ahead.look(index, score_N, wanted_D), half_norm_N, out=score_N)
        row_D, product_N = ahead.use(index)
        wanted_D += survey.mean_D - row_D
        score_N += mean_product_N
        score_N -= product_N
        score_N[index] = -np.inf


@_on_one_thread
def k_center(
    features: FeatureBlocks, k: int, seed: int, on_pick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Greedy farthest point (Gonzalez, 1985): a random first row, then always the farthest from all picks.

    Ties go to the lowest index.

    Args:
        on_pick: called after every pick.

    Returns:
        (K,) int64 indices in order of choice.

    Raises:
        ValueError: if k is not in 1 … number of rows, or the features are not finite (rows, D) blocks.
    """
    survey = survey_rows(features)
    _check_k(k, survey.n_rows)
    squared_norm_N = survey.squared_norm_N
    distance_N = np.full(survey.n_rows, np.inf, dtype=np.float32)  # to the nearest pick, squared
    picked_KD = np.empty((k, len(survey.mean_D)), np.float32)
    slack = 0.0
    ahead = LookAhead(features, survey.n_rows)
    picks = [int(np.random.default_rng(seed).integers(survey.n_rows))]
    # of the rows that were asked for exact distances: to how many picks, and the least; memory that none asks for is
    # not taken
    seen_N, exact_N = np.zeros(survey.n_rows, np.int32), np.zeros(survey.n_rows, np.float32)

    def exact(index_B: np.ndarray, rows_BD: np.ndarray) -> np.ndarray:
        for seen in np.unique(seen_N[index_B]):
            at_B = seen_N[index_B] == seen
            found_B = np.where(seen > 0, exact_N[index_B[at_B]], np.float32(np.inf))
            for pick_D in picked_KD[seen : len(picks)]:
                found_B = np.minimum(found_B, squared_distance(rows_BD[at_B], pick_D))
            exact_N[index_B[at_B]] = found_B
        seen_N[index_B] = len(picks)
        return exact_N[index_B]

    while True:
        on_pick()
        if len(picks) == k:
            return np.array(picks, dtype=np.int64)
        index = picks[-1]
        if index not in ahead:
            ahead.look(index, distance_N)
        row_D, product_N = ahead.use(index)
        picked_KD[len(picks) - 1] = row_D
        to_last_N = -2 * product_N
        to_last_N += squared_norm_N
        to_last_N += squared_norm_N[index]
        np.minimum(distance_N, to_last_N, out=distance_N)
        distance_N[index] = -np.inf
        slack = max(slack, survey.slack(row_D))
        picks.append(best_row(features, distance_N, slack, exact))


def k_means(features: FeatureBlocks, k: int, seed: int) -> np.ndarray:
    """One row per k-means cluster, the one nearest to its centre: prompts spread over the whole data.

    The centres are fitted on a random sample of at most 256·K rows. A cluster that no row belongs to (fewer
    than K distinct rows) is represented by the row that lies farthest from its own centre.

    Returns:
        (K,) distinct int64 indices in order of the clusters.

    Raises:
        ValueError: if k is not in 1 … number of rows, or the features are not finite (rows, D) blocks.
    """
    from sklearn.cluster import MiniBatchKMeans  # 3 s

    n_rows = survey_rows(features).n_rows
    _check_k(k, n_rows)
    n_samples = min(n_rows, _SAMPLES_PER_CLUSTER * k)
    sample = np.sort(np.random.default_rng(seed).choice(n_rows, size=n_samples, replace=False))
    fitted = MiniBatchKMeans(k, random_state=seed, n_init=3).fit(rows_at(features, sample))
    centres_KD = fitted.cluster_centers_.astype(np.float32)
    half_norm_K = dots(centres_KD, centres_KD) / 2

    nearest_K = np.full(k, -1, dtype=np.int64)
    nearest_distance_K = np.full(k, np.inf)
    distance_N = np.empty(n_rows)
    for rows, chunk_BD in chunks(features):
        cluster_B = (chunk_BD @ centres_KD.T - half_norm_K).argmax(axis=1)  # the nearest, as in herding
        distance_B = squared_distance(chunk_BD, centres_KD[cluster_B])
        distance_N[rows] = distance_B
        by_distance_B = np.lexsort((distance_B, cluster_B))  # stable: lowest index first among equals
        found, first = np.unique(cluster_B[by_distance_B], return_index=True)
        best = by_distance_B[first]
        closer = distance_B[best] < nearest_distance_K[found]
        nearest_K[found[closer]] = rows.start + best[closer]
        nearest_distance_K[found[closer]] = distance_B[best[closer]]

    empty = nearest_K < 0
    distance_N[nearest_K[~empty]] = -1  # below every distance, so no row stands for two clusters
    nearest_K[empty] = np.argsort(-distance_N, kind="stable")[: empty.sum()]
    return nearest_K


def _unit_rows(features_BD: np.ndarray) -> np.ndarray:
    rows_BD = features_BD.astype(np.float32)
    return rows_BD / np.linalg.norm(rows_BD, axis=1, keepdims=True)


def _check_k(k: int, n_rows: int) -> None:
    if not 1 <= k <= n_rows:
        raise ValueError(
            f"cannot choose k={k} rows from {n_rows}; k must be between 1 and the number of rows"
        )
