"""Settings of the comparison of sets."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, Le, MinLen

from mmdd_ray.config.data import Data
from mmdd_ray.config.fields import Count, Weight, extending, operational

PairProtocols = Annotated[
    tuple[Literal["equal-budget", "lors-frozen-text", "covmatch-both-encoders"], ...], MinLen(1)
]
LabelProtocols = Annotated[tuple[Literal["equal-budget", "hard-label", "soft-label"], ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Comparing sets by the students they make."""

    val: str
    """Pairs on which learning rates are chosen: a URI of the same kind as data.uri."""
    test: str
    """Pairs on which students are tested; never looked at before."""
    val_split: str | None = None
    """Split of `val`, where its source holds several."""
    test_split: str | None = None
    """Split of `test`, where its source holds several."""
    val_image_root: str | None = None
    """Folder of the image files of `val`, where a file names them. Default: that of `data` if `val` is the same file as
    data.uri, otherwise the folder of that file."""
    test_image_root: str | None = None
    """Folder of the image files of `test`, by the same rule."""
    max_pairs: Count = 1000
    """At most this many images of val and of test are used, drawn over all of their source by their content: the same
    ones in every run."""
    protocols: PairProtocols = extending(("equal-budget",))
    """How students are trained and tested; each protocol has tables of its own. "equal-budget" gives every set the same
    steps, and its own learning rate from validation data; the others are as published, in epochs, with five students.
    A finished run with further protocols makes the missing students."""
    students: tuple[str, ...] = extending(())
    """Further pairs of encoders that are trained on the same sets, as IMAGE_MODEL+TEXT_MODEL, to see what a set is
    worth to others than those that it was made with; for instance nf_resnet50+google-bert/bert-base-uncased."""
    seeds: Count = 3
    """Students per set under "equal-budget"; the report gives mean and standard deviation over them."""
    draws: Count = extending(1)
    """Distillations, each with a seed of its own, beside which random, k-center and other baselines with a seed are
    drawn as often. The report then gives the spread of draws beside that of students: a difference between sets that
    is smaller is noise. A finished run with a larger number keeps what it has and makes the missing draws."""
    baselines: tuple[Literal["random", "herding", "k-center", "clip-score", "full"], ...] = (
        "random",
        "herding",
        "k-center",
        "clip-score",
        "full",
    )
    """Sets to compare with: coresets of as many real pairs, and all the data. "clip-score" draws from the pairs whose
    image and first caption agree best under CLIP, as DataComp filters (arXiv 2304.14108)."""
    clip_score_fraction: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the real pairs that clip-score draws from. The better half is free of wrong captions where CLIP knows
    them and fewer than half are wrong; DataComp keeps 0.3 of unfiltered web pairs."""
    full_pairs: Count = 50_000
    """"full" is trained on at most this many real images."""
    gpus_per_student: Weight = operational(0.25)
    """Share of a GPU for each student; ignored on clusters without GPUs."""

    def sources(self, data: Data) -> dict[str, Data]:
        """``val`` and ``test``: like the training data, with URIs, splits and image folders of their own."""
        found = {}
        for part in ("val", "test"):
            uri, image_root = getattr(self, part), getattr(self, f"{part}_image_root")
            if image_root is None and uri == data.uri:
                image_root = data.image_root
            split = getattr(self, f"{part}_split")
            if uri is not None:
                found[part] = replace(data, uri=uri, split=split, image_root=image_root, limit=None)
        return found


LabelledBaseline = Literal["random", "herding", "k-center", "clip-score", "prompts", "full"]


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluation(Evaluation):
    """Comparing labelled sets by the classifiers they make."""

    val: str | None = None  # type: ignore[assignment]
    """Images on which learning rates are chosen, where classifiers.learning_rates has several."""
    protocols: LabelProtocols = extending(("equal-budget",))  # type: ignore[assignment]
    """How classifiers are trained and tested; each protocol has tables of its own. "equal-budget" gives every set the
    same steps; "hard-label" (Minimax Diffusion, VLCP) and "soft-label" (RDED, on a teacher's answers) are as published,
    in epochs, with three classifiers. A finished run with further protocols makes the missing classifiers."""
    students: tuple[str, ...] = extending(())
    """Further classifiers that are trained on the same sets, by the names that classifiers.model takes."""
    baselines: tuple[LabelledBaseline, ...] = (  # type: ignore[assignment]
        "random",
        "herding",
        "k-center",
        "clip-score",
        "prompts",
        "full",
    )
    """Sets to compare with: coresets of as many real images of each class; drawings of the generator as it is, prompted
    with describe.template; and all the data. "clip-score" draws from the images of a class that agree best with their
    first caption where describe.source is "captions", and otherwise with describe.template."""
