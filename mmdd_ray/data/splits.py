"""Splits by the names of files and folders: ``train-00000-of-00002.parquet``, ``val/``, ``test2017/``."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from mmdd_ray.errors import UserError

SPLIT_COLUMN = "split"
ALL = "all"
"""The split that keeps everything."""
# Hugging Face's words for splits, with years as COCO has them
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_YEAR = re.compile(r"(?<=[a-z])\d{4}$")


def word_split(word: str) -> str | None:
    """The split that a word names: train, validation or test; None for any other word."""
    return _SPLITS.get(_YEAR.sub("", word.lower()))


def is_split(found: object, wanted: str) -> bool:
    """Whether a value of a column names the wanted split; "train" takes Karpathy's "restval" along."""
    if not isinstance(found, str):
        return False
    word = word_split(wanted)
    return (
        found == wanted
        or (wanted == "train" and found == "restval")
        or (word is not None and word_split(found) == word)
    )


def may_overlap(one: str | None, other: str | None) -> bool:
    """Whether two splits of a source may have rows in common: None and "all" have those of any."""
    names = {name if name in (None, ALL) else word_split(name) or name for name in (one, other)}
    return len(names) == 1 or not names.isdisjoint((None, ALL))


def path_split(path: str) -> str | None:
    """The split that a relative path names: by a word of the file's name, or else of the nearest folder's."""
    for part in reversed(PurePosixPath(path).parts):
        for word in re.split(r"[^A-Za-z0-9]+", part):
            if split := word_split(word):
                return split
    return None


def by_split(paths: Iterable[str]) -> dict[str | None, list[str]]:
    """The paths of each split, in their order."""
    found: dict[str | None, list[str]] = defaultdict(list)
    for path in paths:
        found[path_split(path)].append(path)
    return dict(found)


def choose_split(found: Mapping[str | None, Sequence[str]], wanted: str | None, uri: str) -> str | None:
    """The split to keep among those found; None for everything.

    Args:
        found: Names of the files of each split, or of none.
        wanted: ``data.split``.
        uri: Of the source, for the message.

    Raises:
        UserError: There are several and none is wanted, or the wanted one is not there.
    """
    names = [split for split in found if split]
    if wanted == ALL:
        return None
    if wanted is not None:
        split = word_split(wanted)
        if split not in names:
            none = "no file or folder in it is named by a split; if it is all of one, set data.split to None"
            raise UserError(
                f"data.split={wanted!r} is not in {uri}: {f'it has {_listed(found)}' if names else none}"
            )
        return split
    if not names or len(found) == 1:
        return None
    raise UserError(
        f"data.uri={uri} has several splits: {_listed(found)}; name one as data.split, e.g. "
        f"data.split={'train' if 'train' in names else names[0]}, or take everything with data.split={ALL}"
    )


def _listed(found: Mapping[str | None, Sequence[str]]) -> str:
    return ", ".join(
        f"{split or 'no split'} ({len(paths):,}, e.g. {paths[0]})" for split, paths in found.items()
    )
