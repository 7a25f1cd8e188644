"""Everything that a CovMatch run depends on."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge

from mmdd_ray.config import Data, Essential, Evaluation, Features, PairLearning, Plan, Rehearse, Run, Students

CORESETS = ("random", "herding", "k-center", "clip-score")


@dataclass(frozen=True, kw_only=True)
class Match(PairLearning):
    """CovMatch's optimisation of pixels and token embeddings (arXiv 2510.18583)."""

    section: ClassVar[str] = "match"
    pairs: Essential[Annotated[int, Ge(2)]] = 100
    """Image-caption pairs of the distilled set."""
    init: Essential[str] = "random"
    """Pairs to start from: "random", "herding", "k-center" or "clip-score" real pairs; or the folder or URI of any
    distilled set with match.pairs pairs (an image with c captions is c pairs). Its learnt pairs are taken up where
    their vocabulary is that of match.text_model, otherwise its images and captions."""

    @property
    def start_set(self) -> str | None:
        """Where the distilled set lies that `init` names; None where it names real pairs."""
        return None if self.init in CORESETS else self.init


@dataclass(frozen=True, kw_only=True)
class Covmatch:
    """CovMatch: learnt pairs with the cross-covariance of the real ones."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    match: Match = field(default_factory=Match)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation

    @property
    def matching(self) -> PairLearning:
        """How pairs are learnt."""
        return self.match
