"""What a protocol says: how long students are trained, at which rates, on what, and when they are tested."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, cos, pi
from typing import Literal

from mmdd_ray.config import StudentForm

PUBLISHED_PX = 224
FASTER = "training is in bfloat16 on devices that are fast in it, unless the setting `precision` is float32"
"""How all protocols differ from publications, whose releases train in float32."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of one student on one set, whose size is known."""

    batch: int
    """Items of a step."""
    steps: int
    """Optimiser steps in all."""
    epoch_steps: int = 1
    """Steps between two changes of the learning rate: those of an epoch, or 1 where a protocol counts steps."""
    keeps_rest: bool = False
    """Whether the smaller last batch of an epoch is trained on."""
    decay: float = 1.0
    """Factor of the learning rate at each of `decays_at`."""
    decays_at: tuple[int, ...] = ()
    """Numbers of `epoch_steps` that are done by then."""
    half_cosine: bool = False
    """Whether the rate falls as the first half of a cosine does, to half of what it was, in place of decays."""
    looks_at: tuple[int, ...] = ()
    """Steps after which a student is tested, beside the last."""

    @classmethod
    def in_epochs(
        cls, items: int, *, batch: int, epochs: int, looks_after: tuple[int, ...] = (), **schedule: object
    ) -> "Training":
        """A training of whole epochs over `items`, the smaller last batch of each included.

        Args:
            looks_after: Numbers of epochs after which a student is tested.
            schedule: `decay`, `decays_at` (in epochs) or `half_cosine`.
        """
        each = ceil(items / min(batch, items))
        return cls(
            batch=min(batch, items),
            steps=epochs * each,
            epoch_steps=each,
            keeps_rest=True,
            looks_at=tuple(each * epoch for epoch in looks_after),
            **schedule,  # type: ignore[arg-type]
        )

    def items_seen(self, items: int) -> int:
        """Items of all steps together, on a set of so many."""
        return self.steps // self.epoch_steps * items if self.keeps_rest else self.steps * self.batch

    def rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied with at a step, counted from 0."""
        done = step // self.epoch_steps
        if self.half_cosine:
            return 0.5 * (1 + cos(pi * done * self.epoch_steps / self.steps / 2))
        return self.decay ** sum(done >= at for at in self.decays_at)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What the protocols of both tasks say."""

    name: str
    version: int = 1
    """Rises when figures of the same set would change."""
    source: str
    """The publication that it follows, or what it is of ours."""
    summary: str
    """How students are trained, in a sentence."""
    differs: tuple[str, ...] = ()
    """Known differences from the publication."""
    unsure: tuple[str, ...] = ()
    """What is not known of the publication, and what is done here."""
    learning_rates: tuple[float, ...]
    """The rate; several are a grid, from which each set's is chosen on validation data."""
    students: int | None = None
    """Students of each set; None: `evaluation.seeds`."""
    momentum: float = 0.9
    weight_decay: float

    @property
    def is_published(self) -> bool:
        """Whether it follows a publication. Its rates are then not chosen, and it has no student of all data: the
        publications train that one in other ways."""
        return self.students is not None

    def shown_name(self, image_px: int) -> str:
        """The name for tables, which tells schedules of smaller images from what was published."""
        return f"{self.name}-small" if self.is_published and image_px < PUBLISHED_PX else self.name


@dataclass(frozen=True, kw_only=True)
class PairProtocol(Protocol):
    """How dual encoders are trained on pairs."""

    trained: Literal["frozen-text", "both-encoders"]
    encoder_share: float = 1.0
    """Learning rate of the encoders, as a share of that of the heads."""
    form: StudentForm = field(default_factory=StudentForm)
    temperature: float
    shifts: bool
    """Whether images are moved by up to a sixteenth of their side; no other augmentation keeps captions true."""
    as_learnt: bool = False
    """Whether a set with learnt similarities is trained on as LoRS trains on its own: each batch is drawn anew from all
    pairs, and the learning rates are those that were learnt with it."""
    by_caption: bool
    """Whether an epoch has each pair of an image and a caption once. Otherwise it has each image once, with one of its
    captions at random, so that no batch has an image twice."""
    training: Callable[[int], Training]
    """The training on a set, by its number of pairs or images, whichever an epoch counts."""


@dataclass(frozen=True, kw_only=True)
class LabelProtocol(Protocol):
    """How classifiers are trained from scratch on labelled images."""

    norm: Literal["instance", "batch"]
    """Normalisation layers of the network."""
    statistics: Literal["unit", "imagenet"]
    """What images are normalised with: to [-1, 1], or by the channel statistics of ImageNet."""
    augmentation: Literal["shift", "crop", "crop-jitter"]
    """Shifts by a sixteenth of the side; random resized crops of half to all of the area; or those with changes of
    brightness, contrast, saturation and lighting."""
    mirrors: bool
    cutmix: float
    """Share of the batches that are mixed by CutMix."""
    temperature: float | None = None
    """Of the teacher's targets; None: hard labels."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    training: Callable[[int, int], Training]
    """The training on a set, by its numbers of images and of classes."""
    rate_of: Callable[[float, int], float] = lambda rate, classes: rate
    """The learning rate for a number of classes."""
    decay_of: Callable[[float, int], float] = lambda weight_decay, classes: weight_decay
    """The weight decay for a number of classes."""

    @property
    def needs_teacher(self) -> bool:
        return self.temperature is not None
