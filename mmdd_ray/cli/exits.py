"""Exit statuses, and errors as the sentences that a terminal shows. Imports neither torch nor Ray."""

import os
import re
import sys
import traceback
from collections.abc import Callable

from mmdd_ray.engine.environment import set_environment
from mmdd_ray.engine.interrupt import EXIT_INTERRUPTED, leaving_within, say_interrupted
from mmdd_ray.errors import ClusterError, StorageError, UserError
from mmdd_ray.storage.redact import redact

RETRY_NOTE = "\nFailed to apply UDF transform"  # Ray Data appends advice on retries to every message
CONSTRUCTOR_ERROR = re.compile(r"^mmdd_ray\.errors\.(UserError|StorageError): (.*)$", re.MULTILINE)
# of pyarrow, through which Ray Train writes
STORAGE_ERROR = re.compile(r"^(?:OSError: )?(.*\b(?:AWS Error|google::cloud::Status)\b.*?)\.?$", re.MULTILINE)
EXIT_FAILED, EXIT_USER_ERROR = 1, 2


def main(job: Callable[[], int | None]) -> int:
    """Runs a job; gives its exit status (``None`` is 0).

    2 for what the user got wrong, and 1 for storage that failed or machines that were lost, each shown as one sentence,
    also when a Ray worker raised it; ``MMDD_RAY_TRACEBACK=1`` shows where it came from as well. 130 for Ctrl-C. Any
    other exception is a bug: it keeps its traceback, and the status is 1.
    """
    set_environment()
    try:
        with leaving_within():
            return job() or 0
    except KeyboardInterrupt:
        say_interrupted()
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # of a pager that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at exit
        return EXIT_FAILED
    except Exception as error:
        known = _known(error)
        if known is None or os.environ.get("MMDD_RAY_TRACEBACK", "0") != "0":
            print(redact(traceback.format_exc()), file=sys.stderr, end="")
        if known is None:
            return EXIT_FAILED
        sentence = redact(str(known).partition(RETRY_NOTE)[0])
        if isinstance(known, UserError):
            print(f"error: {sentence}", file=sys.stderr)
            return EXIT_USER_ERROR
        print(f"error: {sentence}; run the same command again to resume", file=sys.stderr)
        return EXIT_FAILED


def _known(error: BaseException | None) -> UserError | StorageError | ClusterError | None:
    """The error with a sentence of ours that ``error`` is, or that Ray wrapped in it, or that says what Ray lost."""
    if isinstance(error, OSError) and (storage := _storage(str(error))):
        return storage
    if error is None or not type(error).__module__.startswith("ray."):
        return error if isinstance(error, UserError | StorageError | ClusterError) else None
    # a task's error holds its cause, Ray Data chains another, Ray Train keeps failures by worker and wraps them again
    holders = ("cause", "__cause__", "controller_failure", "health_check_failure", "_base_exc")
    wrapped = [getattr(error, name, None) for name in holders]
    wrapped += getattr(error, "worker_failures", {}).values()
    return next((known for inner in wrapped if (known := _known(inner))), _lost(error))


def _storage(text: str) -> StorageError | None:
    """The storage failure that a text of pyarrow reports, if it reports one."""
    found = STORAGE_ERROR.search(text)
    return StorageError(f"storage failed: {found[1]}") if found else None


def _lost(error: BaseException) -> UserError | StorageError | ClusterError | None:
    """The meaning of one of Ray's own errors; None where it hands on a bug of our code."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name, as ray is not imported here
    text = str(error).strip()
    if getattr(error, "actor_init_failed", False):  # what the constructor raised is there as text only
        if found := CONSTRUCTOR_ERROR.search(text):
            return (UserError if found[1] == "UserError" else StorageError)(found[2])
        return _storage(text)
    if "ExecutionTimeoutError" in kinds:
        return ClusterError("no progress for run.stall_minutes: a task hangs, or machines do not come")
    if "OutOfMemoryError" in kinds:
        return ClusterError(
            "a machine ran out of memory, again and again; lower the batches or the actors of this stage, or take "
            "larger machines"
        )
    if "RayError" not in kinds or "RayTaskError" in kinds:
        return None
    reason = text.partition("\n")[0]
    return ClusterError(f"the cluster lost what was needed ({type(error).__name__}: {reason})")
