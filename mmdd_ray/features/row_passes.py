"""Passes over the rows of a feature store: what coresets are chosen by.

A pass converts a few cache-sized rows at a time to float32. Which row is best is told in two steps: by products of all
rows, which are fast and rounded differently in every place, and by exact distances of the few rows that rounding may
have put in the wrong order.
"""

# N rows of the store, B rows of a chunk, D feature width, M points, K rows that are asked for

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

FeatureBlocks = Iterable[np.ndarray]
"""(rows, D) float16 or float32 blocks in the order of the row indices; every iteration starts from row 0."""

_AHEAD = 15  # likely picks that a pass is made for, 4 bytes a row each; seven take a fifth longer
_CHUNK_ROWS = 256  # 256 rows * 1,024 columns * 4 B = 1 MiB, so a chunk's temporaries stay in the CPU cache


def chunks(features: FeatureBlocks) -> Iterator[tuple[slice, np.ndarray]]:
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


class Survey(NamedTuple):
    """Facts about all rows, found in one pass."""

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


def survey_rows(features: FeatureBlocks) -> Survey:
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
        for rows, chunk_BD in chunks([block_BD]):
            sum_D = sum_D + chunk_BD.sum(axis=0, dtype=np.float64)
            norm_B[rows] = dots(chunk_BD, chunk_BD)
            if not (np.isfinite(sum_D).all() and np.isfinite(norm_B[rows]).all()):
                raise ValueError(
                    f"a feature among rows 0 to {n_rows + rows.stop - 1} is not finite, or too large to be squared; "
                    "drop or re-encode that row"
                )
        norms.append(norm_B)
        n_rows += len(block_BD)
    squared_norm_N = np.concatenate([np.empty(0, np.float32), *norms])
    longest = float(np.sqrt(squared_norm_N.max(initial=0)))
    return Survey(n_rows, sum_D / max(n_rows, 1), squared_norm_N, longest)


class LookAhead:
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
        self._row_MD = rows_at(self._features, chosen)
        self._slots, self.used = {row: slot for slot, row in enumerate(chosen.tolist())}, 0
        points = self._row_MD if point_D is None else np.vstack([self._row_MD, point_D.astype(np.float32)])
        products(self._features, points, self._product_MN[: len(points)])
        return self._product_MN[len(points) - 1]

    def use(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A row (D,) that was looked at, and its product with every row (N,), until the next look."""
        self.used += 1
        slot = self._slots[index]
        return self._row_MD[slot], self._product_MN[slot]


def products(features: FeatureBlocks, points_MD: np.ndarray, product_MN: np.ndarray) -> None:
    """One pass: fills in the product of each point with each row, float32."""
    import torch  # whose narrow products are twice as fast as NumPy's

    points = torch.from_numpy(points_MD).T
    for rows, chunk_BD in chunks(features):
        product_MN[:, rows] = (torch.from_numpy(chunk_BD) @ points).T.numpy()


def best_row(
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
        exact_B = exact(some, rows_at(features, some))
        at = int(exact_B.argmax())
        if exact_B[at] > best_score:
            best_score, best = float(exact_B[at]), int(some[at])
    assert best >= 0, "no row is near the best"
    return best


def rows_at(features: FeatureBlocks, indices: np.ndarray) -> np.ndarray:
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


def squared_distance(rows_BD: np.ndarray, point_D: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each float32 row to a point (D,), or to its own (B, D); (B,) float32."""
    gap_BD = rows_BD - point_D.astype(np.float32, copy=False)
    return dots(gap_BD, gap_BD)


def dots(a_BD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    # einsum, not a BLAS product: BLAS rounds a row differently by its place in the block, and copies must tie
    # exactly
    return np.einsum("bd,bd->b", a_BD, b_BD)
