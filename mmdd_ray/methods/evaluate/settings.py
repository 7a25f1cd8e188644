"""Everything that the evaluation of given sets depends on."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import MinLen

from mmdd_ray.config import Data, Essential, Evaluation, Features, Plan, Rehearse, Run, Students


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare given sets of pairs with real ones, by the students they train."""

    set: Essential[Annotated[tuple[str, ...], MinLen(1)]]
    """One set or more: a distilled one (a folder or URI with its manifest.json), any source of pairs that data.uri
    takes, or a .pt file as LoRS and RepBlend save their pairs. Baselines have as many pairs as the first."""
    set_split: str | None = None
    """Split of the sets that are sources of pairs, where these hold several."""
    set_image_root: str | None = None
    """Folder of the image files of such sets, where a file names them. Default: the folder of that file."""
    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation

    def __post_init__(self) -> None:
        """Takes the text of a single set for a tuple of one, not for a set of each letter."""
        if isinstance(self.set, str):
            object.__setattr__(self, "set", (self.set,))
