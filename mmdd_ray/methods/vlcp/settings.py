"""Everything that a VLCP run depends on."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt, Le

from mmdd_ray.config import (
    Classifiers,
    Count,
    Data,
    Essential,
    Features,
    Finetune,
    LabelledEvaluation,
    Plan,
    Pool,
    Rate,
    Rehearse,
    Run,
    Synthesis,
)


@dataclass(frozen=True, kw_only=True)
class Describe(Pool):
    """VLCP's descriptions of real images (arXiv 2506.23580, section 3)."""

    source: Essential[Literal["captions", "vlm", "template"]] = "captions"
    """Where descriptions come from: the data's own captions, a vision-language model, or a template."""
    template: str = "a photo of a {class_name}"
    """Description of every image under "template", and of one that the model has nothing to say of. The sets that
    are drawn without text prototypes are prompted with it."""
    class_names: Essential[str | None] = None
    """Text file, a local path or a URI, with the name of a class on each line, from class 0 on. Default: the one
    caption that the images of a class share, as in image folders; labelled shapes have their own."""
    model: str = "tiny-captioner"
    """The model of "vlm": a zoo name, a hub name or a folder of any transformers model that describes images."""
    instruction: str = (
        "Describe the physical appearance of the {class_name} in the image: its shape, posture, colour and distinct "
        "features."
    )
    """Instruction for a chat model. Others ignore it; see prefix."""
    prefix: str = ""
    """Text before every caption of the data and every description that a model wrote; {class_name} is the name of the
    class. For captions that do not name it, and captioners, which cannot be asked about it."""
    max_new_tokens: Count = 160
    """Length limit of a description, in tokens."""
    image_px: Count = 32
    """Side to which images are decoded for the model."""
    chunk_images: Count = 64
    """Images described together; one output file each."""


@dataclass(frozen=True, kw_only=True)
class Prototypes(Pool):
    """VLCP's image and text prototypes of each class."""

    images_per_class: Essential[Count] = 10
    """Prototypes, and so images, of each class of the distilled set (IPC)."""
    neighbours: Count = 10
    """Neighbours of the Local Outlier Factor that drops outliers."""
    contamination: Rate = 0.1
    """Share of a class's images that are dropped as outliers."""
    words: Count = 30
    """Most frequent words of a cluster, by which its text prototype is chosen."""
    common_words: Annotated[float, Gt(0), Le(1)] = 0.7
    """Words in at least this share of a class's descriptions do not count."""
    mini_batch_from: Count = 10_000
    """Images of a class from which mini-batch K-means is used."""
    chunk_images: Count = 256
    """Images encoded by the VAE together; one output file each."""


@dataclass(frozen=True, kw_only=True)
class VlcpSynthesis(Synthesis):
    """Drawing an image from each pair of an image and a text prototype."""

    use_image: bool = True
    """Starts from the image prototype; otherwise from noise alone."""
    use_text: bool = True
    """Prompts with the text prototype; otherwise with describe.template."""
    strength: Essential[Annotated[float, Gt(0), Le(1)]] = 0.7
    """Noise added to the image prototype, as a share of the schedule."""
    negative_prompt: str = "cartoon, anime, painting"
    """Text that guidance leads away from."""


@dataclass(frozen=True, kw_only=True)
class Vlcp:
    """VLCP: labelled images, drawn from image and text prototypes of each class."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    describe: Describe = field(default_factory=Describe)
    finetune: Finetune = field(default_factory=Finetune)
    prototypes: Prototypes = field(default_factory=Prototypes)
    synthesis: VlcpSynthesis = field(default_factory=VlcpSynthesis)
    classifiers: Classifiers = field(default_factory=Classifiers)
    evaluation: LabelledEvaluation
