"""Ray tasks that run beside each other."""

from collections.abc import Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

T = TypeVar("T")


def as_done(running: dict[ray.ObjectRef[Any], T]) -> Iterator[tuple[T, Any]]:
    """The purpose of each task and its result, as they end.

    Raises:
        Exception: What a task raised. Tasks that still run end with the driver. They are not cancelled: where a
            cancellation meets the end of its task, Ray aborts the driver ("Tried to complete task that was not
            pending"), and all of them are likely to fail at once.
    """
    running = dict(running)
    try:
        while running:
            (done,), _ = ray.wait(list(running))
            yield running.pop(done), ray.get(done)
    except RayTaskError as error:
        raise error.cause from error
