"""Coresets: rows chosen from a feature store, as baselines and as the initialisation of a distilled set.

Features come as re-iterable blocks (a list of arrays, or an object whose ``__iter__`` opens the store anew),
so a store of millions of rows is never in memory: ``herding`` and ``k_center`` make a pass for several picks,
``k_means`` three in all; ``clip_score`` takes one float a row. Results depend on the rows and the seed, not on
how the rows are cut into blocks.
"""

# N rows of the store, B rows of a chunk, D feature width, K rows to pick

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np

FeatureBlocks = Iterable[np.ndarray]
"""(rows, D) float16 or float32 blocks in the order of the row indices; every iteration starts from row 0."""

Choose = TypeVar("Choose", bound=Callable[..., np.ndarray])

_AHEAD = 7  # likely picks that a pass is made for, 4 bytes a row each; more save few passes
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
    image_BD, text_BD = (np.ascontiguousarray(part_BD, np.float32) for part_BD in (image_BD, text_BD))
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
        ValueError: if k is below 1 or above the number of rows, or the features are not finite (rows, D)
        blocks.
    """
    survey = _survey(features)
    _check_k(k, survey.n_rows)
    half_norm_N = survey.squared_norm_N
    half_norm_N /= 2  # in place: these arrays have as many numbers as there are rows
    wanted_D = survey.mean_D.copy()
    mean_product_N = np.empty(survey.n_rows, np.float32)
    _products(features, wanted_D.astype(np.float32)[None], mean_product_N[None])
    # the row nearest to w is the one with the greatest ⟨x, w⟩ - ‖x‖²/2
    score_N = mean_product_N - half_norm_N
    ahead = _LookAhead(features, survey.n_rows)
    picks: list[int] = []

    def exact(_: np.ndarray, rows_BD: np.ndarray) -> np.ndarray:
        return -_squared_distance(rows_BD, wanted_D) / 2

    while True:
        index = _best_row(features, score_N, survey.slack(wanted_D) * (1 + ahead.used), exact)
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
        ValueError: if k is below 1 or above the number of rows, or the features are not finite (rows, D)
        blocks.
    """
    survey = _survey(features)
    _check_k(k, survey.n_rows)
    squared_norm_N = survey.squared_norm_N
    distance_N = np.full(survey.n_rows, np.inf, dtype=np.float32)  # to the nearest pick, squared
    picked_KD = np.empty((k, len(survey.mean_D)), np.float32)
    slack = 0.0
    ahead = _LookAhead(features, survey.n_rows)
    picks = [int(np.random.default_rng(seed).integers(survey.n_rows))]
    # of the rows that were asked for exact distances: to how many picks, and the least; memory that none asks for is
    # not taken
    seen_N, exact_N = np.zeros(survey.n_rows, np.int32), np.zeros(survey.n_rows, np.float32)

    def exact(index_B: np.ndarray, rows_BD: np.ndarray) -> np.ndarray:
        for seen in np.unique(seen_N[index_B]):
            at_B = seen_N[index_B] == seen
            found_B = np.where(seen > 0, exact_N[index_B[at_B]], np.float32(np.inf))
            for pick_D in picked_KD[seen : len(picks)]:
                found_B = np.minimum(found_B, _squared_distance(rows_BD[at_B], pick_D))
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
        picks.append(_best_row(features, distance_N, slack, exact))


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

    n_rows = _survey(features).n_rows
    _check_k(k, n_rows)
    n_samples = min(n_rows, _SAMPLES_PER_CLUSTER * k)
    sample = np.sort(np.random.default_rng(seed).choice(n_rows, size=n_samples, replace=False))
    fitted = MiniBatchKMeans(k, random_state=seed, n_init=3).fit(_rows_at(features, sample))
    centres_KD = fitted.cluster_centers_.astype(np.float32)
    half_norm_K = _dots(centres_KD, centres_KD) / 2

    nearest_K = np.full(k, -1, dtype=np.int64)
    nearest_distance_K = np.full(k, np.inf)
    distance_N = np.empty(n_rows)
    for rows, chunk_BD in _chunks(features):
        cluster_B = (chunk_BD @ centres_KD.T - half_norm_K).argmax(axis=1)  # the nearest, as in herding
        distance_B = _squared_distance(chunk_BD, centres_KD[cluster_B])
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
    """One pass over the rows: (row indices, float32 rows), a few cache-sized rows at a time.

    A chunk lies where the next one will: copy what is to be kept.
    """
    start = 0
    for block_BD in features:
        # not a mapped array, whose every slice is made a mapped array again
        block_BD, convert = np.asarray(block_BD), _converter(block_BD)
        for offset in range(0, len(block_BD), _CHUNK_ROWS):
            chunk_BD = convert(block_BD[offset : offset + _CHUNK_ROWS])
            yield slice(start + offset, start + offset + len(chunk_BD)), chunk_BD
        start += len(block_BD)


def _converter(block_BD: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Makes rows of the block float32: float16 ones in a place that is used again."""
    if block_BD.dtype != np.float16:
        return lambda chunk_BD: np.require(chunk_BD, np.float32, ["C", "W"])
    import torch  # converts three times faster than NumPy, and most of a pass is that

    buffer = torch.empty(_CHUNK_ROWS, *block_BD.shape[1:])

    def convert(chunk_BD: np.ndarray) -> np.ndarray:
        chunk_BD = np.require(chunk_BD, requirements=["C", "W"])  # torch takes no other
        return buffer[: len(chunk_BD)].copy_(torch.from_numpy(chunk_BD)).numpy()

    return convert


class _Survey(NamedTuple):
    """What one pass over all rows finds."""

    n_rows: int
    mean_D: np.ndarray
    """float64."""
    squared_norm_N: np.ndarray
    """float32, 4 bytes a row."""
    longest: float
    """Length of the longest row."""

    def slack(self, point_D: np.ndarray) -> float:
        """How much lower than the best score that of the best row may be, for distances to a point, by rounding.

        Products of D terms, and differences of them, are off by no more than λ √D u times the lengths of both, but for
        a chance of 2 D exp(-λ²/2) (Higham & Mary, SIAM J. Sci. Comput. 41, 2019); here λ = 10.
        """
        lengths = self.longest + float(np.linalg.norm(point_D))
        rounding = 10 * len(self.mean_D) ** 0.5 * float(np.finfo(np.float32).eps) / 2
        return 2 * rounding * lengths**2  # of the best score and of that of the best row


def _survey(features: FeatureBlocks) -> _Survey:
    """Checks every block."""
    if isinstance(features, np.ndarray | Iterator):
        raise ValueError(
            f"features must be blocks that can be read many times, not a {type(features).__name__}; "
            f"put the array(s) in a list"
        )
    n_rows, shapes, sum_D, norms = 0, set(), np.zeros(1), []
    for block_BD in features:
        shapes.add(block_BD.shape[1:])
        if block_BD.ndim != 2 or len(shapes) > 1:
            raise ValueError(
                f"features must be (rows, D) blocks of one width D, got a block {block_BD.shape}"
            )
        norm_B = np.empty(len(block_BD), np.float32)
        for rows, chunk_BD in _chunks([block_BD]):
            sum_D = sum_D + chunk_BD.sum(axis=0, dtype=np.float64)
            norm_B[rows] = _dots(chunk_BD, chunk_BD)
            if not (np.isfinite(sum_D).all() and np.isfinite(norm_B[rows]).all()):
                raise ValueError(
                    f"a feature among rows 0 to {n_rows + rows.stop - 1} is not finite, or too large to be squared; "
                    "drop or re-encode that row"
                )
        norms.append(norm_B)
        n_rows += len(block_BD)
    squared_norm_N = np.concatenate([np.empty(0, np.float32), *norms])
    longest = float(np.sqrt(squared_norm_N.max(initial=0)))
    return _Survey(n_rows, sum_D / max(n_rows, 1), squared_norm_N, longest)


class _LookAhead:
    """Products of all rows with the picks that are likely to come next, a few for each pass over the rows."""

    def __init__(self, features: FeatureBlocks, n_rows: int) -> None:
        self.used = 0
        """Picks since the last pass."""
        self._features = features
        self._slots: dict[int, int] = {}
        self._row_MD = np.empty((0, 0), np.float32)
        # likely picks, the one that is wanted if it is none of them, and a further point
        self._product_MN = np.empty((_AHEAD + 2, n_rows), np.float32)

    def __contains__(self, index: int) -> bool:
        return index in self._slots

    def look(self, index: int, score_N: np.ndarray, point_D: np.ndarray | None = None) -> np.ndarray:
        """A pass for the row with this index and those of the best scores; gives the products with the point, too."""
        likely = np.argpartition(score_N, max(len(score_N) - _AHEAD, 0))[-_AHEAD:]
        chosen = np.unique([index, *likely[np.isfinite(score_N[likely])].tolist()])
        self._row_MD = _rows_at(self._features, chosen)
        self._slots, self.used = {row: slot for slot, row in enumerate(chosen.tolist())}, 0
        points = self._row_MD if point_D is None else np.vstack([self._row_MD, point_D.astype(np.float32)])
        _products(self._features, points, self._product_MN[: len(points)])
        return self._product_MN[len(points) - 1]

    def use(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A row (D,) that was looked at, and its product with every row (N,), until the next look."""
        self.used += 1
        slot = self._slots[index]
        return self._row_MD[slot], self._product_MN[slot]


def _products(features: FeatureBlocks, points_MD: np.ndarray, product_MN: np.ndarray) -> None:
    """One pass: fills in the product of each point with each row, float32."""
    import torch  # whose narrow products are twice as fast as NumPy's

    points = torch.from_numpy(points_MD).T
    for rows, chunk_BD in _chunks(features):
        product_MN[:, rows] = (torch.from_numpy(chunk_BD) @ points).T.numpy()


def _best_row(
    features: FeatureBlocks,
    score_N: np.ndarray,
    slack: float,
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> int:
    """Index of the row with the highest exact score, the lowest among equals.

    Only rows whose scores are within ``slack`` of the highest can be it. Where there are several of them, they are
    asked for exact scores, which copies share wherever they stand.

    Args:
        exact: scores of rows, given their indices and values.
    """
    near = np.flatnonzero(score_N >= score_N.max() - slack)
    if len(near) == 1:
        return int(near[0])
    best_score, best = -np.inf, -1
    for start in range(0, len(near), _CHUNK_ROWS):
        some = near[start : start + _CHUNK_ROWS]
        exact_B = exact(some, _rows_at(features, some))
        at = int(exact_B.argmax())
        if exact_B[at] > best_score:
            best_score, best = float(exact_B[at]), int(some[at])
    assert best >= 0, "no row is near the best"
    return best


def _rows_at(features: FeatureBlocks, indices: np.ndarray) -> np.ndarray:
    """The float32 rows at sorted indices; of a mapped block, the others are not read."""
    found_KD: np.ndarray | None = None
    start = 0
    for block_BD in features:
        # filled in place: pieces among temporaries would keep the heap from being used again
        if found_KD is None:
            found_KD = np.empty((len(indices), block_BD.shape[1]), np.float32)
        first, last = np.searchsorted(indices, (start, start + len(block_BD)))
        if last > first:
            found_KD[first:last] = np.asarray(block_BD)[indices[first:last] - start]
        start += len(block_BD)
    assert found_KD is not None, "no rows"
    return found_KD


def _squared_distance(rows_BD: np.ndarray, point_D: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each float32 row to a point (D,), or to its own (B, D); (B,) float32."""
    gap_BD = rows_BD - point_D.astype(np.float32, copy=False)
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
