"""Experiment trackers, each behind the same methods: TensorBoard files, trackio, Weights & Biases and MLflow.

A tracker is imported when it is opened. What a run does and makes does not depend on any of them. To add one, write a
class as `tracker.Tracker` says, and name it in `KINDS` and in `config.run.TrackerName`.
"""

from importlib import import_module
from importlib.util import find_spec

from mmdd_ray.engine.trackers.tracker import About, Tracker
from mmdd_ray.errors import UserError

TENSORBOARD = "tensorboard"
KINDS = {
    "trackio": ("trackio_runs", "TrackioRun"),
    "wandb": ("wandb_runs", "WandbRun"),
    "mlflow": ("mlflow_runs", "MLflowRun"),
}
"""Module and class of the trackers that have a server; TensorBoard's files are written in any case."""


def check_installed(name: str | None) -> None:
    """Finds before any work that a tracker is missing.

    Raises:
        UserError: It is not installed.
    """
    package = {TENSORBOARD: "tensorboardX"}.get(name or "", name)
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"run.track={name}, but {package} is not installed; type `pip install {package}`, or leave "
            "out run.track"
        )


def open_tracker(name: str, about: About, key: str | None) -> Tracker:
    """Opens a tracker by its name.

    Args:
        key: Key of an earlier attempt at the same run.

    Raises:
        UserError: The tracker cannot begin.
    """
    check_installed(name)
    module, kind = KINDS[name]
    try:
        opened: Tracker = getattr(import_module(f"{__name__}.{module}"), kind)(about, key)
    except Exception as error:  # of any of these packages
        says = str(error).strip().partition("\n")[0]
        raise UserError(
            f"run.track={name} cannot begin: {says}; set it up, or leave out run.track"
        ) from error
    return opened
