"""Everything that the evaluation of a labelled set depends on."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import MinLen

from mmdd_ray.config import Classifiers, Data, Essential, Features, LabelledEvaluation, Plan, Rehearse, Run


@dataclass(frozen=True, kw_only=True)
class EvaluateLabelled:
    """Compare labelled sets with real images, by the classifiers they train."""

    set: Essential[Annotated[tuple[str, ...], MinLen(1)]]
    """One labelled set or more: the folder of a distilled one with its manifest.json, or a source of labelled images
    as data.uri takes it, such as a folder for each class. Their classes are those of the data, by number and, where
    both have names, by name. Baselines have as many images of each class as the first."""
    set_split: str | None = None
    """Split of the sets that are sources, where these hold several."""
    class_names: Essential[str | None] = None
    """Text file, a local path or a URI, with the name of a class of the data on each line, from class 0 on. Default:
    the one caption that the images of a class share, as in image folders; labelled shapes have their own."""
    template: str = "a photo of a {class_name}"
    """Text that "clip-score" compares the images of a class with."""
    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    classifiers: Classifiers = field(default_factory=Classifiers)
    evaluation: LabelledEvaluation

    def __post_init__(self) -> None:
        """Takes the text of a single set for a tuple of one, not for a set of each letter."""
        if isinstance(self.set, str):
            object.__setattr__(self, "set", (self.set,))
