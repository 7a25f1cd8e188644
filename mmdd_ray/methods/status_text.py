"""The status of a run as a terminal shows it."""

from mmdd_ray.engine.progress import duration
from mmdd_ray.engine.run_status import numbers_of
from mmdd_ray.methods.status import Line, StageStatus, Status, status

GO_ON = "start the same command again to go on"


def show(uri: str) -> str:
    """The status of the run in a folder or below a URI, as text.

    Raises:
        UserError: as ``status``.
    """
    return status_text(status(uri))


def status_text(found: Status) -> str:
    """The run, a line for each stage, whether somebody works on it, and how to go on."""
    numbers = numbers_of([one.stage for one in found.stages])
    width = max(len(one.stage) for one in found.stages)
    return "\n".join(
        [
            f"{found.uri}   {found.job} {found.preset}",
            *(f"{numbers[one.stage]}{one.stage:<{width}}  {_stage(one, found.line)}" for one in found.stages),
            *_run(found),
        ]
    )


def _stage(one: StageStatus, line: Line | None) -> str:
    if one.seconds is not None:
        return f"done      {one.rows_in:,} rows -> {one.rows_out:,} rows   {duration(one.seconds)}"
    if one.state == "running":
        return f"{one.state:<10}{_line(line) if line else ''}".rstrip()
    planned = f"{duration(one.planned_seconds)} by the plan" if one.planned_seconds else ""
    return f"{one.state:<10}{planned}".rstrip()


def _line(line: Line) -> str:
    parts = [f"{line.done:,g}{f'/{line.total:,g}' if line.total else ''} {line.unit}"]
    if line.per_second:
        parts.append(f"{line.per_second:,.3g} {line.unit}/s")
    if line.seconds_left is not None:
        parts.append(f"{duration(line.seconds_left)} left")
    return "   ".join(parts)


def _run(found: Status) -> list[str]:
    """The state of the run as a whole, and what to do next."""
    heard = "" if found.heard_seconds is None else f"last heard of {duration(found.heard_seconds)} ago"
    left = "" if found.seconds_left is None else f"   {duration(found.seconds_left)} left by the plan"
    if found.state == "finished":
        return [f"finished     {found.report}" if found.report else "finished"]
    if found.state == "running":
        return [f"running      process {found.process}, {heard or 'which starts'}{left}"]
    if found.state == "silent":
        says = f"silent       process {found.process}, {heard}: it was killed, or cannot write here{left}"
    elif found.state == "not known":
        says = f"not known    no process has written here{left}"
    else:
        why = found.reason or f"the process {found.process} is gone"
        says = f"stopped      {why}, {heard}{left}"
    return [says, f"go on        {found.command or GO_ON}"]
