"""The protocol of evaluation tasks. Imports no torch."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

import mmdd_ray.protocols as protocols

Look = Callable[[Any, int], None]
"""Tests a student on its way, after so many steps."""


class Trained(NamedTuple):
    """A student, and how it was trained."""

    student: Any
    losses: np.ndarray
    """(steps,) float32, the loss at each step."""
    images_seen: int
    """Images of all steps together, each as often as it was seen."""
    loss: str
    """The kind of loss, for people: figures of different kinds cannot be compared."""
    learnt_rates: tuple[float, float] | None = None
    """Learning rates of image side and text side that were learnt with the set, where they replaced the protocol's."""
    notes: tuple[str, ...] = ()
    """Remarks for people on how it took the set, a sentence each."""


class Task(Protocol):
    """How students are trained on a set and tested; travels to the tasks that train one."""

    @property
    def name(self) -> str: ...

    @property
    def main_metric(self) -> str:
        """The one that decides."""
        ...

    @property
    def section(self) -> str:
        """Section of the settings that messages name."""
        ...

    @property
    def memory_setting(self) -> str:
        """The setting to lower where a GPU is too small."""
        ...

    @property
    def protocol(self) -> protocols.Protocol:
        """How students are trained and tested."""
        ...

    @property
    def image_px(self) -> int:
        """Side of the images."""
        ...

    @property
    def models(self) -> str:
        """What is trained, for people."""
        ...

    @property
    def made_by(self) -> list[str]:
        """What students depend on beside sets, settings and seeds: the protocol's version, and its teacher."""
        ...

    def learning_rates(self, held_out: Any) -> tuple[float, ...]:
        """The rate of the protocol; several are a grid, to choose from on validation data."""
        ...

    @property
    def prepare(self) -> Callable[[Any, str], np.ndarray] | None:
        """Makes, on a device, an array that all students need of a set; None where they share nothing."""
        ...

    def train(
        self,
        given: Any,
        prepared: np.ndarray | None,
        *,
        learning_rate: float,
        seed: int,
        device: str,
        look: Look | None = None,
    ) -> Trained:
        """Trains a student, and looks at it where the protocol says so."""
        ...

    def test(self, student: Any, held_out: Any, prepared: np.ndarray | None) -> dict[str, float]:
        """Its metrics by name, in percent."""
        ...

    def chance(self, held_out: Any) -> dict[str, float]:
        """Its metrics by chance."""
        ...
