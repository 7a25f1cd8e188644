"""A set of any kind as an audit looks at it. Imports neither Ray nor torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.storage.store import Store

MAX_PIXELS = 2**31  # of an image that this package has written


@dataclass(frozen=True)
class AuditedSet:
    """A set as an audit looks at it."""

    uri: str
    """Its place, for messages."""
    samples: Sequence[Sample]
    """Image files of any kind that is read, each with its captions, if it has some."""
    learnt: LearntPairs | None = None
    """The pairs that students are trained on, where they are more than the samples show."""
    max_pixels: int = MAX_PIXELS
    """Images that declare more are not decoded."""
    image_px: int | None = None
    """Side at which its images are compared with real ones. None: that of the first, as all images of a distilled set
    have the same."""

    @classmethod
    def distilled(cls, folder: Store) -> "AuditedSet":
        """A distilled set by its folder.

        Raises:
            UserError: It is damaged.
        """
        return cls(folder.uri, read_distilled(folder), read_learnt(folder))

    @classmethod
    def of_files(
        cls, uri: str, images: Iterable[tuple[str, bytes, Sequence[str]]], max_pixels: int, image_px: int
    ) -> "AuditedSet":
        """A set of image files, each with its key and its captions."""
        samples = [
            Sample(key=key, image=image, captions=tuple(captions), seed=0, source_key="")
            for key, image, captions in images
        ]
        return cls(uri, samples, None, max_pixels, image_px)
