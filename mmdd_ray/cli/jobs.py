"""Starts a job: reads its settings, looks for mistakes, and plans or runs it."""

import shlex
import sys
from collections.abc import Sequence

from mmdd_ray.cli.arguments import parse


def start(job: str, argv: Sequence[str] | None = None, called: str | None = None) -> int:
    """Runs a job and gives its exit status. Neither torch nor Ray is imported before the settings are checked.

    Args:
        job: Name of a method's job, such as "edge_cc3m".
        argv: The preset and settings. Default: the arguments of this process.
        called: The words before them, as the user typed them. Default: those of a script.
    """
    from mmdd_ray.methods import METHODS
    from mmdd_ray.methods.execute import check, execute, with_held_out

    arguments = sys.argv[1:] if argv is None else argv
    called = shlex.join(["python", sys.argv[0]]) if called is None else called
    method = METHODS[job]
    preset, settings = parse(called, method.presets, arguments, job)
    settings = with_held_out(settings)
    if settings.rehearse.show:
        from mmdd_ray.methods.rehearsal import rehearse

        print(rehearse(settings, preset))
        return 0
    check(settings)
    if settings.plan.show:
        from mmdd_ray.planning.plan import show_plan

        print(show_plan(settings, method, METHODS))
    else:
        print(method.summary(execute(settings, preset, f"{called} {shlex.join(arguments)}".strip())))
    return 0
