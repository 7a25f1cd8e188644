"""CLIP features and moments of a dataset, without distilling it."""

from mmdd_ray.methods.method import Method, Run, Steps
from mmdd_ray.methods.precompute.presets import PRESETS
from mmdd_ray.methods.precompute.settings import Precompute


def _steps() -> Steps[Precompute]:
    from mmdd_ray.methods.shared_stages import FEATURES

    return Steps(stages=(FEATURES,))


def _summary(run: Run) -> str:
    from mmdd_ray.features.precompute import summary

    return summary(run.stages["features"])


METHOD = Method(
    name="precompute",
    job="precompute",
    settings=Precompute,
    presets=PRESETS,
    models=lambda settings: {"features.clip": settings.features.clip},
    steps=_steps,
    summary=_summary,
)
