"""Everybody who looks on while a run goes: the user, other shells by `status.json`, and experiment trackers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdd_ray.config import RunSettings
from mmdd_ray.distilled.sample import CONTACT_SHEET, FOLDER
from mmdd_ray.engine.cluster import Devices
from mmdd_ray.engine.forecast import Forecast
from mmdd_ray.engine.progress import duration
from mmdd_ray.engine.run_dir import RunDir
from mmdd_ray.engine.run_status import RunStatus
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.engine.trackers.tracker import About, Point
from mmdd_ray.engine.tracking import Task, Tracking, picture
from mmdd_ray.evaluation.report.words import CHANCE
from mmdd_ray.methods.method import Run, Steps
from mmdd_ray.methods.schedule import stage_paths
from mmdd_ray.planning.planned_times import planned_times
from mmdd_ray.planning.run_plan import about

SCORES, PICTURES = "scores", "pictures"


@contextmanager
def watched(run: RunDir, steps: Steps[Any], settings: RunSettings, command: str) -> Iterator[Tracking]:
    """Says what will be done and on which devices, and follows the stages of the block.

    Raises:
        UserError: The tracker that was asked for cannot begin.
    """
    stages = stage_paths(steps, settings)
    forecast = Forecast(stages, planned_times(run.store, stages))
    seconds = forecast.seconds_left()
    planned = f", {duration(seconds)} by the plan" if seconds else ""
    count = f"{len(stages)} stages" if len(stages) > 1 else "1 stage"
    print(f"run          {count}{planned}, on {about(Devices(**run.devices))}", flush=True)
    told = About(run.store.uri.rpartition("/")[2], resolved(settings))
    with RunStatus(run, forecast, command), Tracking(run, settings.run.track, told) as tracking:
        yield tracking


def track_results(tracking: Tracking, run: Run, steps: Steps[Any]) -> None:
    """Sends the scores and the pictures of a finished run, once."""
    if steps.compare:
        compared = run.stages[steps.compare.name]
        tracking.tell("results", compared.fingerprint, _results(run))


def _results(run: Run) -> Iterator[Point | Task]:
    from mmdd_ray.evaluation.report.page_charts import report_charts  # here, because it brings matplotlib

    for panel in run.report["scores"], run.report["extra_scores"]:
        for name, scores in panel.items():
            if name != CHANCE:
                means = {metric: score["mean"] for metric, score in scores.items()}
                spreads = {f"{metric} std": score["std"] for metric, score in scores.items()}
                yield Point(f"{SCORES}/{name}", 0, means | spreads)
    if run.store.exists(sheet := f"{FOLDER}/{CONTACT_SHEET}"):
        yield picture(f"{PICTURES}/distilled set", run.store.read_bytes(sheet))
    for name, chart in report_charts(run.report).items():
        yield picture(f"{PICTURES}/{name}", chart.png())
