"""The methods, each in a folder of its own, and the jobs that take a part of one.

A method is data: see `method.py`. To add one, write a folder with `settings.py`, `presets.py`, `preflight.py` and
`stages.py`, whose `__init__.py` has a `METHOD`, and name it below. Methods import what lies below this room, never each
other; `shared_stages.py` and `preset_parts.py` have what they share.
"""

from typing import Any

from mmdd_ray.methods import covmatch, edge, evaluate, evaluate_labelled, precompute, trajectory, vlcp
from mmdd_ray.methods.method import Method

METHODS: dict[str, Method[Any]] = {
    one.job: one
    for one in (
        edge.METHOD,
        covmatch.METHOD,
        vlcp.METHOD,
        trajectory.METHOD,
        precompute.METHOD,
        evaluate.METHOD,
        evaluate_labelled.METHOD,
    )
}
"""Methods by the name of their job."""
