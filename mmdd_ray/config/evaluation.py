"""Settings of the comparison of sets."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, Le, MinLen

from mmdd_ray.config.data import Data
from mmdd_ray.config.fields import Count, Essential, Weight, extending, operational
from mmdd_ray.config.slices import sliced
from mmdd_ray.errors import UserError

SLOT = "{}"  # the place of a class's name in a template

PairProtocols = Annotated[
    tuple[Literal["equal-budget", "lors-frozen-text", "covmatch-both-encoders"], ...], MinLen(1)
]
LabelProtocols = Annotated[tuple[Literal["equal-budget", "hard-label", "soft-label"], ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Comparing sets by the students they make."""

    val: Essential[str]
    """Pairs on which learning rates are chosen: a URI of the same kind as data.uri; or a share of the images of
    data.uri, such as 10%, by their content, which training then lacks."""
    test: Essential[str]
    """Pairs on which students are tested, never looked at before: a URI, or a share of the images of data.uri."""
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
    protocols: Essential[PairProtocols] = extending(("equal-budget",))
    """How students are trained and tested; each protocol has tables of its own. "equal-budget" gives every set the same
    steps, and its own learning rate from validation data; the others are as published, in epochs, with five students.
    A finished run with further protocols makes the missing students."""
    students: Essential[tuple[str, ...]] = extending(())
    """Further pairs of encoders that are trained on the same sets, as IMAGE_MODEL+TEXT_MODEL, to see what a set is
    worth to others than those that it was made with; for instance nf_resnet50+google-bert/bert-base-uncased."""
    curve_pairs: tuple[Count, ...] = extending(())
    """Further sizes, in images, for the curve of recall against pairs: students of so many images of each given set and
    of random real ones, in one random order of each, so that a larger part holds the smaller ones. A finished run with
    further sizes makes the missing students."""
    seeds: Essential[Count] = extending(3)
    """Students per set under "equal-budget"; the report gives mean and standard deviation over them. A finished run
    with a larger number makes the missing students."""
    draws: Essential[Count] = extending(1)
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
    zero_shot: str | None = None
    """Labelled images that students also classify without having been trained for it: a URI of the same kind as
    data.uri. Classes need names: those of folders, of shapes, of zero_shot_names, or a caption that all images of a
    class share."""
    zero_shot_split: str | None = None
    """Split of `zero_shot`, where its source holds several."""
    zero_shot_image_root: str | None = None
    """Folder of the image files of `zero_shot`, by the rule of `val_image_root`."""
    zero_shot_names: str | None = None
    """Text file with the name of a class on each line, from label 0 on."""
    templates: Annotated[tuple[str, ...], MinLen(1)] = ("a photo of a {}.",)
    """Texts for a class, with "{}" for its name; the embeddings of several are averaged, as CLIP does."""
    linear_probe: bool = False
    """Also fits a linear classifier to the image features of students, on about half of `zero_shot`, and tests it on
    the rest."""
    compositional: str | None = None
    """Captions with hard negatives for students to tell apart: a folder of JSON files as SugarCrepe publishes them, one
    such file, or shapes:ROWS?seed=S."""
    compositional_image_root: str | None = None
    """Folder of the image files that `compositional` names. Default: the folder of its JSON files."""
    audit: Essential[bool] = extending(False)
    """The report then says whether the set (of the first draw; the first of several given ones) has copies of real
    images, whether test images are nearly training images, and what spectrum and saturation the set has. Takes a pass
    over the data, since the nearest real images are read again. A finished run takes it on."""
    gpus_per_student: Weight = operational(0.25)
    """Share of a GPU for each student; ignored on clusters without GPUs."""

    def sources(self, data: Data) -> dict[str, Data]:
        """``val`` and ``test``: like the training data, with URIs, splits and image folders of their own."""
        found = {part: self._source(part, data) for part in ("val", "test")}
        return {part: source for part, source in found.items() if source is not None}

    def zero_shot_source(self, data: Data) -> Data | None:
        """``zero_shot``, by the same rule; its images need no captions."""
        found = self._source("zero_shot", data)
        return found and replace(found, needs_captions=False)

    def _source(self, part: str, data: Data) -> Data | None:
        uri, image_root = getattr(self, part), getattr(self, f"{part}_image_root")
        if uri is None:
            return None
        if image_root is None and uri == data.uri:
            image_root = data.image_root
        split = getattr(self, f"{part}_split")
        # slices of one split are slices of the same rows
        (name, own), (trained_name, trained) = sliced(split), sliced(data.split)
        is_cut = uri == data.uri and name == trained_name and not (own.is_all or trained.is_all)
        limit = data.limit if is_cut else None
        return replace(data, uri=uri, split=split, image_root=image_root, limit=limit)

    def check_probes(self, *, labelled: bool) -> None:
        """Looks whether the settings of zero-shot, linear and compositional tests fit each other.

        Args:
            labelled: Whether the run compares classifiers, which have no texts.

        Raises:
            UserError: They do not.
        """
        if labelled and self.curve_pairs:
            raise UserError(
                f"evaluation.curve_pairs={' '.join(map(str, self.curve_pairs))} is for sets of pairs, but this job "
                "trains classifiers; leave it out, and evaluate sets of other sizes"
            )
        for name in ("zero_shot", "compositional"):
            if labelled and (uri := getattr(self, name)) is not None:
                raise UserError(
                    f"evaluation.{name}={uri} is a test of dual encoders, but this job trains classifiers; leave it out"
                )
        for template in self.templates:
            if template.count(SLOT) != 1:
                raise UserError(
                    f"evaluation.templates has {template!r}, which must hold {SLOT!r} once, for the name of the class; "
                    'write e.g. "a photo of a {}."'
                )
        for name in ("zero_shot_split", "zero_shot_image_root", "zero_shot_names", "linear_probe"):
            if self.zero_shot is None and (value := getattr(self, name)):
                raise UserError(
                    f"evaluation.{name}={value} needs labelled images; name them as evaluation.zero_shot"
                )
        if self.compositional is None and self.compositional_image_root is not None:
            raise UserError(
                f"evaluation.compositional_image_root={self.compositional_image_root} needs captions with negatives; "
                "name them as evaluation.compositional"
            )


LabelledBaseline = Literal["random", "herding", "k-center", "clip-score", "prompts", "full"]


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluation(Evaluation):
    """Comparing labelled sets by the classifiers they make."""

    val: Essential[str | None] = None  # type: ignore[assignment]
    """Images on which learning rates are chosen, where classifiers.learning_rates has several: a URI, or a share of the
    images of data.uri, such as 10%."""
    protocols: Essential[LabelProtocols] = extending(("equal-budget",))  # type: ignore[assignment]
    """How classifiers are trained and tested; each protocol has tables of its own. "equal-budget" gives every set the
    same steps; "hard-label" (Minimax Diffusion, VLCP) and "soft-label" (RDED, on a teacher's answers) are as published,
    in epochs, with three classifiers. A finished run with further protocols makes the missing classifiers."""
    students: Essential[tuple[str, ...]] = extending(())
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
    first caption where describe.source is "captions", and otherwise with the template of their class."""
