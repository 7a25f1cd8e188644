"""Coresets: rows chosen from a feature store, as baselines and as the initialisation of a distilled set.

Features come as re-iterable blocks (a list of arrays, or an object whose ``__iter__`` opens the store anew),
so a store of millions of rows is never in memory: ``herding`` and ``k_center`` make one pass per pick,
``k_means`` three in all; ``clip_score`` takes one float a row. Results depend on the rows and the seed, not on
how the rows are cut into blocks.
"""

# N rows of the store, B rows of a chunk, D feature width, K rows to pick

from collections.abc import Callable, Iterable, Iterator

import numpy as np

FeatureBlocks = Iterable[np.ndarray]
"""(rows, D) float16 or float32 blocks in the order of the row indices; every iteration starts from row 0."""

_CHUNK_ROWS = 256  # 256 rows * 1,024 columns * 4 B = 1 MiB, so a chunk's temporaries stay in the CPU cache
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
    """
    image_BD, text_BD = (np.ascontiguousarray(_float32(part_BD)) for part_BD in (image_BD, text_BD))
    norms_B = np.sqrt(_dots(image_BD, image_BD)) * np.sqrt(_dots(text_BD, text_BD))
    return _dots(image_BD, text_BD) / norms_B


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


def herding(
    features: FeatureBlocks, k: int, seed: int = 0, on_pick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Greedy mean matching (Welling, 2009): each pick brings the picks' mean closest to the mean of all.

    The t-th pick minimises ‖μ − (Σ picks + x)/t‖, that is, it is the unpicked row nearest to t·μ − Σ picks;
    ties go to the lowest index. Nothing is random: ``seed`` has no effect and is there so that all coresets
    are called alike.

    Args:
        on_pick: called after every pick, each of which is a pass over the features.

    Returns:
        (K,) int64 indices in order of choice.

    Raises:
        ValueError: if k is below 1 or above the number of rows, or the features are not finite (rows, D)
        blocks.
    """
    n_rows, mean_D = _survey(features)
    _check_k(k, n_rows)
    taken_N = np.zeros(n_rows, dtype=bool)
    wanted_D = np.zeros_like(mean_D)

    def closeness(rows: slice, chunk_BD: np.ndarray) -> np.ndarray:
        return np.where(taken_N[rows], -np.inf, -_squared_distance(chunk_BD, wanted_D))

    picks = []
    for _ in range(k):
        wanted_D += mean_D
        index, row_D = _best_row(features, closeness)
        taken_N[index] = True
        wanted_D -= row_D
        picks.append(index)
        on_pick()
    return np.array(picks, dtype=np.int64)


def k_center(
    features: FeatureBlocks, k: int, seed: int, on_pick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """Greedy farthest point (Gonzalez, 1985): a random first row, then always the farthest from all picks.

    Ties go to the lowest index. One float32 distance per row is kept between the passes.

    Args:
        on_pick: called after every pick, each of which is a pass over the features.

    Returns:
        (K,) int64 indices in order of choice.

    Raises:
        ValueError: if k is below 1 or above the number of rows, or the features are not finite (rows, D)
        blocks.
    """
    n_rows, _ = _survey(features)
    _check_k(k, n_rows)
    first = int(np.random.default_rng(seed).integers(n_rows))
    picked_D = _rows_at(features, np.array([first]))[0]
    picks = [first]
    on_pick()
    distance_N = np.full(n_rows, np.inf, dtype=np.float32)

    def distance_to_picks(rows: slice, chunk_BD: np.ndarray) -> np.ndarray:
        distance_N[rows] = np.minimum(distance_N[rows], _squared_distance(chunk_BD, picked_D))
        return distance_N[rows]

    while len(picks) < k:
        distance_N[picks[-1]] = -1  # below every distance: copies of a pick come before the pick itself
        index, picked_D = _best_row(features, distance_to_picks)
        picks.append(index)
        on_pick()
    return np.array(picks, dtype=np.int64)


def k_means(features: FeatureBlocks, k: int, seed: int) -> np.ndarray:
    """One row per k-means cluster, the one nearest to its centre: prompts spread over the whole data.

    The centres are fitted on a random sample of at most 256·K rows. A cluster that no row belongs to (fewer
    than K distinct rows) is represented by the row that lies farthest from its own centre.

    Returns:
        (K,) distinct int64 indices in order of the clusters.

    Raises:
        ValueError: if k is below 1 or above the number of rows, or the features are not finite (rows, D)
        blocks.
    """
    from sklearn.cluster import MiniBatchKMeans  # 3 s
    from sklearn.metrics import pairwise_distances_argmin_min

    n_rows, _ = _survey(features)
    _check_k(k, n_rows)
    n_samples = min(n_rows, _SAMPLES_PER_CLUSTER * k)
    sample = np.sort(np.random.default_rng(seed).choice(n_rows, size=n_samples, replace=False))
    fitted = MiniBatchKMeans(k, random_state=seed, n_init=3).fit(_rows_at(features, sample))
    centres_KD = fitted.cluster_centers_.astype(np.float32)

    nearest_K = np.full(k, -1, dtype=np.int64)
    nearest_distance_K = np.full(k, np.inf)
    distance_N = np.empty(n_rows)
    for rows, chunk_BD in _chunks(features):
        cluster_B, distance_B = pairwise_distances_argmin_min(chunk_BD, centres_KD)
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


def _chunks(features: FeatureBlocks) -> Iterator[tuple[slice, np.ndarray]]:
    """One pass over the rows: (row indices, float32 rows), a few cache-sized rows at a time."""
    start = 0
    for block_BD in features:
        for offset in range(0, len(block_BD), _CHUNK_ROWS):
            chunk_BD = _float32(block_BD[offset : offset + _CHUNK_ROWS])
            yield slice(start + offset, start + offset + len(chunk_BD)), chunk_BD
        start += len(block_BD)


def _float32(chunk_BD: np.ndarray) -> np.ndarray:
    if chunk_BD.dtype != np.float16:
        return chunk_BD.astype(np.float32, copy=False)
    import torch  # converts six times faster than NumPy, and most of a pass is that

    return torch.from_numpy(np.array(chunk_BD)).float().numpy()  # a copy: a mapped file is read-only


def _survey(features: FeatureBlocks) -> tuple[int, np.ndarray]:
    """Checks every block; the number of rows and their float64 mean (D,)."""
    if isinstance(features, np.ndarray | Iterator):
        raise ValueError(
            f"features must be blocks that can be read many times, not a {type(features).__name__}; "
            f"put the array(s) in a list"
        )
    n_rows, shapes, sum_D = 0, set(), np.zeros(1)
    for block_BD in features:
        shapes.add(block_BD.shape[1:])
        if block_BD.ndim != 2 or len(shapes) > 1:
            raise ValueError(
                f"features must be (rows, D) blocks of one width D, got a block {block_BD.shape}"
            )
        for rows, chunk_BD in _chunks([block_BD]):
            sum_D = sum_D + chunk_BD.sum(axis=0, dtype=np.float64)
            if not np.isfinite(sum_D).all():
                raise ValueError(
                    f"a feature among rows 0 to {n_rows + rows.stop - 1} is not finite; drop or re-encode that row"
                )
        n_rows += len(block_BD)
    return n_rows, sum_D / max(n_rows, 1)


def _best_row(
    features: FeatureBlocks, score: Callable[[slice, np.ndarray], np.ndarray]
) -> tuple[int, np.ndarray]:
    """One pass: index and float32 values of the row with the highest score, the lowest index among equals."""
    best_score, best_index, best_D = -np.inf, -1, np.empty(0)
    for rows, chunk_BD in _chunks(features):
        score_B = score(rows, chunk_BD)
        at = int(score_B.argmax())
        if score_B[at] > best_score:
            best_score, best_index, best_D = score_B[at], rows.start + at, chunk_BD[at].copy()
    return best_index, best_D


def _rows_at(features: FeatureBlocks, indices: np.ndarray) -> np.ndarray:
    """One pass: the float32 rows at sorted indices, at least one."""
    found_KD: np.ndarray | None = None
    for rows, chunk_BD in _chunks(features):
        # filled in place: pieces among the chunks' temporaries would keep the heap from being used again
        if found_KD is None:
            found_KD = np.empty((len(indices), chunk_BD.shape[1]), np.float32)
        start, stop = np.searchsorted(indices, (rows.start, rows.stop))
        found_KD[start:stop] = chunk_BD[indices[start:stop] - rows.start]
    assert found_KD is not None, "no rows"
    return found_KD


def _squared_distance(rows_BD: np.ndarray, point_D: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each float32 row to a point, (B,) float32."""
    gap_BD = rows_BD - point_D.astype(np.float32)
    return _dots(gap_BD, gap_BD)


def _dots(a_BD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    # einsum, not a BLAS product: BLAS rounds a row differently by its place in the block, and copies must tie
    # exactly
    return np.einsum("bd,bd->b", a_BD, b_BD)


def _unit_rows(features_BD: np.ndarray) -> np.ndarray:
    rows_BD = features_BD.astype(np.float32)
    return rows_BD / np.linalg.norm(rows_BD, axis=1, keepdims=True)


def _check_k(k: int, n_rows: int) -> None:
    if not 1 <= k <= n_rows:
        raise ValueError(
            f"cannot choose k={k} rows from {n_rows}; k must be between 1 and the number of rows"
        )
