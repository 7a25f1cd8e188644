"""MLflow, through its client, which both mlflow and mlflow-skinny have."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mmdd_ray.engine.trackers.tracker import PROJECT, About, Point, plain, to_image

MOST_METRICS, MOST_PARAMS = 1000, 100  # of one request
LONGEST_PARAM = 500  # characters

T = TypeVar("T")


class MLflowRun:
    """MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, about: About, key: str | None) -> None:
        self._client = MlflowClient()
        if key is not None and self._is_there(key):
            self.key = key
            self._client.update_run(key, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self.key = self._client.create_run(experiment, run_name=about.name).info.run_id
        self._log_settings(about.settings)

    def _is_there(self, key: str) -> bool:
        """Whether nobody has deleted the run on the server since."""
        try:
            return self._client.get_run(key).info.lifecycle_stage == LifecycleStage.ACTIVE
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False
            raise

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in _flat(settings)]
        for some in _parts(params, MOST_PARAMS):
            self._client.log_batch(self.key, params=some)

    def log(self, points: Sequence[Point]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(plain(name), value, now_ms, point.step)
            for point in points
            for name, value in point.named().items()
        ]
        for some in _parts(metrics, MOST_METRICS):
            self._client.log_batch(self.key, metrics=some)

    def picture(self, name: str, png: bytes) -> None:
        self._client.log_image(self.key, to_image(png), artifact_file=f"{plain(name)}.png")

    def flush(self) -> None:
        pass  # each request is an answered one

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.key, "FINISHED" if finished else "KILLED")


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    yield from (items[start : start + most] for start in range(0, len(items), most))


def _flat(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Settings as section.field and value."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        found += _flat(value, f"{path}{name}.") if nested else [(f"{path}{name}", value)]
    return found
