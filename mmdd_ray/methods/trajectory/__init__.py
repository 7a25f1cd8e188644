"""Trajectory matching: pairs on which a student moves as experts did on the real data (MTT-VL, LoRS)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmdd_ray.methods.method import Method, Steps
from mmdd_ray.methods.trajectory.preflight import check, image_bytes, models, needs
from mmdd_ray.methods.trajectory.presets import PRESETS
from mmdd_ray.methods.trajectory.settings import Trajectory

WORDS = {
    "losses": "How far the student ends from the expert, relative to how far the expert went",
    "examples_note": "The first caption is the one that the pair began as, the second line the real caption whose "
    "vector is nearest to the one that was learnt.",
}


def _steps() -> Steps[Trajectory]:
    from mmdd_ray.methods.trajectory.stages import STEPS

    return STEPS


def _shortened(settings: Trajectory, batch: Callable[[int], int], folder: Path) -> Trajectory:
    """One expert, and pairs for one batch."""
    experts, match = settings.experts, settings.match
    pairs = batch(match.pairs)
    match = replace(
        match, pairs=pairs, rank=min(match.rank, pairs), student_steps=min(match.student_steps, 2)
    )
    return replace(
        settings,
        experts=replace(experts, count=1, batch_pairs=batch(experts.batch_pairs)),
        match=match,
    )


METHOD = Method(
    name="trajectory",
    job="trajectory_flickr30k",
    settings=Trajectory,
    presets=PRESETS,
    models=models,
    preflight=check,
    steps=_steps,
    holds=lambda settings, source: {
        "experts.max_real_mib": 2 * source.rows * image_bytes(settings)  # decoded, and in the object store
    },
    needs=needs,
    size=lambda settings, source: ("match.pairs", settings.match.pairs),
    words=lambda settings: WORDS,
    shortened=_shortened,
)
