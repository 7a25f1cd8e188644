"""The distilled set on disk: WebDataset shards as img2dataset lays them out, a manifest and a dataset card.

::

    00000.tar …          members 000000000.json, .png, .txt: shard (5 digits) and row in it (4 digits)
    README.md            Hugging Face dataset card
    contact_sheet.png    some of the images with their captions
    images/0003_red_circle/000123.png   the same images as an image folder, where the set has classes
    learnt_pairs.safetensors   where pixels and texts were learnt: what a student trains on. The shards show it
    manifest.json        written last: a folder with a manifest holds a whole set

The same samples give the same shards, byte for byte, on any machine. ``.txt`` holds the first caption, the
one that the image was drawn from; ``.json`` holds all, so that the set is a ``Data`` source like any other.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FOLDER = "distilled"  # of a run directory
MANIFEST = "manifest.json"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
LEARNT = "learnt_pairs.safetensors"
IMAGES = "images"
NEAREST = "nearest_words"  # of Sample.extra
FORMAT_VERSION = 1
CARD_EXAMPLES = 5
MAX_ROWS_PER_SHARD = 10_000  # row numbers have 4 digits
SHARD_NAME = re.compile(r"\d+\.tar")  # a manifest leads to no file outside its folder

# What a .json member holds besides Sample.extra.
FIELDS = ("key", "caption", "captions", "prompt", "seed", "source_key", "label", "width", "height")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One synthetic image with its captions."""

    key: str
    """Unique in the set."""
    image: bytes
    """PNG file."""
    captions: tuple[str, ...]
    """At least one; the first is the prompt that the image was drawn from."""
    seed: int
    """Seed of the image, or of the run where none was drawn; below 2**63, so that Arrow can hold it."""
    source_key: str
    """Key of the real pair that it goes back to, such as the one whose caption was the prompt."""
    label: int | None = None
    """Class, for labelled sets."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further figures as JSON, e.g. a selection score; the same names and types in every sample of a set."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that people are shown: the captions, and the words nearest to a text that was learnt."""
        return (*self.captions, *([self.extra[NEAREST]] if NEAREST in self.extra else []))


def single_captions(samples: Iterable[Sample]) -> list[Sample]:
    """The samples as pairs: one with c captions stands there c times, with one of them each."""
    return [replace(sample, captions=(text,)) for sample in samples for text in sample.captions]


def set_checksum(files: Sequence[Mapping[str, Any]]) -> str:
    """The output of ``sha256sum *.tar *.safetensors | sha256sum``; of images, the same with ``images/*/*.png``."""
    lines = [f"{file['sha256']}  {file['name']}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
