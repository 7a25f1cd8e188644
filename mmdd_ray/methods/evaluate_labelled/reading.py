"""Labelled sets as somebody made them, read whole: they are small. Imports neither torch nor Ray."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from mmdd_ray.config import Data
from mmdd_ray.config.data import SCENES
from mmdd_ray.data.checks import NAMED_BY
from mmdd_ray.data.class_names import shared_captions
from mmdd_ray.data.listing import reachable
from mmdd_ray.data.pair import Row
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.data.shards import find_shards
from mmdd_ray.distilled.read import read_distilled, read_manifest
from mmdd_ray.distilled.sample import MANIFEST
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.named_sets import NamedSet, named_sets
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


@dataclass(frozen=True)
class GivenImages:
    """A labelled set with its images as files."""

    named: NamedSet
    rows: list[Row]
    """Its images, each with a label."""
    names: Mapping[int, str]
    """Names of classes, by label, as far as there are any."""

    @property
    def shown(self) -> str:
        """The setting with its value, for messages."""
        return self.named.shown

    @cached_property
    def counts(self) -> dict[int, int]:
        """Images of each class, by label, ascending."""
        return dict(sorted(Counter(row.label for row in self.rows if row.label is not None).items()))

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all images and labels, in order."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(f"{row.label} {len(row.image or b'')} ".encode())
            found.update(row.image or b"")
        return found.hexdigest()

    @property
    def sizes(self) -> str:
        """``96 images of 48 classes, 2 of each``."""
        return f"{len(self.rows):,} images of {len(self.counts):,} classes, {self._range} of each"

    @property
    def _range(self) -> str:
        few, many = min(self.counts.values()), max(self.counts.values())
        return f"{few:,}" if few == many else f"{few:,} to {many:,}"

    def about(self, first: "GivenImages") -> dict[str, Any]:
        """Its entry in a report, as JSON.

        Args:
            first: The first set, which baselines are as large as.
        """
        return {
            "label": self.named.label,
            "kind": "distilled" if self.named.kind == "distilled" else "images",
            "uri": redact(self.named.uri),
            "images": len(self.rows),
            "per_class": [[label, count] for label, count in self.counts.items()],
            "identity": self.checksum,
            "notes": self._about_shares(first),
        }

    def _about_shares(self, first: "GivenImages") -> list[str]:
        """Notes where classes have different numbers of images, in this set or beside the first one."""
        notes = []
        if len({*self.counts.values()}) > 1:
            alike = ", and baselines have as many of each" if self is first else ""
            notes.append(f"it has {self._range} images of each class{alike}")
        other = [label for label, count in self.counts.items() if count != first.counts.get(label)]
        if other and len(self.rows) == len(first.rows):
            title, label = first.named.label, other[0]
            notes.append(
                f"it has as many images as {title}, but not of each class: {self.counts[label]:,} of the class "
                f"{called(label, self.names)}, of which {title} has {first.counts.get(label, 0):,}"
            )
        return notes

    def decoded(self, classes: tuple[int, ...], settings: EvaluateLabelled) -> LabelledSet:
        """The images at the size of the classifiers'.

        Args:
            classes: All labels, ascending.

        Raises:
            UserError: One of them cannot be decoded.
        """
        px, pixels = settings.classifiers.image_px, settings.data.max_image_pixels
        found, lost = LabelledSet.from_rows(self.rows, classes, image_px=px, max_pixels=pixels)
        if lost:
            _, key, why = lost[0]
            raise UserError(_unusable(self.named, len(lost), len(self.rows), key, why))
        return found


def read_sets(settings: EvaluateLabelled) -> list[GivenImages]:
    """All sets of the settings, in their order.

    Raises:
        UserError: One is missing or damaged, or is named twice; or an image of it cannot be read, or has no label.
    """
    return [_read(one, settings) for one in named_sets(settings.set)]


def source_of(one: NamedSet, settings: EvaluateLabelled) -> Data:
    """A set as a source: like the training data, with an address and a split of its own, and captions if it has any."""
    return replace(
        settings.data,
        uri=one.uri,
        split=settings.set_split,
        image_root=None,
        limit=None,
        needs_captions=False,
    )


def _read(one: NamedSet, settings: EvaluateLabelled) -> GivenImages:
    if one.kind == "vectors":
        raise UserError(
            f"{one.shown} is a file of pixels and sentence vectors, which have no classes; give it to jobs/evaluate.py"
        )
    return _distilled(one) if one.kind == "distilled" else _of_source(one, settings)


def _distilled(one: NamedSet) -> GivenImages:
    store = Store(one.uri)
    rows = [
        Row("set", number, sample.key, sample.image, [], sample.label, None)
        for number, sample in enumerate(read_distilled(store))
    ]
    if without := [row.key for row in rows if row.label is None]:
        raise UserError(
            f"{one.shown} is a distilled set, but {len(without):,} of its {len(rows):,} images have no class; give "
            "sets of pairs to jobs/evaluate.py"
        )
    try:
        listed = read_manifest(store).get("classes") or {}
        names = {int(label): str(name) for label, name in listed.items()}
    except (ValueError, AttributeError):
        raise UserError(f"{one.shown}: its {MANIFEST} has classes that are not named by label") from None
    return GivenImages(one, rows, names)


def _of_source(one: NamedSet, settings: EvaluateLabelled) -> GivenImages:
    """Any source of labelled images, read by the settings of the data."""
    data = source_of(one, settings)
    try:
        listing = find_shards(data)
        with reachable("data.uri", data.uri):
            rows = list(chain.from_iterable(iter_shard(shard, data) for shard in listing.shards))
    except UserError as error:
        raise UserError(str(error).replace("data.uri", "set").replace("data.split", "set_split")) from error
    if listing.missing:
        raise UserError(f"{one.shown}: {listing.missing[0]} is not there; correct the range")
    if refused := [row for row in rows if row.reject is not None]:
        first = refused[0]
        raise UserError(_unusable(one, len(refused), len(rows), first.key, first.reject or ""))
    if without := [row.key for row in rows if row.label is None]:
        raise UserError(
            f"{one.shown}: {len(without):,} of its {len(rows):,} images have no label, such as {without[0]}; name "
            "the column that has it as data.label_column, or use an image folder with one sub-folder per class"
        )
    if (
        listing.classes
    ):  # mixed as it is listed; a distilled set is in the order of its labels, as are its folders
        rows.sort(key=lambda row: (row.label, row.key))
    return GivenImages(one, rows, names_in(one.uri, rows, listing.classes))


def _unusable(one: NamedSet, count: int, of: int, key: str, why: str) -> str:
    return (
        f"{one.shown}: {count:,} of its {of:,} images cannot be used (the first, {key}: {why}); mend or remove them, "
        "so that it is known what is evaluated"
    )


# ---- names of classes


def names_in(uri: str, rows: Iterable[Row], folders: Collection[str]) -> dict[int, str]:
    """Names of classes that a source has itself, by label.

    Args:
        folders: Names of its folders of classes, sorted; empty where labels are something else.
    """
    if uri.startswith(SCENES):
        return dict(enumerate(CLASS_NAMES))
    if folders:
        return dict(enumerate(folders))
    # a caption that fewer images share need not be a name
    return single(shared_captions(((row.label, row.captions) for row in rows), at_least=NAMED_BY))


def single(shared: Mapping[int | None, Collection[str]]) -> dict[int, str]:
    """The one caption of each class; where it is the label itself, as in Parquet without captions, it is no name."""
    return {
        label: next(iter(captions))
        for label, captions in shared.items()
        if label is not None and len(captions) == 1 and {*captions} != {str(label)}
    }


def called(label: int, names: Mapping[int, str]) -> str:
    """``2 ('wren')``, or the label alone where it has no name."""
    return f"{label} ({names[label]!r})" if label in names else str(label)
