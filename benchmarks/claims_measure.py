"""The figures of one world: every set is distilled and evaluated in a run directory of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import vlcp_arms
from claims_tables import BASE, COVMATCH, EDGE, HELD_OUT, VLCP
from claims_worlds import COVMATCH_STUDENTS, FROM_EDGE, Arm, EdgeBench, VlcpBench

from mmdd_ray.diffusion.synthesize import SampleRequest, draw, read_drawn, sample_seeds
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import LEARNT, Sample, single_captions
from mmdd_ray.engine.cluster import connected
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.evaluation.compare import compare
from mmdd_ray.evaluation.held_out import read_held_out
from mmdd_ray.evaluation.sets import (
    COMPARED,
    EVALUATION,
    baseline_sets,
    choose_coresets,
    held_out_sets,
    synthetic_set,
)
from mmdd_ray.features.precompute import precompute
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import whole_stage
from mmdd_ray.methods.covmatch import stages as covmatch_stages
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.covmatch.start_set import StartSet
from mmdd_ray.methods.edge import stages as edge_stages
from mmdd_ray.methods.edge.choose import pair_quality
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.storage.store import Store

FIGURES = "figures.json"  # of a run directory that is finished

Found = dict[str, dict[str, dict[str, float]]]
Sets = Mapping[str, Sequence[Sample] | LearntPairs]


def measured(bench: EdgeBench | VlcpBench) -> Found:
    """The figures of one world, which are measured as far as they are not in its run directory."""
    part, own = ("vlcp", bench.vlcp.run) if isinstance(bench, VlcpBench) else ("edge", bench.edge.run)
    with RunDir.open(own.dir, f"claims_{part}", "local", bench) as run:
        if not run.store.exists(FIGURES):
            with connected(own, run.store) as devices:
                run.devices = devices.as_json()
                figures = (
                    measure_vlcp(run, bench) if isinstance(bench, VlcpBench) else measure_edge(run, bench)
                )
            run.store.write_json(FIGURES, figures)
        return run.store.read_json(FIGURES)


def measure_edge(run: RunDir, bench: EdgeBench) -> Found:
    """The tables of EDGE's and CovMatch's sets."""
    settings = bench.edge
    features = FeatureStore(scored(run, settings).store)
    generators = {
        arm.tuning: run.stage(
            f"finetune-{arm.tuning}",
            lambda stage, arm=arm: edge_stages.finetune(stage, features, arm.settings(settings)),
        )
        for arm in {arm.tuning: arm for arm in bench.arms}.values()
    }
    sets: dict[str, Sequence[Sample] | LearntPairs] = {
        arm.name: drawn(run, features, generators[arm.tuning], arm, settings) for arm in bench.arms
    }
    found: Found = {}
    if bench.further:
        both = {name: generators[name] for name in ("tuned", "untuned")}
        found[HELD_OUT] = held_out(run, both, settings, bench.held_out_prompts)
        sets |= learnt(run, sets[BASE], bench)
        theirs = {name: sets[name] for name in COVMATCH_STUDENTS}
        found[COVMATCH] = evaluated(run, "evaluate-covmatch", theirs, features, bench.covmatch)
    found[EDGE] = evaluated(run, "evaluate-edge", sets, features, settings)
    return found


def drawn(
    run: RunDir, features: FeatureStore, generator: StageDir, arm: Arm, settings: Edge
) -> Sequence[Sample]:
    """The set of an arm."""
    own = arm.settings(settings)
    candidates = run.stage(
        f"{arm.name}-draw", lambda stage: edge_stages.synthesize(stage, features, generator, own)
    )
    chosen = run.stage(
        f"{arm.name}-choose", lambda stage: edge_stages.choose(stage, features, candidates, own)
    )
    written = run.stage(
        f"{arm.name}-caption", lambda stage: edge_stages.caption(stage, candidates, chosen, own)
    )
    return edge_stages.samples(candidates, chosen, written, own)


def held_out(
    run: RunDir, generators: Mapping[str, StageDir], settings: Edge, prompts: int
) -> dict[str, dict[str, float]]:
    """How drawings for right captions of test scenes look to CLIP, by generator; all begin with the same noise."""
    test = settings.evaluation.sources(settings.data)["test"]
    rows = read_held_out(test, settings.evaluation.max_pairs).rows[:prompts]
    seeds = sample_seeds(settings.run.seed, len(rows))
    drawings = [SampleRequest(at, row.captions[0], seeds[at], row.key) for at, row in enumerate(rows)]
    px, clip = settings.finetune.image_px, settings.features.clip

    def body(stage: StageDir, generator: Store) -> StageResult:
        return draw(stage, drawings, generator, settings.synthesis, image_px=px, clip=clip)

    found = {}
    for name, tuned in generators.items():
        generator = tuned.store.child("generator")
        stage = run.stage(f"held-out-{name}", lambda stage, generator=generator: body(stage, generator))
        images = read_drawn(stage.store)
        features = (np.stack(images[f"{tower}_feature"].to_numpy()) for tower in ("image", "text"))
        found[name] = pair_quality(*features)
    return found


def learnt(run: RunDir, samples: Sequence[Sample], bench: EdgeBench) -> dict[str, LearntPairs]:
    """CovMatch's sets, from EDGE's pairs and from real ones."""
    edge, covmatch = bench.edge, bench.covmatch
    iterations = edge.refine.iterations or covmatch.match.iterations
    edge = replace(edge, refine=replace(edge.refine, iterations=iterations))
    matched, whole = FeatureStore(scored(run, edge).store), whole_moments(run, "refine-moments", edge)
    refined = run.stage("refine", lambda stage: edge_stages.refine(stage, matched, whole, samples, edge))
    found = {"edge-refined": refined}
    given = StartSet({"uri": BASE, "method": edge_stages.TITLE}, single_captions(samples), None)
    for arm in bench.match_arms:
        own = arm.settings(covmatch)
        fed = (
            FeatureStore(scored(run, own).store),
            whole_moments(run, f"match-moments-{own.features.clip_score_fraction:g}", own),
            own,
            given if own.match.init == FROM_EDGE else None,
        )
        found[arm.name] = run.stage(arm.name, lambda stage, fed=fed: covmatch_stages.match(stage, *fed))
    return {name: LearntPairs.from_bytes(stage.store.read_bytes(LEARNT)) for name, stage in found.items()}


def scored(run: RunDir, settings: Edge | Covmatch) -> StageDir:
    """The features of the data and the moments of the pairs that the settings keep.

    One run has moments of several shares of the pairs, each in a store of its own: on this world it costs seconds.
    """
    name = f"features-{settings.features.clip_score_fraction:g}"
    return run.stage(name, lambda stage: precompute(stage, None, settings.data, settings.features))


def whole_moments(run: RunDir, name: str, settings: Edge | Covmatch) -> StageDir | None:
    """The moments of these pairs under the initial encoders, where the preset matches those."""
    if settings.matching.real_moments == "batches":
        return None
    store = scored(run, settings).store
    return run.stage(name, lambda stage: whole_stage(stage, None, settings, store))


def evaluated(
    run: RunDir, name: str, sets: Sets, features: FeatureStore, settings: Edge | Covmatch
) -> dict[str, dict[str, float]]:
    """The metrics of students of each set, of real sets, and of chance."""
    evaluation, students, seed = settings.evaluation, settings.students, settings.run.seed
    pairs = settings.synthesis.pairs if isinstance(settings, Edge) else settings.match.pairs
    px = students.image_px

    def body(stage: StageDir) -> StageResult:
        held_out = held_out_sets(settings, RejectList(stage.store, None))[0]
        val, test = held_out["val"], held_out["test"]
        compared = {
            name: made.resized(px) if isinstance(made, LearntPairs) else synthetic_set(made, px)
            for name, made in sets.items()
        }
        names = [name for name in COMPARED if name in evaluation.baselines]
        coresets = dict(choose_coresets(features, names, pairs, seed, evaluation))
        compared |= dict(baseline_sets(features, settings.data, evaluation, pairs, px, seed, coresets))
        stage.store.write_json(EVALUATION, compare(compared, val, test, students, evaluation, seed, stage))
        return StageResult(rows_in=sum(one.n_pairs for one in compared.values()), rows_out=len(compared))

    return means(run.stage(name, body).store.read_json(EVALUATION))


def means(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The mean of each metric over the students of each set, and chance."""
    found = {
        name: {metric: score["mean"] for metric, score in one["metrics"].items()}
        for name, one in evaluation["sets"].items()
    }
    return found | {"chance": evaluation["chance"]}


def measure_vlcp(run: RunDir, bench: VlcpBench) -> Found:
    """The table of VLCP's sets."""
    made = vlcp_arms.prepare(run, bench.vlcp)
    return {VLCP: means(vlcp_arms.judge(run, made, bench.vlcp).store.read_json(EVALUATION))}
