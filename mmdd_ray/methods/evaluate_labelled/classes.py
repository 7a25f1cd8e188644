"""Whether the classes of labelled sets are those of the data and of each other; imports neither torch nor Ray."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mmdd_ray.config.data import SCENES
from mmdd_ray.data.checks import NAMED_BY
from mmdd_ray.data.class_names import check_same_names, class_folder, read_class_names
from mmdd_ray.data.pair import Row
from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.errors import UserError
from mmdd_ray.methods.evaluate_labelled.reading import GivenImages, called, names_in, single
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.storage.redact import redact


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
        UserError: The file of names cannot be read, or does not have a line for each class; or there is one folder of
            a class alone.
    """
    labels = (
        list(range(len(folders))) if folders else sorted({row.label for row in rows if row.label is not None})
    )
    if folders:
        _require_two(labels, settings)
    own = names_in(settings.data.uri, [row for row in rows if row.reject is None], folders)
    return DataClasses(labels, own, _listed(settings, labels, bool(folders)), bool(folders))


def _require_two(labels: Sequence[int], settings: EvaluateLabelled) -> None:
    if len(labels) < 2:
        where = redact(settings.data.uri)
        raise UserError(f"all images of {where} are of one class; classifiers need at least two")


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
    _require_two(found, settings)
    if settings.data.uri.startswith(SCENES):
        own = dict(enumerate(CLASS_NAMES))
    elif (own := single(shared(1))).keys() != {
        *found
    }:  # otherwise every class has a name, as in image folders
        own = single(shared(NAMED_BY))
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
        given.shown,
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
            f"{given.shown} has {sum(given.counts[label] for label in more):,} images of the class "
            f"{_several(more, given.names)}, which data.uri={data_uri} does not have; leave them out, or name data "
            "with the same classes"
        )


def _lacking(given: GivenImages, labels: Collection[int], classes: DataClasses, data_uri: str) -> str:
    names = {label: name for label in labels if (name := classes.name(label)) is not None}
    return (
        f"{given.shown} has no image of the class {_several(labels, names)} of data.uri={data_uri}; a set needs "
        "images of every class, and classes with the numbers that they have in the data"
    )


def _several(labels: Collection[int], names: Mapping[int, str]) -> str:
    """The first three of these classes, and how many more there are."""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(called(label, names) for label in sorted(labels)[:3]) + more


def check_same_classes(sets: Sequence[GivenImages], settings: EvaluateLabelled) -> None:
    """Refuses sets whose classes are not the same, which the data may not tell: they may have no names.

    Raises:
        UserError: A class has no image in one of two sets, or they call it otherwise.
    """
    for first, other in combinations(sets, 2):
        for one, lacks in ((first, other), (other, first)):
            if more := [label for label in one.counts if label not in lacks.counts]:
                raise UserError(
                    f"{one.shown} has images of the class {_several(more, one.names)}, and {lacks.shown} has none; "
                    "name sets with the same classes"
                )
        for label in first.counts:
            ours, theirs = (_forms(label, one.names, settings.template) for one in (first, other))
            if ours and theirs and not ours & theirs:
                raise UserError(
                    f"{first.shown} calls the class {label} {first.names[label]!r}, and {other.shown} "
                    f"{other.names[label]!r}; name sets with the same classes"
                )


def _forms(label: int, names: Mapping[int, str], template: str) -> set[str]:
    """All that another set may call a class of a set with these names, which may be prompts themselves."""
    plain = {own: _without(template, name) for own, name in names.items()}
    return DataClasses([], names, plain, True).accepted(label, template)


def _without(template: str, name: str) -> str:
    """The name of the class in a prompt; any other text as it is."""
    before, _, after = template.partition("{class_name}")
    is_prompt = name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    return name[len(before) : len(name) - len(after)] if is_prompt else name


def check_classes(sets: Sequence[GivenImages], classes: DataClasses, settings: EvaluateLabelled) -> None:
    """All checks of the classes of sets and data.

    Raises:
        UserError: A set has other classes than the data or than another set, or "clip-score" is wanted and a class has
            no name.
    """
    for given in sets:
        check_set_classes(given, classes, settings)
    check_same_classes(sets, settings)
    _check_named(sets, classes, settings)


def _check_named(sets: Sequence[GivenImages], classes: DataClasses, settings: EvaluateLabelled) -> None:
    if "clip-score" in settings.evaluation.baselines:
        unnamed = [label for label in classes.labels if _name(label, sets, classes) is None]
        if unnamed:
            raise UserError(
                f"evaluation.baselines has clip-score, but nothing says what the class {unnamed[0]} of data.uri="
                f"{redact(settings.data.uri)} is called; name a text file with the name of a class on each line as "
                "class_names, or leave clip-score out"
            )


def templates(sets: Sequence[GivenImages], classes: DataClasses, template: str) -> dict[int, str]:
    """The template of each class, by label, ascending; with its number where it has no name."""
    return {
        label: template.replace("{class_name}", _name(label, sets, classes) or str(label))
        for label in classes.labels
    }


def _name(label: int, sets: Sequence[GivenImages], classes: DataClasses) -> str | None:
    """The name of a class in the data, or else in the first set that has one."""
    return classes.name(label) or next((one.names[label] for one in sets if label in one.names), None)
