"""Environment variables of this process: Ray's switches, and hiding one for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {
    "RAY_DATA_LOG_LEVEL": "ERROR",  # of its actors: they announce every epoch, and progress bars we do not use
}
"""Switches that ``run.verbose`` leaves out."""
ENVIRONMENT = QUIET | {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user asks for it
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # below `uv run`, Ray would sync the project again for every worker
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else each line that a training worker prints is shown twice
    "RAY_task_oom_retries": "4",  # Ray's default is to start a task for ever that is too large for its machine
}


def set_environment() -> None:
    """Sets Ray's switches that the user has not set. Call it before the first ``import ray``."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def unset_quiet() -> None:
    """Takes back what ``set_environment`` set to hide Ray's logs."""
    for name, value in QUIET.items():
        if os.environ.get(name) == value:
            del os.environ[name]


@contextmanager
def unset(name: str) -> Iterator[None]:
    """Hides an environment variable from the block, and from the processes that it starts."""
    own = os.environ.pop(name, None)
    try:
        yield
    finally:
        if own is not None:
            os.environ[name] = own
