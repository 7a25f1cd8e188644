"""Image and text prototypes of one class (VLCP, Zou et al., ICCV 2025, arXiv 2506.23580, section 3).

An image prototype is the centre of a cluster of latents, after outliers were dropped. A text prototype is the
description that has the words which are most frequent in its cluster, but not in all of the class. No Ray.
"""

# N images of a class, D values of a latent, K clusters, W distinct words

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from scipy.sparse import csr_array
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.neighbors import LocalOutlierFactor
from threadpoolctl import threadpool_limits

# scripts whose words are not spaced; runs of katakana are words
UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# letters of any script, with their marks: those of one word, or a single one where words cannot be told apart
WORD = regex.compile(
    rf"(?V1)[{UNSPACED}&&\p{{L}}]\p{{M}}*|[\p{{L}}--[{UNSPACED}]][\p{{L}}\p{{M}}--[{UNSPACED}]]*"
)
CONTRACTED = regex.compile(
    r"\p{L}+n['’]t\b|['’]\p{L}{1,2}\b"
)  # isn't, don't: stop words; the dog's, they're: endings
STARTS = 10  # of K-means, of which the best is kept


@dataclass(frozen=True)
class Prototype:
    """The prototype that one image is drawn from."""

    latent_D: np.ndarray
    """Centre of the cluster, float32."""
    text: int | None
    """Image of the cluster whose description is the text prototype; None if no image of it has one."""
    members: np.ndarray
    """Images of the cluster, ascending, int64."""


def class_prototypes(
    latent_ND: np.ndarray,
    descriptions: Sequence[str],
    class_name: str,
    count: int,
    *,
    neighbours: int = 10,
    contamination: float = 0.1,
    words: int = 30,
    common: float = 0.7,
    mini_batch_from: int = 10_000,
    seed: int = 0,
) -> list[Prototype]:
    """``count`` prototypes of a class, those of large clusters first.

    Where the images give fewer clusters (there are fewer of them, or they are alike), clusters are used again in turn,
    each time with the description that comes next.

    Args:
        latent_ND: latents of the images, flattened, in an order that does not depend on chance.
        descriptions: one for each image; may be blank.
        neighbours: of the Local Outlier Factor.
        contamination: share of the images that are dropped as outliers; at least ``count`` are left.
        words: most frequent words of a cluster, by which its descriptions are judged.
        common: words in at least this share of the class's descriptions do not count.
        mini_batch_from: images from which mini-batch K-means is used.
        seed: of K-means.

    Raises:
        ValueError: there are no images, a latent is no finite number, or descriptions do not pair with them.
    """
    if not len(latent_ND) or len(descriptions) != len(latent_ND) or count < 1:
        raise ValueError(f"{len(latent_ND)} latents, {len(descriptions)} descriptions, {count} prototypes")
    if not np.isfinite(latent_ND).all():
        raise ValueError("a latent is no finite number")
    kept = inliers(latent_ND, neighbours, contamination, at_least=count)
    centres_KD, cluster_N = clusters(latent_ND[kept], count, seed=seed, mini_batch_from=mini_batch_from)
    counts_NW = word_counts(descriptions, class_name, common)
    members = [kept[cluster_N == k] for k in range(len(centres_KD))]
    ranked = [rank_descriptions(counts_NW[rows], words) for rows in members]
    prototypes = []
    for slot in range(count):
        turn, k = divmod(slot, len(centres_KD))
        speaking = [row for row in members[k][ranked[k]].tolist() if descriptions[row].strip()]
        text = speaking[turn % len(speaking)] if speaking else None
        prototypes.append(Prototype(centres_KD[k], text, members[k]))
    return prototypes


def inliers(latent_ND: np.ndarray, neighbours: int, contamination: float, *, at_least: int) -> np.ndarray:
    """Images that are no outliers by the Local Outlier Factor (Breunig et al., SIGMOD 2000), ascending, int64."""
    n = len(latent_ND)
    drop = min(int(contamination * n), n - min(at_least, n))
    if not drop or n <= 2:  # of two images neither is further from the rest
        return np.arange(n)
    factor = LocalOutlierFactor(n_neighbors=min(neighbours, n - 1))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.filterwarnings("ignore", message="Duplicate values", category=UserWarning)
        factor.fit(latent_ND)
    # negative: −1 is as dense as its neighbours. Stable, so that ties do not depend on the sort
    order = np.argsort(factor.negative_outlier_factor_, kind="stable")
    return np.sort(order[drop:])


def clusters(
    latent_ND: np.ndarray, count: int, *, seed: int, mini_batch_from: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (K, D) float32 of at most ``count`` clusters, large ones first, and the cluster of each image (N,).

    On one thread, because sums over several depend on their number.
    """
    distinct = len(np.unique(latent_ND, axis=0))
    settings = {"n_clusters": min(count, distinct), "n_init": STARTS, "random_state": seed}
    kind = KMeans if len(latent_ND) < mini_batch_from else MiniBatchKMeans
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        label_N = kind(**settings).fit_predict(latent_ND.astype(np.float32))
    found, label_N = np.unique(label_N, return_inverse=True)  # without empty clusters
    sizes, first = np.bincount(label_N), [int((label_N == k).argmax()) for k in range(len(found))]
    order = sorted(range(len(found)), key=lambda k: (-sizes[k], first[k]))
    centres = np.stack([latent_ND[label_N == k].mean(axis=0, dtype=np.float64) for k in order])
    return centres.astype(np.float32), np.argsort(order)[label_N]


def word_counts(descriptions: Sequence[str], class_name: str, common: float) -> csr_array:
    """How often each description of a class has each word that says more than the class does, (N, W).

    Words are lower-case runs of letters, or single letters of scripts that are written without spaces, in alphabetical
    order. Left out are English stop words, words of the class name, and words of at least ``common`` of the
    descriptions that are not blank (in other languages the stop words are among those).
    """
    unwanted = set(ENGLISH_STOP_WORDS) | set(_words(class_name.lower()))
    vectorizer = CountVectorizer(tokenizer=_words, token_pattern=None)
    try:
        counts_NW = csr_array(vectorizer.fit_transform(descriptions))
    except ValueError:  # scikit-learn's answer where there is no word at all
        return csr_array((len(descriptions), 0), dtype=np.int64)
    speaking = sum(bool(text.strip()) for text in descriptions)
    is_common_W = (counts_NW > 0).sum(axis=0) >= common * speaking
    names = vectorizer.get_feature_names_out()
    wanted = [w for w, name in enumerate(names) if name not in unwanted and not is_common_W[w]]
    return counts_NW[:, wanted]


def _words(text: str) -> list[str]:
    return WORD.findall(CONTRACTED.sub(" ", text))


def rank_descriptions(counts_MW: csr_array, words: int) -> np.ndarray:
    """The M descriptions of a cluster from best to worst; of equals the first comes first.

    The score of a description is the sum, over those of the cluster's ``words`` most frequent words that it has, of how
    often the cluster has them.
    """
    frequency_W = counts_MW.sum(axis=0)
    top = np.argsort(-frequency_W, kind="stable")[:words]  # of equals the alphabetically first
    score_M = (counts_MW[:, top] > 0) @ frequency_W[top]
    return np.argsort(-score_M, kind="stable")
