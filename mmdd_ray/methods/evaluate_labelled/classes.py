"""A labelled set as somebody made it, and whether its classes are those of the data; imports neither torch nor Ray."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from mmdd_ray.config.data import SOURCES
from mmdd_ray.data.checks import NAMED_BY
from mmdd_ray.data.class_names import check_same_names, class_folder, read_class_names, shared_captions
from mmdd_ray.data.listing import reachable
from mmdd_ray.data.pair import Row
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.data.shards import find_shards
from mmdd_ray.distilled.read import read_distilled, read_manifest
from mmdd_ray.distilled.sample import MANIFEST
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.report.words import set_name
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

SCENES = "shapes:"


@dataclass(frozen=True)
class GivenImages:
    """A labelled set with its images as files."""

    uri: str
    """Where it lies, credentials redacted."""
    title: str
    """As people call it: its method, or the last part of its address."""
    rows: list[Row]
    """Its images, each with a label."""
    names: Mapping[int, str]
    """Names of classes, by label, as far as there are any."""

    @property
    def name(self) -> str:
        """Its title as a name for files and tables."""
        return set_name(self.title)

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
            raise UserError(_unusable(self.uri, len(lost), len(self.rows), key, why))
        return found


# ---- reading


def read_set(settings: EvaluateLabelled) -> GivenImages:
    """The set, read whole: it is small.

    Raises:
        UserError: It is missing or damaged; or an image of it cannot be read, or has no label.
    """
    # "::" stands between several sources, which are no folder of a distilled set
    if SOURCES not in settings.set and (store := Store(settings.set)).exists(MANIFEST):
        return _distilled(store)
    return _of_source(settings)


def _distilled(store: Store) -> GivenImages:
    where, manifest = redact(store.uri), read_manifest(store)
    rows = [
        Row("set", number, sample.key, sample.image, [], sample.label, None)
        for number, sample in enumerate(read_distilled(store))
    ]
    if without := [row.key for row in rows if row.label is None]:
        raise UserError(
            f"set={where} is a distilled set, but {len(without):,} of its {len(rows):,} images have no class; give "
            "sets of pairs to jobs/evaluate.py"
        )
    try:
        names = {int(label): str(name) for label, name in (manifest.get("classes") or {}).items()}
    except (ValueError, AttributeError):
        raise UserError(f"set={where}: its {MANIFEST} has classes that are not named by label") from None
    return GivenImages(where, manifest["method"], rows, names)


def _of_source(settings: EvaluateLabelled) -> GivenImages:
    """Any source of labelled images, read by the settings of the data."""
    where = redact(settings.set)
    data = replace(
        settings.data,
        uri=settings.set,
        split=settings.set_split,
        image_root=None,
        limit=None,
        needs_captions=False,
    )
    try:
        listing = find_shards(data)
        with reachable("data.uri", data.uri):
            rows = list(chain.from_iterable(iter_shard(shard, data) for shard in listing.shards))
    except UserError as error:
        raise UserError(str(error).replace("data.uri", "set").replace("data.split", "set_split")) from error
    if listing.missing:
        raise UserError(f"set={where}: {listing.missing[0]} is not there; correct the range")
    if refused := [row for row in rows if row.reject is not None]:
        first = refused[0]
        raise UserError(_unusable(where, len(refused), len(rows), first.key, first.reject or ""))
    if without := [row.key for row in rows if row.label is None]:
        raise UserError(
            f"set={where}: {len(without):,} of its {len(rows):,} images have no label, such as {without[0]}; name "
            "the column that has it as data.label_column, or use an image folder with one sub-folder per class"
        )
    if (
        listing.classes
    ):  # mixed as it is listed; a distilled set is in the order of its labels, as are its folders
        rows.sort(key=lambda row: (row.label, row.key))
    title = where.split("?")[0].rstrip("/").rpartition("/")[2] or where
    return GivenImages(where, title, rows, _names_in(settings.set, rows, listing.classes))


def _unusable(where: str, count: int, of: int, key: str, why: str) -> str:
    return (
        f"set={where}: {count:,} of its {of:,} images cannot be used (the first, {key}: {why}); mend or remove them, "
        "so that it is known what is evaluated"
    )


# ---- classes


def _names_in(uri: str, rows: Iterable[Row], folders: Collection[str]) -> dict[int, str]:
    """Names of classes that a source has itself."""
    if uri.startswith(SCENES):
        return dict(enumerate(CLASS_NAMES))
    if folders:
        return dict(enumerate(folders))
    # a caption that fewer images share need not be a name
    return _single(shared_captions(((row.label, row.captions) for row in rows), at_least=NAMED_BY))


def _single(shared: Mapping[int | None, Collection[str]]) -> dict[int, str]:
    """The one caption of each class; where it is the label itself, as in Parquet without captions, it is no name."""
    return {
        label: next(iter(captions))
        for label, captions in shared.items()
        if label is not None and len(captions) == 1 and {*captions} != {str(label)}
    }


@dataclass(frozen=True)
class DataClasses:
    """The classes of the real images, as far as they are known."""

    labels: list[int]
    """Ascending."""
    own_names: Mapping[int, str]
    """Those that the data have, by label."""
    listed: Mapping[int, str]
    """Those of the file `class_names`."""
    are_all: bool
    """Whether there are no other labels in the data."""

    def name(self, label: int) -> str | None:
        """Name of a class; None where nothing says it."""
        return self.listed.get(label, self.own_names.get(label))

    def accepted(self, label: int, template: str) -> set[str]:
        """All that a set may call a class: its names, and what is made of them in folders and prompts."""
        found = {names[label] for names in (self.listed, self.own_names) if label in names}
        folders = {class_folder(label, names) for names in (self.listed, self.own_names) if label in names}
        return found | folders | {template.replace("{class_name}", name) for name in found}


def seen_classes(settings: EvaluateLabelled, rows: Collection[Row], folders: Collection[str]) -> DataClasses:
    """The classes of the data by a look at their first rows, or at all folders of classes.

    Raises:
        UserError: The file of names cannot be read, or does not have a line for each class.
    """
    labels = (
        list(range(len(folders))) if folders else sorted({row.label for row in rows if row.label is not None})
    )
    own = _names_in(settings.data.uri, [row for row in rows if row.reject is None], folders)
    return DataClasses(labels, own, _listed(settings, labels, bool(folders)), bool(folders))


def all_classes(
    settings: EvaluateLabelled,
    labels: Mapping[int | None, int],
    shared: Callable[[int], Mapping[int | None, Collection[str]]],
) -> DataClasses:
    """The classes of the data by all of their usable images.

    Args:
        labels: Images of each label.
        shared: Gives the captions that all images of a label have, of labels with at least so many images.

    Raises:
        UserError: An image has no label, all are of one class, or a class has no line in the file of names.
    """
    where = redact(settings.data.uri)
    if None in labels:
        raise UserError(
            f"{labels[None]:,} of the {sum(labels.values()):,} images of {where} have no label; name the column that "
            "has it as data.label_column, or use an image folder with one sub-folder per class"
        )
    found = sorted(label for label in labels if label is not None)
    if len(found) < 2:
        raise UserError(f"all images of {where} are of one class; classifiers need at least two")
    if settings.data.uri.startswith(SCENES):
        own = dict(enumerate(CLASS_NAMES))
    elif (own := _single(shared(1))).keys() != {
        *found
    }:  # otherwise every class has a name, as in image folders
        own = _single(shared(NAMED_BY))
    return DataClasses(found, own, _listed(settings, found, False), True)


def _listed(settings: EvaluateLabelled, labels: Collection[int], are_places: bool) -> dict[int, str]:
    """The names in the file, by label.

    Args:
        are_places: Whether labels are the places of folders, so that every line must have one.
    """
    if settings.class_names is None:
        return {}
    lines = read_class_names(settings.class_names, "class_names")
    where = f"class_names={redact(settings.class_names)} has {len(lines)} lines, one for each class from 0 on"
    if unnamed := [label for label in labels if not 0 <= label < len(lines)]:
        raise UserError(f"{where}, but {redact(settings.data.uri)} has the label {unnamed[0]}")
    if are_places and len(lines) > len(labels):
        raise UserError(
            f"{where}, but {redact(settings.data.uri)} has {len(labels)} folders of classes; give each a line, in the "
            "order of the sorted folders"
        )
    return dict(enumerate(lines))


def check_set_classes(given: GivenImages, classes: DataClasses, settings: EvaluateLabelled) -> None:
    """Refuses a set whose classes are not those of the data.

    Raises:
        UserError: A class is called otherwise, has no image in the set, or is none of the data.
    """
    data_uri = redact(settings.data.uri)
    accepted = {label: classes.accepted(label, settings.template) for label in classes.labels}
    called = {given.names[label] for label in given.counts if label in given.names}
    if all(label in given.names for label in given.counts):  # otherwise one without a name may be the one
        lacking = [label for label, names in accepted.items() if names and not names & called]
        if lacking:
            raise UserError(_lacking(given, lacking, classes, data_uri))
    check_same_names(
        f"set={given.uri}",
        {label: {given.names[label]} for label in given.counts if label in given.names},
        data_uri,
        {
            label: {given.names[label]} if given.names.get(label) in names else {classes.name(label) or ""}
            for label, names in accepted.items()
            if names
        },
    )
    if lacking := [label for label in classes.labels if label not in given.counts]:
        raise UserError(_lacking(given, lacking, classes, data_uri))
    if classes.are_all and (more := [label for label in given.counts if label not in accepted]):
        raise UserError(
            f"set={given.uri} has {given.counts[more[0]]:,} images of the class {_called(more[0], given.names)}, which "
            f"data.uri={data_uri} does not have; leave them out, or name data with the same classes"
        )


def _lacking(given: GivenImages, labels: Collection[int], classes: DataClasses, data_uri: str) -> str:
    names = {label: name for label in labels if (name := classes.name(label)) is not None}
    shown = ", ".join(_called(label, names) for label in sorted(labels)[:3])
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return (
        f"set={given.uri} has no image of the class {shown}{more} of data.uri={data_uri}; a set needs images of every "
        "class, and classes with the numbers that they have in the data"
    )


def _called(label: int, names: Mapping[int, str]) -> str:
    return f"{label} ({names[label]!r})" if label in names else str(label)


def check_named(given: GivenImages, classes: DataClasses, settings: EvaluateLabelled) -> None:
    """Refuses to compare images with names of classes that nobody knows.

    Raises:
        UserError: "clip-score" is wanted, and a class has no name.
    """
    if "clip-score" in settings.evaluation.baselines:
        unnamed = [label for label in classes.labels if _name(label, given, classes) is None]
        if unnamed:
            raise UserError(
                f"evaluation.baselines has clip-score, but nothing says what the class {unnamed[0]} of data.uri="
                f"{redact(settings.data.uri)} is called; name a text file with the name of a class on each line as "
                "class_names, or leave clip-score out"
            )


def templates(given: GivenImages, classes: DataClasses, template: str) -> dict[int, str]:
    """The template of each class, by label, ascending; with its number where it has no name."""
    return {
        label: template.replace("{class_name}", _name(label, given, classes) or str(label))
        for label in classes.labels
    }


def _name(label: int, given: GivenImages, classes: DataClasses) -> str | None:
    return classes.name(label) or given.names.get(label)
