"""How every job starts: the run directory, the cluster, the plan, and the features that all methods need."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmdd_ray.cluster import Devices, check_machines, connected
from mmdd_ray.features.precompute import feature_stage
from mmdd_ray.plan import PLAN, plan_run
from mmdd_ray.run import RunDir, Stage
from mmdd_ray.work import Settings


@contextmanager
def started(settings: Settings, job: str, preset: str) -> Iterator[tuple[RunDir, Stage]]:
    """Opens or reopens the run of `job`, joins the cluster, and gives the run with its finished stage `features`.

    Call `mmdd_ray.check.check` first, which finds most mistakes before Ray starts.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting.
    """
    with (
        RunDir.open(settings.run.dir, job, preset, settings) as run,
        connected(settings.run, run.store) as devices,
    ):
        check_machines(settings)
        run.devices = devices.as_json()
        _keep_plan(run, settings, job, devices)
        yield run, feature_stage(run, settings)


def _keep_plan(run: RunDir, settings: Settings, job: str, devices: Devices) -> None:
    """The plan as it was before the first stage, for the report to compare with."""
    if not run.store.exists(PLAN):
        run.store.write_json(PLAN, plan_run(settings, job, devices).as_json())
