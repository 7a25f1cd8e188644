"""Names of classes, from a text file or as captions that all images of a class have. Imports neither torch nor Ray."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fsspec.core import url_to_fs

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
