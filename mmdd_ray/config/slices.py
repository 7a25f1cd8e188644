"""Slices of a split in percent, as Hugging Face writes them, ``train[20%:]``; and sources that are slices of others."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from mmdd_ray.errors import UserError

S = TypeVar("S")
_PERCENT = r"(\d+(?:\.\d+)?(?:e-\d+)?)%"
_SLICE = re.compile(rf"(.*)\[(?:{_PERCENT})?:(?:{_PERCENT})?\]")
_SHARE = re.compile(_PERCENT)
HELD_OUT = ("test", "val")
"""Settings of evaluation that may be a share of the training data, in the order in which these are cut."""


class Slice(NamedTuple):
    """The images of a source whose content hashes to a percentage from `first` up to `last`, which is outside."""

    first: float = 0.0
    last: float = 100.0

    @property
    def is_all(self) -> bool:
        """Whether it leaves nothing out."""
        return self == Slice()

    @property
    def share(self) -> float:
        """The share of the images that it has, about: between 0 and 1."""
        return (self.last - self.first) / 100

    def overlaps(self, other: "Slice") -> bool:
        """Whether an image may be in both."""
        return self.first < other.last and other.first < self.last

    def within(self, split: str | None) -> str:
        """The setting that names this slice of a split."""
        first, last = (f"{one:.15g}%" if one not in (0, 100) else "" for one in self)
        return f"{split or ''}[{first}:{last}]"


def sliced(split: str | None) -> tuple[str | None, Slice]:
    """The split that a setting names, None for none, and the slice of it.

    Raises:
        UserError: What stands in brackets is no slice.

    Examples:
        >>> sliced("train[20%:]")
        ('train', Slice(first=20.0, last=100.0))
    """
    if split is None or not split.endswith("]"):
        return split, Slice()
    found = _SLICE.fullmatch(split)
    if found is None:
        raise UserError(
            f"data.split={split!r} has something else than a slice in its brackets; give it in percent, as in "
            "'train[20%:]', '[:10%]' or 'train[10%:20%]'"
        )
    name, first, last = found.groups()
    part = Slice(float(first or 0), float(last or 100))
    if not 0 <= part.first < part.last <= 100:
        raise UserError(f"data.split={split!r} holds nothing; a slice goes up, from 0% to 100% at most")
    return name or None, part


def hold_out_shares(settings: S, presets: Iterable[Any] = ()) -> S:
    """The settings with validation and test data that are a share of the training data, ``evaluation.test=10%``,
    written as slices of these, which the training data then lack. Other settings come back as they are.

    A share is one of what ``data.split`` names.

    Args:
        presets: Settings whose splits and image folders of validation and test data count as left out.

    Raises:
        UserError: A share is nothing, or shares leave nothing; or one has a split or an image folder of its own.
    """
    given: Any = settings  # of any job
    evaluation: Any = getattr(given, "evaluation", None)
    named = {part: getattr(evaluation, part, None) for part in HELD_OUT}
    shares = {
        part: float(found[1]) for part, uri in named.items() if uri and (found := _SHARE.fullmatch(uri))
    }
    if not shares:
        return settings
    said = [f"evaluation.{part}={named[part]}" for part in shares]
    if nothing := [one for one, share in zip(said, shares.values(), strict=True) if not share]:
        raise UserError(f"{nothing[0]} holds nothing; give a share such as 10%")
    left_out = [None, *(getattr(preset, "evaluation", None) for preset in presets)]
    for part in shares:
        for name in (f"{part}_split", f"{part}_image_root"):
            if (own := getattr(evaluation, name)) not in {getattr(one, name, None) for one in left_out}:
                raise UserError(
                    f"evaluation.{name}={own} is for a source of its own, but evaluation.{part}={named[part]} is a "
                    f"share of data.uri; set evaluation.{name} to None, or name a source"
                )
    if sum(shares.values()) >= 100:
        verb = "leaves" if len(said) == 1 else "leave"
        raise UserError(f"{' and '.join(said)} {verb} nothing of data.uri to train on; give less")
    data = given.data
    split, whole = sliced(data.split)
    ends = _ends(whole, list(shares.values()))
    changes: dict[str, Any] = {}
    for part, first, last in zip(shares, ends, ends[1:], strict=False):
        changes |= {part: data.uri, f"{part}_split": Slice(first, last).within(split)}
        changes[f"{part}_image_root"] = data.image_root
    training = replace(data, split=Slice(ends[-1], whole.last).within(split))
    return replace(given, data=training, evaluation=replace(evaluation, **changes))


def _ends(own: Slice, percents: Sequence[float]) -> list[float]:
    """Where slices of so many percent of a slice begin and end, one behind the other from its beginning."""
    ends = [own.first]
    for percent in percents:
        ends.append(ends[-1] + percent * own.share)
    return ends
