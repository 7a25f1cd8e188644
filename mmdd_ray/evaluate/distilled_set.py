"""Evaluation of any distilled set, whoever made it."""

import shlex
import sys
from typing import Any

from mmdd_ray.cluster import connected
from mmdd_ray.config import Evaluate
from mmdd_ray.data.distilled import MANIFEST, read_distilled
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.sets import EVALUATION, compare_with_baselines
from mmdd_ray.features.precompute import feature_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.run import RunDir
from mmdd_ray.store import Store


def evaluate_set(settings: Evaluate, preset: str) -> dict[str, Any]:
    """Trains students on the set and on its baselines, and returns the report.

    Raises:
        ValueError: The set is damaged, or the settings or the data are wrong.
    """
    samples = read_distilled(settings.set)
    name = str(Store(settings.set).read_json(MANIFEST)["method"]).lower()
    with (
        RunDir.open(settings.run.dir, "evaluate", preset, settings) as run,
        connected(settings.run) as devices,
    ):
        run.devices = devices.as_json()
        features = FeatureStore(feature_stage(run, settings).store)
        evaluated = run.stage(
            "evaluate", lambda stage: compare_with_baselines(stage, name, samples, features, settings)
        )
        command = shlex.join(["python", *sys.argv])
        report = build_report(run.store, evaluated.store.read_json(EVALUATION), command=command)
        write_report(report, run.store)
        return report
