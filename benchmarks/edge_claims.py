"""EDGE's own claims on `shapes`, over several seeds.

    python benchmarks/edge_claims.py --seeds 0 1 2

1. Fine-tuning with L_C and L_D raises CLIP alignment and lowers the similarity of generated pairs: the tuned and
   the untouched generator draw the same prompts from the same noise.
2. Two captions an image beat one on text-to-image recall: at as many pairs, and at as many images.
3. The set reaches the mean recall of as many random real pairs.

Every seed is a run that resumes: it fine-tunes, draws, captions, and trains all students anew.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import tyro

from mmdd_ray.cluster import connected
from mmdd_ray.config import Edge
from mmdd_ray.data.distilled import Sample
from mmdd_ray.diffusion.synthesize import read_drawn
from mmdd_ray.edge import distill
from mmdd_ray.edge.choose import pair_quality
from mmdd_ray.evaluate.compare import compare
from mmdd_ray.evaluate.sets import (
    COMPARED,
    EVALUATION,
    baseline_sets,
    choose_coresets,
    read_pair_set,
    synthetic_set,
)
from mmdd_ray.features.precompute import feature_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.presets import edge_local
from mmdd_ray.run import RunDir, Stage, StageResult

PAIRS = 100
METRICS = ("ir@1", "ir@10", "tr@1", "tr@10", "mean_recall")


@dataclass
class Claims:
    """Measures EDGE's claims on the procedural dataset."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Run seeds."""
    out: Path = Path("runs/edge-claims")
    """Folder of the runs, one for each seed."""
    finetune_steps: int = 240
    """Steps of the fine-tuning."""
    student_steps: int = 240
    """Steps of every student."""


@dataclass(frozen=True)
class Arm:
    """A synthetic set that a claim needs."""

    name: str
    tuned: bool = True
    captions: int = 1
    """Captions of each image; there are `PAIRS // captions` images."""
    candidates: int = 1
    """Images drawn for each one kept."""
    guidance: float = 3.0
    """Of the drawing; 1 switches it off."""
    students: bool = True
    """Whether students are trained on it, or its pictures only looked at."""


ARMS = (
    Arm("edge-50x2", captions=2),
    Arm("edge-50x2-selected", captions=2, candidates=4),
    Arm("edge-100x1"),
    Arm("edge-100x1-selected", candidates=4),
    Arm("untuned-100x1", tuned=False),
    Arm("edge-unguided", guidance=1.0, students=False),
    Arm("untuned-unguided", guidance=1.0, students=False, tuned=False),
    Arm("edge-guidance-1.5", guidance=1.5, students=False),
    Arm("untuned-guidance-1.5", guidance=1.5, students=False, tuned=False),
    Arm("edge-guidance-2", guidance=2.0, students=False),
    Arm("untuned-guidance-2", guidance=2.0, students=False, tuned=False),
)


@dataclass(frozen=True)
class Bench:
    """Everything that one seed's run depends on."""

    edge: Edge
    arms: tuple[Arm, ...] = ARMS


def settings_of(claims: Claims, seed: int) -> Edge:
    edge = edge_local()
    return replace(
        edge,
        run=replace(edge.run, seed=seed, dir=str((claims.out / f"seed{seed}").absolute())),
        finetune=replace(edge.finetune, steps=claims.finetune_steps),
        students=replace(edge.students, steps=claims.student_steps),
    )


def measure(settings: Edge) -> dict[str, dict[str, float]]:
    """Runs what is left of one seed's run; its figures by the name of a generator or a set."""
    with (
        RunDir.open(settings.run.dir, "edge_claims", "local", Bench(settings)) as run,
        connected(settings.run, run.store),
    ):
        features = FeatureStore(feature_stage(run, settings).store)
        untouched = replace(settings, finetune=replace(settings.finetune, steps=0))
        generators = {
            True: run.stage("finetune", lambda stage: distill.finetune(stage, features, settings)),
            False: run.stage("untuned", lambda stage: distill.finetune(stage, features, untouched)),
        }
        sets: dict[str, list[Sample]] = {}
        figures: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            drawn, samples = _draw(run, features, generators[arm.tuned], arm, settings)
            if arm.students:
                sets[arm.name] = samples
            figures[f"drawn for {arm.name}"] = pair_quality(
                *(np.stack(drawn[f"{tower}_feature"].to_numpy()) for tower in ("image", "text"))
            )
        sets["edge-50x1"] = [replace(sample, captions=sample.captions[:1]) for sample in sets["edge-50x2"]]
        evaluated = run.stage("evaluate", lambda stage: _evaluate(stage, sets, features, settings))
        for name, found in evaluated.store.read_json(EVALUATION)["sets"].items():
            figures[name] = {metric: found["metrics"][metric]["mean"] for metric in METRICS}
    return figures


def _draw(
    run: RunDir, features: FeatureStore, generator: Stage, arm: Arm, settings: Edge
) -> tuple[Any, list[Sample]]:
    """All that was drawn for an arm, and its set."""
    own = replace(
        settings,
        captions=replace(settings.captions, per_image=arm.captions),
        synthesis=replace(
            settings.synthesis, pairs=PAIRS, candidates_per_image=arm.candidates, guidance=arm.guidance
        ),
    )
    drawn = run.stage(f"{arm.name}-draw", lambda stage: distill.synthesize(stage, features, generator, own))
    chosen = run.stage(f"{arm.name}-choose", lambda stage: distill.choose(stage, features, drawn, own))
    written = run.stage(f"{arm.name}-caption", lambda stage: distill.caption(stage, drawn, chosen, own))
    return read_drawn(drawn.store), distill.samples(drawn, chosen, written, own)


def _evaluate(
    stage: Stage, sets: Mapping[str, Sequence[Sample]], features: FeatureStore, settings: Edge
) -> StageResult:
    px, seed = settings.students.image_px, settings.run.seed
    val, test = (
        read_pair_set(source, px)[0] for source in settings.evaluation.sources(settings.data).values()
    )
    compared = {name: synthetic_set(samples, px) for name, samples in sets.items()}
    coresets = dict(choose_coresets(features, COMPARED, PAIRS, seed, settings.evaluation))
    compared |= dict(baseline_sets(features, settings.data, settings.evaluation, PAIRS, px, seed, coresets))
    found = compare(compared, val, test, settings.students, settings.evaluation, seed, stage)
    stage.store.write_json(EVALUATION, found)
    return StageResult(rows_in=sum(s.n_pairs for s in compared.values()), rows_out=len(compared))


def show(name: str, values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"  {name:<12} {mean(values):9.4f}{spread}   {'  '.join(f'{v:.4f}' for v in values)}"


def main() -> None:
    claims = tyro.cli(Claims)
    runs = [measure(settings_of(claims, seed)) for seed in claims.seeds]
    for name in runs[0]:
        print(name)
        for figure in runs[0][name]:
            print(show(figure, [figures[name][figure] for figures in runs]))
    (claims.out / "claims.json").write_text(
        json.dumps(dict(zip(map(str, claims.seeds), runs, strict=True)), indent=2)
    )


if __name__ == "__main__":
    main()
