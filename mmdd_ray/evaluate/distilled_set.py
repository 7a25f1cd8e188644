"""Evaluation of any distilled set, whoever made it."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from mmdd_ray.config import Evaluate
from mmdd_ray.data.distilled import MANIFEST
from mmdd_ray.data.schema import safe_name
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.report_texts import BASELINES, CHANCE
from mmdd_ray.evaluate.sets import EVALUATION, chosen_coresets, compare_with_baselines, distilled_set
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.start import started
from mmdd_ray.store import Store

SET = "set.json"


def evaluate_set(settings: Evaluate, preset: str) -> dict[str, Any]:
    """Trains students on the set and on its baselines, and returns the report.

    Raises:
        ValueError: The set is damaged, or the settings or the data are wrong.
    """
    store = Store(settings.set)
    pairs = distilled_set(store, settings.students.image_px)
    manifest = store.read_json(MANIFEST)
    with started(settings, "evaluate", preset) as (run, precomputed):
        features = FeatureStore(precomputed.store)
        name = set_stage(run, manifest).store.read_json(SET)["name"]
        coresets = chosen_coresets(run, features, settings, pairs.n_pairs)
        evaluated = run.stage(
            "evaluate",
            lambda stage: compare_with_baselines(
                stage, name, [pairs], features, [settings], [coresets], run.store
            ),
        )
        command = shlex.join(["python", *sys.argv])
        report = build_report(run.store, evaluated.store.read_json(EVALUATION), command=command)
        write_report(report, run.store)
        return report


def set_stage(run: RunDir, manifest: Mapping[str, Any]) -> Stage:
    """The stage `set` of a run, whose `set.json` identifies the distilled set with that manifest.

    It is computed again when another set stands in the same place, and so is every stage after it.
    """
    found = {"name": set_name(manifest["method"]), "checksum": manifest["checksum"]}
    held = run.store.child("set")
    if held.exists(SET) and held.read_json(SET) != found:
        run.store.remove("set")

    def body(stage: Stage) -> StageResult:
        stage.store.write_json(SET, found)
        return StageResult(rows_in=manifest["pairs"], rows_out=manifest["pairs"])

    return run.stage("set", body)


def set_name(method: object) -> str:
    """The method of a manifest, which may be anybody's text, as a name for files and tables."""
    name = safe_name(str(method).lower())
    return "distilled" if name in (*BASELINES, CHANCE) else name
