"""Names of classes, from a text file or as captions that all images of a class have. Imports neither torch nor Ray."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fsspec.core import url_to_fs

from mmdd_ray.config.data import SCENES
from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.errors import UserError


def read_class_names(uri: str, setting: str = "describe.class_names") -> list[str]:
    """The lines of a UTF-8 text file, a local path or a URI: the name of each class, from 0 on.

    Args:
        setting: The one that names the file, for messages.

    Raises:
        UserError: it cannot be read, or a line is blank.
    """
    try:
        fs, path = url_to_fs(uri)
        text = fs.cat_file(path).decode("utf-8-sig")
    except Exception as error:  # each storage library raises its own, and they share no base class
        raise UserError(f"{setting}={uri} cannot be read as text: {error}") from error
    names = [" ".join(line.split()) for line in text.rstrip().splitlines()]
    if not names or not all(names):
        raise UserError(f"{setting}={uri} has a blank line; every class needs a name")
    return names


def names_to_recognise(
    uri: str,
    names_uri: str | None,
    folders: Sequence[str],
    shared: Mapping[int | None, set[str]],
    *,
    is_whole: bool = True,
) -> dict[int, str]:
    """The name of each class that students are to recognise in ``evaluation.zero_shot``, by label, ascending.

    Args:
        uri: The source, for messages and for `shapes:`.
        names_uri: A text file that says it, and comes before all else.
        folders: Names of its folders of classes, by label; empty where labels are something else.
        shared: What ``shared_captions`` gives for its rows.
        is_whole: Whether these are all rows; where names are captions, the first rows only show that there are none.

    Raises:
        UserError: A class has no name, two classes have one name, or there are fewer than two.
    """
    where = f"evaluation.zero_shot={uri}"
    found = _given_names(uri, names_uri, folders)
    by_caption = found is None
    if found is None:
        # a label stands in for a caption where there is none
        own = {label: texts - {str(label)} for label, texts in shared.items() if label is not None}
        found = {
            label: min(texts)
            for label, texts in sorted(own.items())
            if len(texts) == 1 or (texts and not is_whole)
        }
    if unnamed := sorted({label for label in shared if label is not None} - found.keys()):
        raise UserError(
            f"{where} has no name for the class {unnamed[0]}; name a text file with the name of a class on each line "
            "as evaluation.zero_shot_names"
        )
    if is_whole or not by_caption:
        _check_names(where, found)
    return found


def _given_names(uri: str, names_uri: str | None, folders: Sequence[str]) -> dict[int, str] | None:
    """Names by label; None where only captions can say them."""
    if names_uri is None:
        if folders:
            return {label: name.replace("_", " ") for label, name in enumerate(folders)}
        return dict(enumerate(CLASS_NAMES)) if uri.startswith(SCENES) else None
    lines = read_class_names(names_uri, "evaluation.zero_shot_names")
    if folders and len(folders) != len(lines):
        raise UserError(
            f"evaluation.zero_shot={uri} has {len(folders)} folders of classes, but evaluation.zero_shot_names="
            f"{names_uri} has {len(lines)} lines; give each folder a line, in the order {', '.join(folders[:3])}, …"
        )
    return dict(enumerate(lines))


def _check_names(where: str, names: Mapping[int, str]) -> None:
    if len(names) < 2:
        raise UserError(f"{where} has {len(names)} classes with a name; name labelled images of two at least")
    last = {name: label for label, name in names.items()}
    for label, name in names.items():
        if last[name] != label:
            raise UserError(
                f"{where} calls the classes {label} and {last[name]} both {name!r}; give each a name of its own in a "
                "text file, as evaluation.zero_shot_names"
            )


def class_folder(label: int, names: Mapping[int, str]) -> str:
    """The folder of a class where a distilled set is an image folder, too, e.g. ``0003_red_circle``.

    Folders are sorted as the labels are, and told apart by them.

    Args:
        names: Of all classes, by label.
    """
    digits = max(4, len(str(max(names))))
    return f"{label:0{digits}d}_{re.sub('[^A-Za-z0-9]+', '_', names[label])[:90]}"


def shared_captions(
    rows: Iterable[tuple[int | None, Sequence[str]]], at_least: int = 1
) -> dict[int | None, set[str]]:
    """Captions that all images of a label have, from (label, captions) of each image: the name of the class, if one.

    Args:
        at_least: Images of a label; labels with fewer are left out.
    """
    shared: dict[int | None, set[str]] = {}
    images: Counter[int | None] = Counter()
    for label, captions in rows:
        shared[label] = shared[label].intersection(captions) if label in shared else set(captions)
        images[label] += 1
    return {label: captions for label, captions in shared.items() if images[label] >= at_least}


def check_same_names(
    where: str,
    own: Mapping[int | None, set[str]],
    training_uri: str,
    training: Mapping[int | None, set[str]],
) -> None:
    """Refuses held-out classes that are called otherwise than those of the training data.

    The label of an image in a folder is the place of its class among the folders there are, so one folder more or less
    would silently move the labels of all after it.

    Args:
        where: The setting and the source of the held-out images.
        own: What ``shared_captions`` gives for them, of labels with several images: the caption of a class's only
            image need not be its name.
        training: The same of the training data.

    Raises:
        UserError: A label has another name.
    """
    for label, captions in training.items():
        if len(captions) == 1 and len(own.get(label, ())) == 1 and own[label] != captions:
            raise UserError(
                f"{where} has the label {label} for {next(iter(own[label]))!r}, data.uri={training_uri} for "
                f"{next(iter(captions))!r}; use sources with the same classes"
            )
