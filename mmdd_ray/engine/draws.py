"""The draws of a run: how often it distils, with which seeds, and where each of them lies.

Imports neither torch nor Ray. Draw 0 is the run as it is without ``evaluation.draws``. Draw k repeats, below
``draws/<k>/``, every stage that depends on the seed, and makes what a run with the seed of the draw as ``run.seed``
makes; features and whatever else does not depend on the seed are those of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mmdd_ray.config import Evaluation
from mmdd_ray.engine.run_dir import DRAWS
from mmdd_ray.engine.seeds import draw_seed

SEEDLESS = ("herding", "full")
"""Baselines that are not repeated: herding has no seed, and all the data, or a large part, stand for themselves."""

S = TypeVar("S")


@dataclass(frozen=True)
class Draw(Generic[S]):
    """One distillation of a run."""

    number: int
    settings: S
    """Those of the run with the seed of this draw, as if it were the only one: its set does not depend on others."""

    @property
    def within(self) -> str:
        """The folder of the run directory in which its stages lie, ending in a slash; empty for the first draw."""
        return f"{DRAWS}/{self.number}/" if self.number else ""

    @property
    def compared(self) -> S:
        """The settings with those baselines alone that this draw has of its own."""
        settings: Any = self.settings
        evaluation: Evaluation | None = getattr(settings, "evaluation", None)
        if evaluation is None:
            return self.settings
        own = own_baselines(evaluation, self.number)
        return replace(settings, evaluation=replace(evaluation, baselines=own))


def draws_of(settings: S) -> list[Draw[S]]:
    """The draws of a run, the first of which is the run itself; settings without an evaluation have one."""
    evaluation = getattr(settings, "evaluation", None)
    if evaluation is None:
        return [Draw(0, settings)]
    return [Draw(number, _alone(settings, number)) for number in range(evaluation.draws)]


def _alone(settings: Any, number: int) -> Any:
    return replace(
        settings,
        run=replace(settings.run, seed=draw_seed(settings.run.seed, number)),
        evaluation=replace(settings.evaluation, draws=1),
    )


def own_baselines(evaluation: Evaluation, number: int) -> tuple[Any, ...]:
    """The baselines of a draw: all of the first, later those that depend on the seed."""
    return tuple(name for name in evaluation.baselines if number == 0 or name not in SEEDLESS)


def count_sets(evaluation: Evaluation, without: Sequence[str] = ()) -> int:
    """Sets that students are trained on, over all draws; ``without`` are baselines that do not count."""
    own = [set(own_baselines(evaluation, number)) - {*without} for number in range(evaluation.draws)]
    return sum(1 + len(names) for names in own)
