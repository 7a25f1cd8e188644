"""A tracker, and what it is given."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

PROJECT = "mmdd-ray"
_OTHER_CHARACTERS = re.compile(r"[^\w\-./ ]")  # than those that TensorBoard and MLflow have in names


@dataclass(frozen=True)
class Point:
    """Values of one moment."""

    group: str
    """Before each name: "finetune" and "total" are the curve "finetune/total"."""
    step: int
    values: Mapping[str, float]

    def named(self) -> dict[str, float]:
        """The values by their full names."""
        return {f"{self.group}/{name}": value for name, value in self.values.items()}


@dataclass(frozen=True)
class About:
    """The run that a tracker is told of."""

    name: str
    settings: Mapping[str, Any]
    """Resolved, without credentials."""


class Tracker(Protocol):
    """An open tracker; any method may raise whatever the tracker does."""

    key: str
    """By which the tracker finds the run again when it is resumed."""

    def log(self, points: Sequence[Point]) -> None: ...
    def picture(self, name: str, png: bytes) -> None: ...
    def flush(self) -> None:
        """Makes visible what was sent; called after each stage."""
        ...

    def close(self, finished: bool) -> None:
        """Ends the connection.

        Args:
            finished: Whether the run is finished, and was not interrupted.
        """
        ...


def plain(name: str) -> str:
    """The name with a _ for each character that not all trackers have."""
    return _OTHER_CHARACTERS.sub("_", name)


def to_image(png: bytes) -> Image.Image:
    """The picture, for packages that take no file."""
    return Image.open(io.BytesIO(png))
