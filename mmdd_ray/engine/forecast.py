"""How long the rest of a run takes: the plan of its stages, corrected by the stages that are done."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AS_PLANNED_S = 60.0
"""Weight of the plan in the correction, in seconds: a stage of seconds, most of them a start, says little of hours."""


@dataclass(frozen=True, kw_only=True)
class Current:
    """The stage that is being computed."""

    stage: str
    elapsed_s: float
    """Seconds since it began, in this attempt."""
    resumed: bool = False
    """Whether an earlier attempt did a part of it, which the plan does not know."""
    counted_s: float | None = None
    """Seconds that its progress line still needs at its rate; None while there is no rate."""


@dataclass
class Forecast:
    """The stages of a run, their planned seconds, and what those that are done really took."""

    stages: Sequence[str]
    """Folders of all stages, in the order in which they run."""
    planned_s: Mapping[str, float | None]
    """Planned seconds by stage. None: not known. A stage without an entry takes next to nothing."""
    done: set[str] = field(default_factory=set)
    took_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the stages that are done and went through without a break."""

    def end(self, stage: str, seconds: float, resumed: bool) -> None:
        """Counts a stage as done; the seconds of a resumed one are those of its last attempt and say nothing."""
        self.done.add(stage)
        if not resumed:
            self.took_s[stage] = seconds

    @property
    def scale(self) -> float:
        """Real seconds for a planned one, over all stages that have both and a minute that went as planned."""
        both = [(AS_PLANNED_S, AS_PLANNED_S)]
        both += [
            (took, planned) for stage, took in self.took_s.items() if (planned := self.planned_s.get(stage))
        ]
        return sum(took for took, _ in both) / sum(planned for _, planned in both)

    def to_come(self, current: str | None = None) -> list[str]:
        """The stages that have not begun."""
        return [stage for stage in self.stages if stage not in self.done and stage != current]

    def seconds_left(self, now: Current | None = None) -> float | None:
        """Seconds until the end of the run; None where one of its stages has no planned time.

        The current stage takes what its progress line says, or what the plan leaves for it if that is more: a stage may
        have further lines. Of a resumed stage the plan does not know how much is left, so its line counts alone.
        """
        later = self._sum(self.to_come(now.stage if now else None))
        here = self._current(now) if now else 0.0
        return None if later is None or here is None else later + here

    def _sum(self, stages: Iterable[str]) -> float | None:
        planned = [self.planned_s.get(stage, 0.0) for stage in stages]
        return None if None in planned else self.scale * sum(filter(None, planned))

    def _current(self, now: Current) -> float | None:
        if now.resumed and now.counted_s is not None:
            return now.counted_s
        planned = self._sum([now.stage])
        by_plan = None if planned is None else max(planned - now.elapsed_s, 0.0)
        known = [seconds for seconds in (by_plan, now.counted_s) if seconds is not None]
        return max(known, default=None)
