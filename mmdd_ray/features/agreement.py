"""Which real pairs agree: how near CLIP finds image and caption, and the pairs at or above a threshold.

Of captions from the web many belong to another picture, and what is matched to the moments of all pairs is pulled
towards those. Keeping the pairs that CLIP scores best is the filter of LAION and the baseline of DataComp (Gadre et
al., arXiv 2304.14108). Imports neither Ray nor torch.
"""

# N images, P pairs: an image with c captions is c pairs, in the order of its captions

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd_ray.features.coresets import kept_rows

_CAPTIONS_BITS = 32  # of a pair's number: the row of its image above them, the place of its caption below


def score_table(pair_P: np.ndarray, score_P: np.ndarray) -> pa.Table:
    """Scores of a shard as they are stored, by the numbers of ``pair_numbers``."""
    return pa.table({"pair": pa.array(pair_P, pa.int64()), "score": pa.array(score_P, pa.float32())})


def pair_numbers(index_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
    """A number for each pair of a shard, (P,) int64, ascending where the rows ``index_N`` of its images are.

    Args:
        captions_N: how many captions each image has.
    """
    starts_N = np.cumsum(captions_N) - captions_N
    place_P = np.arange(captions_N.sum()) - np.repeat(starts_N, captions_N)
    return (np.repeat(index_N.astype(np.int64), captions_N) << _CAPTIONS_BITS) + place_P


def images_of(pair_P: np.ndarray) -> np.ndarray:
    """The rows of the images of these pairs, (P,) int64."""
    return pair_P >> _CAPTIONS_BITS


def threshold(scores: Iterable[np.ndarray], fraction: float) -> float:
    """The score of the last pair of the best ``fraction`` of all, at least one pair; exact, in 4 bytes a pair.

    Raises:
        ValueError: a score is not finite.
    """
    score_P = np.concatenate([np.empty(0, np.float32), *scores])
    if not np.isfinite(score_P).all():
        raise ValueError("a pair has features without a cosine; drop or re-encode it")
    kept = kept_rows(len(score_P), fraction)
    return float(np.partition(score_P, len(score_P) - kept)[len(score_P) - kept])


@dataclass(frozen=True, eq=False)
class Agreeing:
    """The pairs at or above a threshold, in 8 bytes each; travels to readers and actors."""

    pairs: Mapping[str, np.ndarray]
    """Ascending ``pair_numbers`` of each shard."""

    @classmethod
    def of(cls, scores: Mapping[str, pa.Table], least: float) -> "Agreeing":
        """The pairs of ``score_table``s by shard that score at least ``least``."""
        return cls(
            {
                shard: np.sort(table["pair"].to_numpy()[table["score"].to_numpy() >= np.float32(least)])
                for shard, table in scores.items()
            }
        )

    @property
    def n_pairs(self) -> int:
        return sum(map(len, self.pairs.values()))

    @property
    def n_images(self) -> int:
        """Images with a caption that agrees with them."""
        return sum(len(np.unique(images_of(own))) for own in self.pairs.values())

    def are_in(self, shard: str, pair_P: np.ndarray) -> np.ndarray:
        """Which of these pairs of a shard agree, (P,) bool."""
        return np.isin(pair_P, self.pairs.get(shard, np.empty(0, np.int64)))

    def captions(self, row: Mapping[str, Any]) -> list[str]:
        """Those captions of a row (``shard``, ``index``, ``captions``) that agree with its image."""
        own = self.pairs.get(row["shard"], np.empty(0, np.int64))
        first = int(row["index"]) << _CAPTIONS_BITS
        start, stop = np.searchsorted(own, [first, first + (1 << _CAPTIONS_BITS)])
        return [row["captions"][int(pair) - first] for pair in own[start:stop]]
