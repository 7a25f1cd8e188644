"""One tidy line of progress per stage: rewritten on a terminal, printed every ten seconds in a log file."""

import sys
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, ClassVar, NamedTuple

from tqdm import tqdm

LOG_EVERY_S = 10.0  # a log file of an hour's stage stays within 360 lines
REDRAW_EVERY_S = 0.2
SILENT_S = 60.0  # without an update; then people want to know what is being waited for


class Pace(NamedTuple):
    """How fast something went on."""

    units: float
    """Units done in this attempt."""
    per_second: float
    """Units a second, from the first one on."""


class progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Counts towards ``total``: ``with progress("features", total=2000) as bar: bar.update(64)``.

    ``total=None`` shows the count and the rate alone. The rate is counted from the first update on, so that
    neither the start of actors nor what an earlier attempt had done makes it wrong. The line goes to stderr; a
    terminal loses it when the block ends, a log file never sees it when that takes less than ten seconds.
    """

    paces: ClassVar[list[Pace]] = []
    """Paces of the progress lines that have ended in this process, for whoever empties it."""
    peak_bytes: ClassVar[int] = 0
    """The most memory that a process has reported since this was last set to 0."""
    within: ClassVar[str] = ""
    """Before the name of each line: the folder of the draw that it belongs to, if it is not the first."""
    number: ClassVar[str] = ""
    """Before that: which of how many stages it belongs to, e.g. "[3/7] "."""
    run_seconds_left: ClassVar[Callable[[float | None], float | None] | None] = None
    """Gives the seconds until the end of the run, if they are known, from those that a line itself needs."""
    on_record: ClassVar[Callable[[Mapping[str, float]], None] | None] = None
    """Gets the records of the steps of a training as they come."""
    shown: ClassVar["progress | None"] = None
    """The line that is shown now."""

    _first: tuple[float, float] | None = None  # count and clock after the first update
    _resumed: float = 0

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "rows",
        missing: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            missing: asked after every minute without an update; what it says is shown.
        """
        self.name = f"{progress.within}{name}"
        self._closed = threading.Event()
        self._on_terminal = sys.stderr.isatty()
        interval_s = REDRAW_EVERY_S if self._on_terminal else LOG_EVERY_S
        super().__init__(
            desc=f"{progress.number}{self.name:<12}",
            total=total,
            unit=unit,
            file=sys.stderr,
            leave=False,
            mininterval=interval_s,
            miniters=1,  # look at the clock at every update, however slow the steps are
            delay=0 if self._on_terminal else interval_s,
            dynamic_ncols=True,
        )
        progress.shown = self
        if missing:
            threading.Thread(target=self._say, args=(missing,), daemon=True).start()

    def _say(self, missing: Callable[[], str]) -> None:
        count = self.n
        while not self._closed.wait(SILENT_S):
            if self.n == count and (what := missing()):
                self.write(f"{self.desc} waits for {what}", file=self.fp)
            count = self.n

    def update(self, n: float | None = 1) -> bool | None:
        """Counts ``n`` more."""
        if n and self._first is None:
            self._first = (self.n + n, monotonic())
        return super().update(n)

    @staticmethod
    def note_memory(peak_bytes: int) -> None:
        """Notes the most memory that a process has held."""
        progress.peak_bytes = max(progress.peak_bytes, peak_bytes)

    def resume(self, n: float) -> None:
        """Counts ``n`` that an earlier attempt had done, which have no part in the rate."""
        if self._first is not None:
            count, at = self._first
            self._first = (count + n, at)
        self._resumed += n
        super().update(n)

    def close(self) -> None:
        """Ends the line."""
        self._closed.set()
        if progress.shown is self:
            progress.shown = None
        if not self.disable and (rate := self.rate()):
            self.paces.append(Pace(self.n - self._resumed, rate))
        super().close()

    def note(self, **values: float | int | str) -> None:
        """Shows the latest values at the end of the line, e.g. ``note(loss=0.31)``."""
        self.set_postfix_str(
            "   ".join(f"{name} {_short(value)}" for name, value in values.items()), refresh=False
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the line; tqdm's documented place for another look."""
        if self._on_terminal:
            return super().display(msg, pos)
        if msg is not None:  # tqdm clears the line with "", which means nothing in a file
            return False
        print(self, file=self.fp, flush=True)
        return True

    def __str__(self) -> str:
        state: dict[str, Any] = self.format_dict
        done, total = state["n"], state["total"]
        of_total = f"/{total:,}" if total and done <= total else ""  # what is in a slice is an estimate
        count = f"{state['prefix']} {done:,}{of_total} {state['unit']}"
        per_second = self.rate()
        rate = f"{_short(per_second)} {state['unit']}/s" if per_second else ""
        parts = [count, rate, self._times(), state["postfix"]]
        columns = state["ncols"] if self._on_terminal else None
        return _fitted([part for part in parts if part], columns)

    def _times(self) -> str:
        """How long the line and the run still take, as far as that is known."""
        left = self.seconds_left()
        parts = [] if left is None else [f"eta {duration(left)}"]
        if (whole := progress.whole_seconds_left(left)) is not None:
            parts.append(f"run {duration(whole)}")
        return ", ".join(parts)

    @staticmethod
    def whole_seconds_left(seconds: float | None = None) -> float | None:
        """Seconds until the end of the run, from those that a line itself needs; None where they are not known."""
        return progress.run_seconds_left(seconds) if progress.run_seconds_left else None

    @staticmethod
    def note_record(record: Mapping[str, float]) -> None:
        """Hands on the record of a step of a training."""
        if progress.on_record:
            progress.on_record(record)

    def rate(self) -> float:
        """Units a second since the first update; 0 while there was no other."""
        if self._first is None:
            return 0.0
        count, at = self._first
        seconds = monotonic() - at
        return (self.n - count) / seconds if seconds else 0.0

    def seconds_left(self) -> float | None:
        """Seconds until ``total`` at this rate; None while there is no rate, or where there is no total."""
        rate = self.rate()
        return (self.total - self.n) / rate if rate and self.total and self.n <= self.total else None


def _fitted(parts: list[str], columns: int | None) -> str:
    """The parts in a line of so many columns; the rate, which follows from the others, gives way first."""
    line = "   ".join(parts)
    if columns is None or len(line) <= columns:
        return line
    return "   ".join(part for part in parts if not part.endswith("/s"))[:columns]


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def duration(seconds: float) -> str:
    """A duration as people write it.

    Examples:
        >>> duration(59), duration(3900), duration(280_000)
        ('59 s', '1 h 05 min', '3 d 06 h')
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes <= 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24:02} h"
