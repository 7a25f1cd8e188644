"""A distilled set as a dataset of PyTorch and of Hugging Face."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch.utils.data import Dataset

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_distilled, read_learnt, read_manifest
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.errors import UserError
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:
    import datasets

Transform = Callable[[Image.Image], Any]


@dataclass(frozen=True, eq=False)
class DistilledSet(Dataset[tuple[Any, str | int]]):
    """A distilled set: an item is an image and one of its captions, or its class where the set has classes.

    An image with c captions is c items. Images are RGB images of Pillow, or what ``transform`` makes of them.
    """

    samples: Sequence[Sample]
    """Images with all their captions, seeds and sources."""
    manifest: Mapping[str, Any]
    """The set's manifest.json."""
    learnt: LearntPairs | None = None
    """The tensors of a set whose pixels and texts were learnt; its images only show them."""
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        pairs = "" if self.labelled else f", {len(self):,} pairs"
        return f"<DistilledSet by {self.manifest['method']}: {len(self.samples):,} images{pairs}>"

    def __getitem__(self, index: int) -> tuple[Any, str | int]:
        sample, target = self._items[index]
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        return (self.transform(image) if self.transform else image), target

    @property
    def labelled(self) -> bool:
        """Whether images have classes."""
        return any(sample.label is not None for sample in self.samples)

    def with_transform(self, transform: Transform) -> "DistilledSet":
        """The same set with images as another type, such as ``torchvision.transforms.ToTensor()`` makes."""
        return DistilledSet(self.samples, self.manifest, self.learnt, transform)

    def to_datasets(self) -> "datasets.Dataset":
        """The images as a ``datasets.Dataset``, with their captions, classes, seeds and sources.

        Raises:
            UserError: Hugging Face's library is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise UserError("to_datasets() needs Hugging Face's library; pip install datasets") from error
        columns = {
            "key": datasets.Value("string"),
            "image": datasets.Image(),
            "captions": datasets.List(datasets.Value("string")),
            "label": datasets.Value("int64"),
            "seed": datasets.Value("int64"),
            "source_key": datasets.Value("string"),
        }
        rows = [
            {
                "key": one.key,
                "image": {"bytes": one.image, "path": None},
                "captions": list(one.captions),
                "label": one.label,
                "seed": one.seed,
                "source_key": one.source_key,
            }
            for one in self.samples
        ]
        return datasets.Dataset.from_list(rows, features=datasets.Features(columns))

    @cached_property
    def _items(self) -> list[tuple[Sample, str | int]]:
        if self.labelled:
            return [(sample, sample.label) for sample in self.samples if sample.label is not None]
        return [(sample, caption) for sample in self.samples for caption in sample.captions]


def load_set(uri: Store | str) -> DistilledSet:
    """Reads a distilled set, and checks that it is whole.

    Args:
        uri: Its folder, a local path or a URI.

    Raises:
        UserError: There is none, or it is damaged.
    """
    store = uri if isinstance(uri, Store) else Store(str(uri))
    return DistilledSet(read_distilled(store), read_manifest(store), read_learnt(store))
