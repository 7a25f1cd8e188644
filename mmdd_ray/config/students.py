"""Settings of what is trained on a set to measure it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from mmdd_ray.config.fields import Count, Essential, Positive, Precision, Rate, Weight, extending
from mmdd_ray.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StudentForm:
    """How a dual encoder is built from its encoders, and what enters them; a protocol decides it."""

    pooling: Literal["mean", "cls"] = "mean"
    """A caption's feature: the mean of its tokens' last hidden states, or that of the first token."""
    heads: Literal["linear", "text-projection"] = "linear"
    """A linear head on each encoder, or image features as they are and a projection of the texts of two layers."""
    embed_dim: int | None = None
    """Width of the shared space; None: that of the settings."""
    centred: bool = True
    """Whether the mean feature of the set is taken from all features before the heads."""
    statistics: Literal["own", "clip"] = "own"
    """Statistics that normalise pixels: those of the image encoder's pretraining, or CLIP's."""
    caption_words: int | None = None
    """Captions lose their punctuation and capitals, and all words after so many; None: they enter as they are."""


@dataclass(frozen=True, kw_only=True)
class Students:
    """The dual encoders that are trained on a set to measure it.

    Models, image_px, max_tokens and precision count under every protocol; all else is what "equal-budget" is.
    """

    section: ClassVar[str] = "students"
    """Name of this section, for messages."""
    image_model: Essential[str] = "tiny-nf"
    """Image encoder: a zoo name, any timm name, or "local-dir:/FOLDER"."""
    text_model: Essential[str] = "tiny-bert"
    """Text encoder: a zoo name, a transformers hub name, or a folder."""
    image_px: Essential[Count] = 32
    """Side of the images that students see."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Captions are cut to this many tokens."""
    embed_dim: Count = 256
    """Width of the shared space."""
    trained: Literal["frozen-text", "both-encoders"] = "frozen-text"
    """"frozen-text" trains the image encoder and both heads (LoRS and its followers); "both-encoders" all."""
    steps: Essential[Count] = 80
    """Optimiser steps of every student, whatever the size of its set."""
    batch_pairs: Annotated[int, Ge(2)] = 64
    """Pairs in a step; a smaller set is trained on whole."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.03, 0.1)
    """Grid from which each set's learning rate is chosen on validation data."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay."""
    temperature: Positive = 0.07
    """Temperature of InfoNCE."""
    looks: Annotated[int, Ge(0)] = 0
    """How often each student is tested on its way, for its learning curve; nothing is chosen by it."""
    precision: Precision = "auto"
    """Precision of matrix products and convolutions in training; "auto" is bfloat16 on GPUs and on CPUs with units for
    it, and float32 on others."""


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """The classifiers that are trained from scratch on a set to measure it.

    Model, width, image_px, precision and the teacher count under every protocol; all else is what "equal-budget" is.
    """

    model: Literal["resnet-ap-10", "resnet-18", "convnet-3", "convnet-4", "convnet-5", "convnet-6"] = (
        "convnet-3"
    )
    """Network of the field; its normalisation is the protocol's."""
    width: Count = 128
    """Channels of a ConvNet; ResNets have 64 to 512."""
    image_px: Essential[Count] = 32
    """Side of the images that classifiers see."""
    steps: Essential[Count] = 300
    """Optimiser steps of every classifier, whatever the size of its set."""
    batch_images: Annotated[int, Ge(2)] = 64
    """Images in a step; a smaller set is trained on whole."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.01,)
    """Grid from which each set's learning rate is chosen on validation data; not looked for where it is one."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay."""
    flip: bool = True
    """Mirrors images at random."""
    cutmix: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the batches that are mixed by CutMix."""
    looks: Annotated[int, Ge(0)] = 0
    """How often each classifier is tested on its way, for its learning curve; nothing is chosen by it."""
    teacher: str | None = extending(None)
    """Teacher of the protocol "soft-label": a .safetensors or .pth file with the weights of `model` with batch norm,
    its classes in the order of their labels. It is tested first. Default: one is trained on the real images. A finished
    run takes one on."""
    teacher_steps: Count = extending(2000)
    """Optimiser steps of a teacher that is trained. A finished run takes another number on."""
    precision: Precision = "auto"
    """Precision of matrix products and convolutions in training; "auto" is bfloat16 on GPUs and on CPUs with units for
    it, and float32 on others."""

    @property
    def poolings(self) -> int | None:
        """How often a ConvNet halves the side of an image, None for ResNets; raises ``UserError`` when it cannot."""
        depth = self.model.removeprefix("convnet-")
        if not depth.isdecimal():
            least = 16 if self.model == "resnet-ap-10" else 9
            if self.image_px < least:
                raise UserError(
                    f"classifiers.model={self.model} needs images of {least} px, but classifiers.image_px="
                    f"{self.image_px}; smaller ones end as single pixels, of which instance norm leaves nothing"
                )
            return None
        if not self.image_px >> int(depth):
            raise UserError(
                f"classifiers.model={self.model} halves the side of images {depth} times, but "
                f"classifiers.image_px={self.image_px}; choose a shallower one"
            )
        return int(depth)
