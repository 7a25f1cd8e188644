"""Everything that the evaluation of a set depends on."""

from dataclasses import dataclass, field

from mmdd_ray.config import Data, Evaluation, Features, Plan, Rehearse, Run, Students


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Students trained on a distilled set, and on real pairs beside it."""

    set: str
    """The distilled set: a folder or URI with its manifest.json."""
    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation
