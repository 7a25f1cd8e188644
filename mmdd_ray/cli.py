"""The command line of the jobs: ``python jobs/<job>.py [PRESET] [--section.field value ...]``.

Imports neither torch nor ray, so ``--help`` answers at once.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from mmdd_ray.redact import redact

Settings = TypeVar("Settings")

RETRY_NOTE = "\nFailed to apply UDF transform"  # Ray Data appends advice on retries to every message
EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 130  # 130 = 128 + SIGINT, as shells report it


def parse(
    job: str, presets: Mapping[str, Callable[[], Settings]], argv: Sequence[str] | None = None
) -> tuple[str, Settings]:
    """Name of the chosen preset (default: the first) and its settings with the command line's changes.

    ``presets`` maps a name to a function whose docstring's first line describes it; ``argv`` defaults to the
    process's. ``--help`` lists the presets and every setting with the chosen preset's value, and exits with
    status 0; an unknown preset or setting exits with status 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments.pop(0) if named else next(iter(presets))
    if preset not in presets:
        print(f"error: unknown preset {preset}; choose one of {', '.join(presets)}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR)
    default = presets[preset]()
    about = "\n".join(f"  {name:<12} {_first_line(function)}".rstrip() for name, function in presets.items())
    settings = tyro.cli(
        type(default),
        default=default,
        args=arguments,
        prog=f"jobs/{job}.py {preset}",
        description=f"{_first_line(type(default))}\n\nPresets, the first argument:\n{about}",
        use_underscores=True,  # as the error messages spell them
        config=(tyro.conf.AvoidSubcommands,),  # an optional section is given by the preset
    )
    return preset, settings


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def main(job: Callable[[], int | None]) -> int:
    """Runs a job; gives its exit status (``None`` is 0), 2 for what the user got wrong, or 130 for Ctrl-C.

    A ``ValueError``, also one from a Ray worker, is shown as one sentence; ``MMDD_RAY_TRACEBACK=1`` also
    shows where it came from. Any other exception is ours: it keeps its traceback, and the status is 1.
    """
    try:
        return job() or 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        mistake = _user_error(error)
        if mistake is None or os.environ.get("MMDD_RAY_TRACEBACK", "0") != "0":
            traceback.print_exc()
        if mistake is None:
            return EXIT_FAILED
        sentence = str(mistake).partition(RETRY_NOTE)[0]
        print(f"error: {redact(sentence)}", file=sys.stderr)
        return EXIT_USER_ERROR


def _user_error(error: BaseException | None) -> ValueError | None:
    """The ``ValueError`` that ``error`` is, or that Ray wrapped in it."""
    if error is None or not type(error).__module__.startswith("ray."):
        return error if isinstance(error, ValueError) else None
    # a task's error holds its cause, Ray Data chains another, Ray Train keeps failures by worker
    wrapped = [getattr(error, "cause", None), error.__cause__, getattr(error, "controller_failure", None)]
    wrapped += getattr(error, "worker_failures", {}).values()
    return next((found for inner in wrapped if (found := _user_error(inner))), None)
