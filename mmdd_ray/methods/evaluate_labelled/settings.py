"""Everything that the evaluation of a labelled set depends on."""

from dataclasses import dataclass, field

from mmdd_ray.config import Classifiers, Data, Essential, Features, LabelledEvaluation, Plan, Rehearse, Run


@dataclass(frozen=True, kw_only=True)
class EvaluateLabelled:
    """Compare a labelled set with real images, by the classifiers it trains."""

    set: Essential[str]
    """The labelled set: the folder of a distilled one with its manifest.json, or a source of labelled images as
    data.uri takes it, such as a folder for each class. Its classes are those of the data, by number and, where both
    have names, by name."""
    set_split: str | None = None
    """Split of `set`, where its source holds several."""
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
