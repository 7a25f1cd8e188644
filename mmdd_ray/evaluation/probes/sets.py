"""The data of tests beyond retrieval, in memory, and what chance scores. Imports neither torch nor Ray."""

# N images of C classes; M contrasts of K images

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np

from mmdd_ray.config.evaluation import SLOT
from mmdd_ray.data.contrasts import ImageContrasts
from mmdd_ray.data.hard_negatives import Contrast
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import (
    LINEAR_PROBE,
    ZERO_SHOT,
    accuracy_chance,
    compositional_scores,
)
from mmdd_ray.evaluation.pairs import PairSet, check_images
from mmdd_ray.features.rejects import Reject, most_frequent

CONTRAST_CHANCE = 50.0


@dataclass(frozen=True)
class ClassSet:
    """Labelled images to recognise by the names of their classes.

    Raises:
        ValueError: a class has no name, or there are no templates.
    """

    images: LabelledSet
    names: tuple[str, ...]
    """Of each of ``images.classes``."""
    templates: tuple[str, ...]
    """Each with one ``{}`` for the name."""
    linear: bool = False
    """Whether a linear classifier is fitted, too."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.images.classes) or not self.templates:
            raise ValueError(f"{len(self.images.classes)} classes need as many names, and a template")

    @property
    def prompts(self) -> list[list[str]]:
        """What is said of each class: its name in every template."""
        return [[template.replace(SLOT, name) for template in self.templates] for name in self.names]

    @cached_property
    def trains_N(self) -> np.ndarray:
        """Which images a linear classifier is fitted to, bool: those whose pixels have an even digest, about half.

        An image that is there twice is on one side only.
        """
        pixels_N = (np.ascontiguousarray(image).data for image in self.images.images)
        return np.array([blake2b(pixels, digest_size=1).digest()[0] % 2 == 0 for pixels in pixels_N])

    def check_halves(self) -> None:
        """Looks whether a linear classifier can be fitted and tested.

        Raises:
            UserError: One half has no image, or that to fit to has a single class.
        """
        fitted, tested = self.images.labels[self.trains_N], self.images.labels[~self.trains_N]
        if len(np.unique(fitted)) < 2 or not len(tested):
            raise UserError(
                f"evaluation.linear_probe fits to {len(fitted)} of the {self.images.n_images} images of "
                f"evaluation.zero_shot, of {len(np.unique(fitted))} classes, and tests on {len(tested)}; name more "
                "images, or leave it out"
            )

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        about = repr((self.images.fingerprint(), self.names, self.templates, self.linear))
        return blake2b(about.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ContrastSet:
    """Images, with true captions and hard negatives.

    Raises:
        ValueError: images are not uint8 (K, px, px, 3) with K > 0, or the columns are not of one length above 0.
    """

    images: np.ndarray
    owner_M: np.ndarray
    """Image row of each contrast, int64."""
    kinds: tuple[str, ...]
    captions: tuple[str, ...]
    negatives: tuple[str, ...]

    def __post_init__(self) -> None:
        check_images(self.images)
        columns = {len(self.owner_M), len(self.kinds), len(self.captions), len(self.negatives)}
        if len(columns) != 1 or columns == {0}:
            raise ValueError(f"owners, kinds, captions and negatives must be as many, not {sorted(columns)}")

    @classmethod
    def read(
        cls, found: Iterable[ImageContrasts], *, image_px: int, max_pixels: int, max_bytes: int
    ) -> tuple["ContrastSet", list[Reject]]:
        """The contrasts of the images that can be read; those of the others are refused, each with the reason.

        Args:
            max_bytes: of an image file.

        Raises:
            UserError: no contrast is left.
        """
        images: list[np.ndarray] = []
        owners: list[int] = []
        used: list[Contrast] = []
        rejects: list[Reject] = []
        for one in found:
            try:
                content = one.read()
                if len(content) > max_bytes:
                    raise BadImage("file too large")
                image = decode_image(content, max_pixels=max_pixels, image_px=image_px)
            except (BadImage, FileNotFoundError) as error:
                reason = str(error) if isinstance(error, BadImage) else "missing image"
                rejects += [(contrast.kind, one.name, reason) for contrast in one.contrasts]
                continue
            owners += [len(images)] * len(one.contrasts)
            images.append(image)
            used += one.contrasts
        if not used:
            reasons = Counter(reason for *_, reason in rejects)
            raise UserError(f"no image with captions and negatives can be used; {most_frequent(reasons)}")
        columns = (tuple(getattr(one, name) for one in used) for name in ("kind", "caption", "negative"))
        return cls(np.stack(images), np.array(owners, np.int64), *columns), rejects

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        found = blake2b(np.ascontiguousarray(self.images).data, digest_size=16)
        columns = (self.kinds, self.captions, self.negatives)
        found.update(repr((self.images.shape, self.owner_M.tolist(), columns)).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Probes:
    """What trained dual encoders are asked beyond retrieval."""

    classes: ClassSet | None = None
    contrasts: ContrastSet | None = None

    def chance(self) -> dict[str, float]:
        """Expected scores of random answers, in percent; a linear probe may count which class is the most frequent."""
        found: dict[str, float] = {}
        if self.classes is not None:
            by_class = accuracy_chance(len(self.classes.names))
            found |= {ZERO_SHOT.format(name): score for name, score in by_class.items()}
            found |= {LINEAR_PROBE: by_class["top-1"]} if self.classes.linear else {}
        if self.contrasts is not None:
            found |= compositional_scores(dict.fromkeys(sorted({*self.contrasts.kinds}), CONTRAST_CHANCE))
        return found

    def fingerprint(self) -> str:
        """Hash of everything in it."""
        return repr([part and part.fingerprint() for part in (self.classes, self.contrasts)])


@dataclass(frozen=True)
class ProbedPairs(PairSet):
    """Test pairs, and what students that were searched with them are asked beyond retrieval."""

    probes: Probes = field(default_factory=Probes)

    def fingerprint(self) -> str:
        """Hash of the pairs and of the probes, so that students are asked again what has changed."""
        about = super().fingerprint() + self.probes.fingerprint()
        return blake2b(about.encode(), digest_size=16).hexdigest()
