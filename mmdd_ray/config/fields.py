"""Types of fields, and what a field says of resuming."""

from dataclasses import field
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Lt

from mmdd_ray.errors import UserError

T = TypeVar("T")

ESSENTIAL = "essential"
Essential = Annotated[T, ESSENTIAL]
"""Type of a setting that ``--help`` shows; ``--help_all`` shows the others, too."""

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Ge(0), Lt(1)]
Precision = Literal["auto", "float32", "bfloat16"]


def operational(default: Any) -> Any:
    """A field that says how to run, not what comes out: it may change when a run is resumed."""
    return field(default=default, metadata={"affects_result": False})


def extending(default: Any) -> Any:
    """A field that says how much is made: with another value a run keeps what it has, and makes what is missing."""
    return field(default=default, metadata={"affects_result": False, "extends": True})


def share(setting: str, batch: int, workers_setting: str, workers: int) -> int:
    if batch % workers:
        raise UserError(
            f"{setting}={batch} cannot be shared by {workers_setting}={workers}; make it a multiple"
        )
    return batch // workers
