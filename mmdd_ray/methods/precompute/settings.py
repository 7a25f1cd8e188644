"""Everything that a run of features depends on."""

from dataclasses import dataclass, field

from mmdd_ray.config import Data, Features, Plan, Run


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """CLIP features and moments of a dataset, and nothing else."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)
