"""Planned seconds of the stages of a run, as its run directory keeps them."""

from collections.abc import Sequence

from mmdd_ray.planning.costs import planned_as
from mmdd_ray.planning.plan import PLAN
from mmdd_ray.storage.store import Store


def planned_times(run: Store, stages: Sequence[str]) -> dict[str, float | None]:
    """Seconds of these stages by the plan of a run; None where they are not known.

    A stage that the plan does not name takes next to nothing, and has no entry. A stage of a draw that was added later
    takes what the plan says of the first draw.
    """
    if not run.exists(PLAN):
        return dict.fromkeys(stages)
    plan = run.read_json(PLAN)["stages"]
    found = {}
    for stage in stages:
        names = (planned_as(stage), stage.rpartition("/")[2])
        if name := next((name for name in names if name in plan), None):
            seconds = plan[name]["seconds"]
            found[stage] = None if seconds is None else seconds / plan[name].get("times", 1)
    return found
