"""Checking settings, planning, running the stages of a method, and reporting: the same for every job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mmdd_ray.config import RunSettings
from mmdd_ray.config.slices import hold_out_shares
from mmdd_ray.engine import trackers
from mmdd_ray.engine.environment import set_environment
from mmdd_ray.engine.run_dir import SETTINGS, RunDir, StageDir
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.commits import COMMITS, at_commits
from mmdd_ray.methods.method import CUSTOM, Context, Figures, Method, Run, Stage, Steps
from mmdd_ray.methods.schedule import scheduled
from mmdd_ray.methods.watching import track_results, watched
from mmdd_ray.models import zoo
from mmdd_ray.planning import plan
from mmdd_ray.planning.fit import check_gpus
from mmdd_ray.planning.preflight import (
    check_own_tests,
    check_set,
    check_sources,
    check_values,
    encoder_sides,
)


def method_of(settings: RunSettings) -> Method[Any]:
    """The method that these are the settings of.

    Raises:
        UserError: They are none of any method's.
    """
    found = [method for method in METHODS.values() if method.settings is type(settings)]
    if not found:
        raise UserError(
            f"{type(settings).__name__} holds no settings of a job; mmdd_ray.settings('edge', 'local') gives some"
        )
    return found[0]


def with_held_out(settings: Any) -> Any:
    """The settings with validation and test data that are shares of the training data as slices of these.

    Raises:
        UserError: A share cannot be.
    """
    presets = method_of(settings).presets.values()
    return hold_out_shares(settings, [preset() for preset in presets])


def check(settings: RunSettings) -> None:
    """Finds what would otherwise fail only hours later: settings, models and sources that cannot be.

    Raises:
        UserError: One sentence that names the setting to change.
    """
    method = method_of(settings)
    check_values(settings)
    trackers.check_installed(settings.run.track)
    check_set(settings)
    method.preflight(settings)
    models = method.models(settings)
    found = zoo.check(models, encoder_sides(settings, models))
    check_sources(settings, method.labelled)
    check_own_tests(settings, [preset() for preset in method.presets.values()])
    for setting, says in found.items():
        print(f"{setting:<20} {says}", flush=True)


def distill(settings: RunSettings, preset: str | None) -> Run:
    """Checks settings and runs them, for callers from Python.

    Args:
        preset: Default: the preset that has these very settings, or "custom".
    """
    set_environment()
    settings = with_held_out(settings)
    check(settings)
    presets = method_of(settings).presets
    same = (name for name, preset_of in presets.items() if preset_of() == settings)
    return execute(settings, preset or next(same, CUSTOM))


def execute(settings: RunSettings, preset: str, command: str = "") -> Run:
    """Runs whatever is left to do of a run, and writes its report.

    Call `check` first, which finds most mistakes before Ray starts.

    Args:
        preset: Name of the preset that the settings came from; names the run directory, unless they do.
        command: What the user typed, for the report.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting.
    """
    method = method_of(settings)
    with open_session(method, settings, preset) as run:
        pinned = at_commits(settings, run.store)
        steps = method.steps()
        with watched(run, steps, pinned, command) as tracking:
            done = replace(_run_all(run, method, steps, pinned, command), settings=settings, preset=preset)
            track_results(tracking, done, steps)
            return done


def _run_all(run: RunDir, method: Method[Any], steps: Steps[Any], settings: RunSettings, command: str) -> Run:
    """All stages, the comparison and the report."""
    contexts = list(_run_stages(run, steps, settings))
    if steps.compare is None:
        return Run(run.store, {}, contexts[0].done, settings)
    compare = steps.compare
    seen = [_needing(one, compare.needs) for one in contexts]
    if not compare.is_current(run.store.child(compare.name), settings):
        run.reopen(compare.name)
    compared = run.stage(
        compare.name,
        lambda stage: compare.run(stage, seen),
        needs=_distinct(stage for one in seen for stage in one.done.values()),
    )
    report = _report(method, run, contexts[0], compared, steps, command)
    return Run(run.store, report, {**contexts[0].done, compare.name: compared}, settings)


@contextmanager
def open_session(method: Method[Any], settings: RunSettings, preset: str) -> Iterator[RunDir]:
    """Opens or reopens a run directory, joins the cluster, and keeps the plan as it is before the first stage."""
    from mmdd_ray.engine.cluster import check_machines, connected

    with (
        RunDir.open(settings.run.dir, method.job, preset, settings, _reads(method)) as run,
        connected(settings.run, run.store) as devices,
    ):
        check_machines(settings)
        run.devices = devices.as_json()
        if run.has_new_settings or not run.store.exists(plan.PLAN):
            planned = plan.plan_run(settings, method, devices, METHODS)
            check_gpus(planned)
            run.store.write_json(plan.PLAN, planned.as_json())
        yield run


def _reads(method: Method[Any]) -> dict[str, tuple[str, ...]]:
    """The sections of settings that stages depend on, of those that do not depend on all."""
    return {stage.name: stage.reads for stage in method.steps().stages if stage.reads}


def _run_stages(run: RunDir, steps: Steps[Any], settings: RunSettings) -> Iterator[Context[Any]]:
    """All stages of one draw after the other; gives what each draw has done."""
    shared: dict[str, StageDir] = {}
    for draw, stages in scheduled(steps, settings):
        done = dict(shared)
        for stage in stages:
            done[stage.name] = run_stage(run, stage, Context(run, draw, done))
            if stage.shared:
                shared[stage.name] = done[stage.name]
            if draw.number == 0 and stage is steps.stages[0]:
                steps.before(Context(run, draw, done))
        yield Context(run, draw, done)


def run_stage(run: RunDir, stage: Stage[Any], context: Context[Any]) -> StageDir:
    """Runs a stage of a draw, again if its outputs no longer match their inputs outside the run directory."""
    own = _needing(context, stage.needs)
    within = "" if stage.shared else context.draw.within
    if not stage.is_current(own):
        run.store.remove(f"{within}{stage.name}")
    return run.stage(stage.name, lambda folder: stage.run(folder, own), list(own.done.values()), within)


def _needing(context: Context[Any], names: Sequence[str]) -> Context[Any]:
    """The same with those of these stages alone that were wanted."""
    done = {name: context.done[name] for name in names if name in context.done}
    return Context(context.run, context.draw, done)


def _distinct(stages: Iterator[StageDir]) -> list[StageDir]:
    return list({stage.path: stage for stage in stages}.values())


def _report(
    method: Method[Any], run: RunDir, first: Context[Any], compared: StageDir, steps: Steps[Any], command: str
) -> dict[str, Any]:
    from mmdd_ray.evaluation.compare import EVALUATION
    from mmdd_ray.evaluation.report.build import build_report
    from mmdd_ray.evaluation.report.page import write_report
    from mmdd_ray.evaluation.report.words import AUDIT, AUDIT_STAGE

    audited = first.done.get(AUDIT_STAGE)
    figures: Figures = steps.figures(first)
    report = build_report(
        run.store,
        compared.store.read_json(EVALUATION),
        losses=figures.losses,
        refinement=figures.refinement,
        quality=figures.quality,
        agreement=figures.agreement,
        audit=audited.store.read_json(AUDIT) if audited else None,
        labels=figures.labels,
        words=method.words(first.settings),
        commits=run.store.read_json(COMMITS) if run.store.exists(COMMITS) else {},
        preset_settings=_preset_settings(method, run),
        command=command,
    )
    write_report(report, run.store, figures.beside)
    return report


def _preset_settings(method: Method[Any], run: RunDir) -> dict[str, Any] | None:
    """The settings of the preset that the run began with; None where its name is none of a preset."""
    preset = method.presets.get(run.store.read_json(SETTINGS)["preset"])
    return resolved(preset()) if preset else None
