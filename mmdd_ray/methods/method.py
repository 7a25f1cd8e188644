"""A method as data, which everything that runs, plans, resumes, reports or verifies a run reads.

A method declares its stages once. `execute.py` runs those that are wanted, in their order; `Method.costs` adds up what
they take; a stage runs again when one of those that it needs has other outputs, and only then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mmdd_ray.data.inventory import Source, look_at
from mmdd_ray.engine.draws import Draw, draws_of
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.planning.costs import OTHER_DRAWS, StageCost
from mmdd_ray.storage.redact import REDACTED, redact
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:
    from mmdd_ray.distilled.dataset import DistilledSet

S = TypeVar("S")
Redraw = Callable[[Store, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Context(Generic[S]):
    """Everything that a stage works with."""

    run: RunDir
    draw: Draw[S]
    """The distillation that the stage is a part of; the first, where it belongs to all."""
    done: Mapping[str, StageDir]
    """The stages that it needs and that the settings want, by name."""

    @property
    def settings(self) -> S:
        return self.draw.settings

    def store(self, stage: str) -> Store:
        """The folder of a stage that it needs."""
        return self.done[stage].store


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[S]):
    """A step of a method that is done once, kept in a folder of its own, and resumed when it was interrupted."""

    name: str
    run: Callable[[StageDir, Context[S]], StageResult]
    needs: tuple[str, ...] = ()
    """Stages whose outputs it reads; earlier ones. Where they change, and only there, it runs again."""
    wanted: Callable[[S], bool] = lambda settings: True
    cost: Callable[[S, Source], StageCost | None] = lambda settings, source: None
    """None where it takes next to nothing; such a stage has no line in the plan. It is given the settings of a draw,
    with the baselines of its own."""
    shared: bool = False
    """Whether the first draw does it for all, because it does not depend on the seed or looks at that draw alone."""
    is_current: Callable[[Context[S]], bool] = lambda context: True
    """Whether its outputs still match their inputs outside the run directory; otherwise it runs again."""
    reads: tuple[str, ...] = ()
    """Sections of the settings that it depends on; none stands for all. Others may change while no other stage has
    begun."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[S]):
    """The last stage of a run, which looks at the sets of all draws."""

    run: Callable[[StageDir, Sequence[Context[S]]], StageResult]
    cost: Callable[[S, int, Source], StageCost]
    """Is given the number of images or pairs of the set, as `Method.size` has it, and the source."""
    needs: tuple[str, ...]
    """Stages of each draw."""
    is_current: Callable[[Store, S], bool] = lambda folder, settings: True
    """Whether its folder has all that the settings want; otherwise it goes on with what it holds."""
    name: str = "evaluate"


@dataclass(frozen=True)
class Figures:
    """A method's additions to the report of a run; see `evaluation.report.build_report`."""

    losses: Mapping[str, Sequence[float]] | None = None
    refinement: Mapping[str, Sequence[float]] | None = None
    quality: Mapping[str, Mapping[str, float]] | None = None
    agreement: Mapping[str, float] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Names of sets as people write them, where files are called otherwise."""
    beside: Sequence[Any] = ()
    """Real pairs beside what was drawn for them."""


@dataclass(frozen=True)
class Steps(Generic[S]):
    """The steps of a run, in order."""

    stages: tuple[Stage[S], ...]
    compare: Comparison[S] | None = None
    before: Callable[[Context[S]], None] = lambda context: None
    """Checks the features for what the data lack, before any later stage."""
    figures: Callable[[Context[S]], Figures] = lambda context: Figures()


CUSTOM = "custom"
"""Name of settings that are no preset's."""


@dataclass(frozen=True)
class Run:
    """A run as far as it has come; a finished one where a function that runs gave it."""

    store: Store
    """Its folder."""
    report: dict[str, Any]
    """Content of `report.json`; empty where nothing was compared yet."""
    stages: Mapping[str, StageDir]
    """The stages of the first draw that are done, and the comparison."""
    settings: Any
    preset: str = CUSTOM
    """Name of the settings that it began with."""

    def __repr__(self) -> str:
        has = "with a report" if self.report else "without a report"
        return f"<Run {redact(self.store.uri)}: {len(self.stages)} stages done, {has}>"

    @cached_property
    def pairs(self) -> "DistilledSet":
        """The distilled set, as a dataset of PyTorch.

        Raises:
            UserError: The run has made none.
        """
        from mmdd_ray.distilled.dataset import load_set
        from mmdd_ray.distilled.sample import FOLDER

        return load_set(self.store.child(FOLDER))

    def show(self) -> None:
        """Shows table, curves and contact sheet in a notebook; elsewhere prints the table.

        Raises:
            UserError: Nothing was compared yet.
        """
        from mmdd_ray.evaluation.report.notebook import show

        if not self.report:
            raise UserError(f"{redact(self.store.uri)} has no report yet; resume() finishes the run")
        show(self.report, self.store)

    def resume(self, changes: Mapping[str, Any] | None = None) -> "Run":
        """Does whatever is left to do, and gives the finished run.

        Args:
            changes: Values of settings that may change in a run directory, such as ``{"evaluation.draws": 3}``.

        Raises:
            UserError: A setting cannot change any more, or other mistakes, as `mmdd_ray.distill` finds them.
        """
        from mmdd_ray.config.changes import changed
        from mmdd_ray.methods.execute import distill

        settings = changed(self.settings, {"run.dir": self.store.uri, **(changes or {})}, "resume()")
        if REDACTED in str(settings):
            raise UserError(
                "settings of this run had credentials, which are never saved; give them in environment variables, and "
                "the settings without them as changes of resume()"
            )
        return distill(settings, self.preset)


def report_table(run: Run) -> str:
    """The table of the report, for a terminal."""
    from mmdd_ray.evaluation.report.table import summary_table

    return summary_table(run.report)


@dataclass(frozen=True, kw_only=True)
class Method(Generic[S]):
    """A method, or any other job that has a run directory."""

    name: str
    """Name of its command: `mmdd NAME`."""
    job: str
    """Name of its file in jobs/ and of its run directories."""
    settings: type[S]
    presets: Mapping[str, Callable[[], S]]
    """Presets by name; the first is the default."""
    models: Callable[[S], dict[str, str]]
    """Names of the models that are loaded, by setting."""
    preflight: Callable[[S], None] = lambda settings: None
    """Raises `UserError` for settings that cannot be, before Ray starts."""
    steps: Callable[[], Steps[S]]
    """Imports what it takes to run; the rest of a method must be quick to import."""
    needs: Callable[[S], Mapping[str, int]] = lambda settings: {}
    """Real pairs that the source must have, by the setting that asks for them."""
    size: Callable[[S, Source], tuple[str, int]] = lambda settings, source: ("", 0)
    """The setting that says how large the set becomes, and how many images or pairs it and its coresets have."""
    holds: Callable[[S, Source], Mapping[str, float]] = lambda settings, source: {}
    """Bytes that the machine of the driver holds beside those of the evaluation, by the setting that limits them."""
    look: Callable[[S], Source] = lambda settings: look_at(settings.data)  # type: ignore[attr-defined]
    """A look at the source, for the plan."""
    words: Callable[[S], Mapping[str, str]] = lambda settings: {}
    """Titles and notes of its report."""
    redraw: Redraw | None = None
    """Gives, by the folder of a draw and the settings in its `settings.json`, the actor that drew its images."""
    summary: Callable[[Run], str] = report_table
    """The text that a terminal shows in the end."""
    shortened: Callable[[S, Callable[[int], int], Path], S] = lambda settings, batch, folder: settings
    """Shortens the method's own sections for a rehearsal, to the work of one batch. Its arguments are settings whose
    shared sections are shortened already, a function from the size of a batch to that of the rehearsal, and the
    rehearsal's folder."""
    labelled: bool = False
    """Whether it needs images with labels; captions may then be missing."""

    def settings_of(self, preset: str | None) -> S:
        """The settings of a preset; those of the first for a name that is none, as of a run that had its own."""
        return self.presets.get(preset or "", next(iter(self.presets.values())))()

    def costs(self, settings: S, source: Source) -> Iterator[StageCost]:
        """The cost of each stage of a run, in order; those of all draws but the first in one."""
        steps = self.steps()
        first, *others = draws_of(settings)
        wanted = [stage for stage in steps.stages if stage.wanted(first.compared)]
        uses = {}
        for stage in wanted:
            if cost := stage.cost(first.compared, source):
                uses[stage.name] = cost.uses
                yield replace(cost, stage=stage.name, shared=stage.shared)
        for stage in wanted if others else ():
            if not stage.shared and (cost := stage.cost(others[0].compared, source)):
                # fewer baselines do not change how long a unit takes
                alike = uses.get(stage.name, cost.uses)
                yield replace(cost, stage=f"{OTHER_DRAWS}{stage.name}", times=len(others), uses=alike)
        if steps.compare:
            items = self.size(settings, source)[1]
            yield replace(steps.compare.cost(settings, items, source), stage=steps.compare.name)
