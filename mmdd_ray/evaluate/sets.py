"""The sets that students are trained on: a synthetic one, coresets of the real data, and all of it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmdd_ray.config import Data, Edge, Evaluate, Evaluation
from mmdd_ray.coresets import herding, k_center, random_subset
from mmdd_ray.data.distilled import Sample
from mmdd_ray.data.schema import Row
from mmdd_ray.data.sources import fetch_pairs, read_pairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluate.compare import compare
from mmdd_ray.evaluate.pairs import PairSet, Reject
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.run import Stage, StageResult

EVALUATION = "evaluation.json"


def synthetic_set(samples: Sequence[Sample], image_px: int) -> PairSet:
    """A distilled set with all of its captions."""
    rows = [
        Row("distilled", i, s.key, s.image, list(s.captions), s.label, None) for i, s in enumerate(samples)
    ]
    return PairSet.from_rows(rows, image_px=image_px, max_pixels=2**31)[0]


def read_pair_set(data: Data, image_px: int) -> tuple[PairSet, list[Reject]]:
    """All usable pairs of `data` with all of their captions, in the order of the shards, and the refused rows.

    Raises:
        ValueError: There are no usable pairs.
    """
    rows = sorted(
        (Row(**row) for row in read_pairs(data).iter_rows()), key=lambda row: (row.shard, row.index)
    )
    return PairSet.from_rows(rows, image_px=image_px, max_pixels=data.max_image_pixels)


def baseline_sets(
    features: FeatureStore, data: Data, evaluation: Evaluation, pairs: int, image_px: int, seed: int
) -> dict[str, PairSet]:
    """The sets of `evaluation.baselines`: `pairs` real images with one caption each, and "full" with all.

    Raises:
        ValueError: There are fewer real pairs than `pairs`.
    """
    addresses = features.addresses
    if pairs > len(addresses):
        raise UserError(
            f"synthesis.pairs={pairs}, but {data.uri} has {len(addresses):,} usable pairs to compare with; "
            "lower synthesis.pairs"
        )
    blocks = features.joint_features() if {"herding", "k-center"} & set(evaluation.baselines) else []
    rows = {
        "random": lambda: random_subset(len(addresses), pairs, seed),
        "herding": lambda: herding(blocks, pairs, seed),
        "k-center": lambda: k_center(blocks, pairs, seed),
        "full": lambda: random_subset(len(addresses), min(len(addresses), evaluation.full_pairs), seed),
    }
    sets: dict[str, PairSet] = {}
    for name in evaluation.baselines:
        chosen = np.sort(rows[name]())
        found = fetch_pairs(data, [addresses[row] for row in chosen])
        if name != "full":  # a pair is an image with one caption: the first
            found = [Row(r.shard, r.index, r.key, r.image, r.captions[:1], r.label, None) for r in found]
        sets[name], _ = PairSet.from_rows(found, image_px=image_px, max_pixels=data.max_image_pixels)
    return sets


def compare_with_baselines(
    stage: Stage,
    name: str,
    samples: Sequence[Sample],
    features: FeatureStore,
    settings: Edge | Evaluate,
) -> StageResult:
    """Compares a distilled set with the baselines; writes `compare`'s result as evaluation.json.

    Args:
        name: Of the distilled set, in the report.
        features: Of the real data, from which coresets are chosen.
    """
    px, seed = settings.students.image_px, settings.run.seed
    val, test = (read_pair_set(source, px) for source in settings.evaluation.sources(settings.data))
    synthetic = synthetic_set(samples, px)
    real = baseline_sets(features, settings.data, settings.evaluation, synthetic.n_pairs, px, seed)
    sets = {name: synthetic, **real}
    result = compare(sets, val[0], test[0], settings.students, settings.evaluation, seed, stage)
    stage.store.write_json(EVALUATION, result)
    return StageResult(
        rows_in=sum(pairs.n_pairs for pairs in (*sets.values(), val[0], test[0])),
        rows_out=len(sets) * settings.evaluation.seeds,
        rejects=Counter(reason for _, _, reason in (*val[1], *test[1])),
    )
