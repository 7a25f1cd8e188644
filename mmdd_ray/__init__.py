"""Distil a huge image-caption dataset into a few hundred synthetic pairs, on Ray.

    import mmdd_ray
    from mmdd_ray.methods.edge import presets

    run = mmdd_ray.distill(presets.local())
    run.report["scores"], run.pairs[0].captions

The command line of `jobs/` does the same.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdd_ray.config import RunSettings
    from mmdd_ray.methods.method import Run

__version__ = "0.2.0.dev0"


def distill(settings: "RunSettings", preset: str = "custom") -> "Run":
    """Runs a method by its settings, or whatever is left to do of a run that was begun.

    Args:
        settings: Of any method, such as a preset gives.
        preset: Names the run directory, `runs/<job>-<preset>`, unless `settings.run.dir` does.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting. Most of it is
            found before Ray starts.
    """
    from mmdd_ray.engine.environment import set_environment
    from mmdd_ray.methods.execute import check, execute

    set_environment()
    check(settings)
    return execute(settings, preset)
