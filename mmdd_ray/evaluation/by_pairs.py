"""The curve of recall against pairs, over parts of one set."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from mmdd_ray.config import PairSettings
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.evaluation.compare import compare
from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.nested import nested_subsets
from mmdd_ray.evaluation.pairs import PairSet

RANDOM = "random"


def by_pairs(
    sets: Mapping[str, Sequence[ray.ObjectRef[Any]]],
    val: PairSet,
    test: PairSet,
    settings: PairSettings,
    whole: Mapping[str, Any],
    stage: StageDir,
) -> dict[str, list[dict[str, Any]]]:
    """The deciding metric against the size of a set: parts of its first draw, each of which holds the smaller ones.

    Sizes that a set does not reach are named on the terminal, and left out.

    Args:
        sets: The given ones and random real pairs, by name.
        whole: What `compare` found of them, whose figures end each curve.

    Returns:
        By set, its parts in order: ``pairs``, ``images``, and ``mean`` and ``std`` over students, in percent.
    """
    parts: dict[str, dict[str, ray.ObjectRef[Any]]] = {name: {} for name in sets}
    for name, own in parts.items():
        pairs = ray.get(sets[name][0])
        counts = sorted(settings.evaluation.curve_pairs)
        fitting = [count for count in counts if count < pairs.n_images]
        if left := counts[len(fitting) :]:
            print(
                f"evaluation.curve_pairs: {name} has {pairs.n_images:,} images, so parts of "
                f"{', '.join(map(str, left))} are left out",
                flush=True,
            )
        drawn = nested_subsets(pairs, fitting, settings.run.seed)
        own |= {f"{name}-first-{count}": ray.put(one) for count, one in zip(fitting, drawn, strict=True)}
    alone = replace(settings.evaluation, protocols=settings.evaluation.protocols[:1], students=())
    every = {part: one for own in parts.values() for part, one in own.items()}
    found = (
        compare(every, val, test, settings.students, alone, settings.run.seed, stage)["sets"] if every else {}
    )
    return {
        name: [*(_point(found[part]) for part in own), _point(whole["sets"][name])]
        for name, own in parts.items()
    }


def _point(one: Mapping[str, Any]) -> dict[str, Any]:
    score = one["metrics"][MAIN_METRIC["retrieval"]]
    return {
        "pairs": one["pairs"],
        "images": one["images"],
        "mean": score["mean"],
        "std": score["std"],
    }
