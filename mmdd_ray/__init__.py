"""Distil a huge image-caption dataset into a few hundred synthetic pairs, on Ray.

    import mmdd_ray

    run = mmdd_ray.distill(mmdd_ray.settings("edge", "local"))
    run.show()
    run.report["scores"], run.pairs[0]

The command line, `mmdd edge local`, does the same.
"""

from mmdd_ray.api import distill, evaluate, load_run, load_set, settings

__version__ = "0.2.0.dev0"
__all__ = ["distill", "evaluate", "load_run", "load_set", "settings"]
