"""The stages of a run in the order in which they are computed, known from its settings before it starts."""

from collections.abc import Iterator
from typing import Any

from mmdd_ray.engine.draws import Draw, draws_of
from mmdd_ray.methods.method import Stage, Steps


def scheduled(steps: Steps[Any], settings: Any) -> Iterator[tuple[Draw[Any], list[Stage[Any]]]]:
    """Each draw with the stages that it computes itself; a shared stage belongs to the first draw that wants it."""
    shared: set[str] = set()
    for draw in draws_of(settings):
        own = [stage for stage in steps.stages if stage.name not in shared and stage.wanted(draw.compared)]
        shared.update(stage.name for stage in own if stage.shared)
        yield draw, own


def stage_paths(steps: Steps[Any], settings: Any) -> list[str]:
    """Folders of all stages in the run directory, the comparison last."""
    paths = [
        f"{'' if stage.shared else draw.within}{stage.name}"
        for draw, stages in scheduled(steps, settings)
        for stage in stages
    ]
    return [*paths, steps.compare.name] if steps.compare else paths
