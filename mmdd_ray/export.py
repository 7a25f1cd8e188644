"""The stages that end every method's run alike: the distilled set is written, then compared with real pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdd_ray.config import Covmatch, Edge, Vlcp
from mmdd_ray.data import distilled
from mmdd_ray.data.distilled import Sample
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.draws import Draw
from mmdd_ray.evaluate.sets import chosen_coresets, compare_with_baselines, distilled_set
from mmdd_ray.features.store import MOMENTS, FeatureStore
from mmdd_ray.models import zoo
from mmdd_ray.redact import redact
from mmdd_ray.run import RunDir, Stage, StageResult, resolved, versions


def export_stage(
    run: RunDir,
    precomputed: Stage,
    settings: Edge | Covmatch | Vlcp,
    made: Callable[[], tuple[list[Sample], LearntPairs | None]],
    *,
    method: str,
    models: Mapping[str, str],
    inputs: Mapping[str, Any] | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Stage:
    """The stage `export` of a run, which writes the folder `distilled/`; again, if that was deleted.

    Args:
        precomputed: The features stage.
        made: Gives the samples of the set, and the learnt pairs that they show, if they are more than that.
        method: As people write it.
        models: Names of those that made the set, by their role.
        inputs: What it was made from beside the data, for its manifest.
        class_names: By label, for labelled sets.
    """
    if not run.store.exists(f"{distilled.FOLDER}/{distilled.MANIFEST}"):
        run.store.remove("export")  # the set was deleted: write it again

    def body(stage: Stage) -> StageResult:
        checksums = {output["path"]: output["checksum"] for output in precomputed.manifest["outputs"]}
        samples, learnt = made()
        manifest = distilled.write_distilled(
            samples,
            run.store.child(distilled.FOLDER),
            method=method,
            settings=resolved(settings),
            seed=settings.run.seed,
            inputs={
                "uri": redact(settings.data.uri),
                "fingerprint": precomputed.manifest["extra"]["source"]["fingerprint"],
                "moments": checksums[MOMENTS],
                **(inputs or {}),
            },
            models={role: {"name": name, "version": zoo.version(name)} for role, name in models.items()},
            versions=versions(),
            learnt=learnt,
            class_names=class_names,
        )
        stage.store.write_json(
            "distilled.json", {name: manifest[name] for name in ("checksum", "shards", "learnt")}
        )
        return StageResult(
            rows_in=len(samples),
            rows_out=manifest["pairs"],
            extra={name: manifest[name] for name in ("images", "pairs", "bytes", "checksum")},
        )

    return run.stage("export", body)


def evaluate_stage(
    name: str, draws: Sequence[Draw[Edge]] | Sequence[Draw[Covmatch]], features: FeatureStore
) -> Stage:
    """The stage `evaluate` of a run: students of the sets in `distilled/`, called `name`, and of their baselines."""
    run, px = draws[0].run, draws[0].settings.students.image_px
    made = [one.run.store.child(distilled.FOLDER) for one in draws]
    pairs = made[0].read_json(distilled.MANIFEST)["pairs"]
    coresets = [chosen_coresets(one.run, features, one.compared, pairs) for one in draws]

    def body(stage: Stage) -> StageResult:
        exported = [distilled_set(folder, px) for folder in made]
        compared = [one.compared for one in draws]
        return compare_with_baselines(stage, name, exported, features, compared, coresets, run.store)

    return run.stage("evaluate", body, [one.run for one in draws])
