"""Everything that a run of features depends on."""

from dataclasses import dataclass, field

from mmdd_ray.config import Data, Features, Plan, Rehearse, Run


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """CLIP features and moments of a dataset, without a distillation."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
