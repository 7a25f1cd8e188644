"""The claims of EDGE, CovMatch and VLCP, measured on procedural worlds that nothing was tuned on.

    python benchmarks/claims.py                          # all tables and claims, five worlds
    python benchmarks/claims.py --parts edge --seeds 101
    python benchmarks/claims.py noise                    # EDGE, random and clip-score pairs over noise
    python benchmarks/claims.py demo                     # what `make demo` compares, in ten worlds

A world is a seed s: its data, its validation data (seed s + 10,000), its test data (s + 20,000) and `run.seed` s.
Everything else is what the local presets say, so what is measured is what they do. Each world and method has a run
directory of its own. Killed at any point, the same command goes on, and what is finished is not done again.

Writes a table as JSON and Markdown to the folder `out`, named by the options that are not the default.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

import numpy as np
import tyro
import vlcp_arms
from claims_tables import (
    BASE,
    COVMATCH,
    EDGE,
    HELD_OUT,
    REAL,
    VLCP,
    Noise,
    decided_claims,
    demo_markdown,
    markdown,
    noise_markdown,
)
from tyro.conf import Positional

from mmdd_ray import cli
from mmdd_ray.cluster import connected
from mmdd_ray.config import Covmatch, Edge, Evaluation, Vlcp
from mmdd_ray.covmatch import stages as covmatch_stages
from mmdd_ray.data.distilled import LEARNT, Sample, single_captions
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.data.start_set import StartSet
from mmdd_ray.diffusion.synthesize import Drawing, draw, read_drawn, sample_seeds
from mmdd_ray.edge import distill
from mmdd_ray.edge.choose import pair_quality
from mmdd_ray.errors import UserError
from mmdd_ray.evaluate.compare import compare
from mmdd_ray.evaluate.sets import (
    COMPARED,
    EVALUATION,
    baseline_sets,
    choose_coresets,
    held_out_sets,
    read_rows,
    synthetic_set,
)
from mmdd_ray.features.precompute import precompute
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import whole_stage
from mmdd_ray.models import zoo
from mmdd_ray.presets import covmatch_local, edge_local, vlcp_local
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.store import Store

PAIRS = 100  # of every set of EDGE, CovMatch and real pairs
WORLDS = {"claims": range(101, 106), "noise": range(101, 106), "demo": range(101, 111)}
CLASSIFIER_RATES = (0.02, 0.05, 0.1)
VAL_SEEDS, TEST_SEEDS = 10_000, 20_000  # on top of the world's
NOISE = tuple(Noise(wrong, cluttered) for cluttered in (False, True) for wrong in (0.0, 0.1, 0.2, 0.3))
FIGURES = "figures.json"  # of a run directory that is finished

Found = dict[str, dict[str, dict[str, float]]]
Sets = Mapping[str, Sequence[Sample] | LearntPairs]
S = TypeVar("S", Edge, Covmatch, Vlcp)


@dataclass
class Claims:
    """Measures the claims of the papers on the procedural world."""

    table: Positional[Literal["claims", "noise", "demo"]] = "claims"
    """All claims; or EDGE, random and clip-score pairs over wrong captions and clutter; or what `make demo` compares,
    world by world."""
    seeds: tuple[int, ...] | None = None
    """Worlds. Nothing may have been tuned on them: those from 101 on are kept for results. Default: 101 to 105, and to
    110 for the demo."""
    parts: tuple[Literal["edge", "vlcp"], ...] = ("edge", "vlcp")
    """What to measure of all claims; "edge" has CovMatch's sets, too."""
    wrong: float = 0.2
    """Share of wrong captions in the data of EDGE and CovMatch."""
    vague: float = 0.1
    """Share of vague captions there."""
    clutter: float | None = None
    """Marks in a picture. Default: the world's own."""
    nuisance: float | None = None
    """Strength of bars, light, texture and grain. Default: the world's own."""
    out: Path = Path("runs/claims")
    """Folder of the results and of the run directories."""

    @property
    def worlds(self) -> tuple[int, ...]:
        """Those that were asked for, or the default ones."""
        return tuple(WORLDS[self.table]) if self.seeds is None else self.seeds


@dataclass(frozen=True)
class Arm:
    """A set that EDGE draws."""

    name: str
    tuning: str = "tuned"
    """Name of the generator; arms of one name share it."""
    finetune: Mapping[str, Any] = field(default_factory=dict)
    """Changes of its fine-tuning."""
    synthesis: Mapping[str, Any] = field(default_factory=dict)
    """Changes of drawing and choosing."""
    captions: int = 1
    """Captions of each image; there are `PAIRS // captions` images."""

    def settings(self, edge: Edge) -> Edge:
        """The preset with the changes of this arm."""
        return replace(
            edge,
            finetune=replace(edge.finetune, **self.finetune),
            captions=replace(edge.captions, per_image=self.captions),
            synthesis=replace(edge.synthesis, **self.synthesis),
        )


ARMS = (
    Arm(BASE),
    Arm("edge-50x2", captions=2),
    Arm("edge-20x5", captions=5),
    Arm("edge-100x1-unselected", synthesis={"candidates_per_image": 1, "clip_score_fraction": 1.0}),
    Arm("edge-100x1-moments", synthesis={"clip_score_fraction": 1.0}),
    Arm("edge-100x1-untuned", "untuned", {"steps": 0}),
    Arm("edge-100x1-contrastive", "contrastive", {"diversity_weight": 0.0, "noise_weight": 0.0}),
    Arm("edge-100x1-diversity", "diversity", {"contrastive_weight": 0.0, "noise_weight": 0.0}),
)


@dataclass(frozen=True)
class MatchArm:
    """A set that CovMatch learns."""

    name: str
    match: Mapping[str, Any] = field(default_factory=dict)
    """Changes of matching."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the features, whose moments are matched."""

    def settings(self, covmatch: Covmatch) -> Covmatch:
        """The preset with the changes of this arm."""
        return replace(
            covmatch,
            match=replace(covmatch.match, **self.match),
            features=replace(covmatch.features, **self.features),
        )


FROM_EDGE = "edge"  # a start that is made here
MATCH_ARMS = (
    MatchArm("covmatch"),
    MatchArm("covmatch-random", {"init": "random"}),
    MatchArm("covmatch-edge", {"init": FROM_EDGE}),
    MatchArm(
        "covmatch-batches",
        {"init": "random", "real_moments": "batches", "encoder_updates": True},
        {"clip_score_fraction": 1.0},
    ),
)
COVMATCH_STUDENTS = (BASE, "edge-refined", *(arm.name for arm in MATCH_ARMS))  # that train on these


def zoo_versions() -> dict[str, str | None]:
    """The weights that the local presets' models have now; figures of other ones are not to be mixed with theirs."""
    return {name: zoo.version(name) for name in zoo.NAMES}


@dataclass(frozen=True, kw_only=True)
class EdgeBench:
    """Everything that one world's figures of EDGE and CovMatch depend on."""

    edge: Edge
    covmatch: Covmatch
    models: Mapping[str, str | None] = field(default_factory=zoo_versions)
    arms: tuple[Arm, ...] = ARMS
    match_arms: tuple[MatchArm, ...] = MATCH_ARMS
    further: bool = True
    """Measures held-out prompts and the sets that CovMatch learns, too."""
    held_out_prompts: int = 100


@dataclass(frozen=True, kw_only=True)
class VlcpBench:
    """Everything that one world's figures of VLCP depend on."""

    vlcp: Vlcp
    models: Mapping[str, str | None] = field(default_factory=zoo_versions)
    arms: Mapping[str, dict[str, bool]] = field(default_factory=lambda: vlcp_arms.ARMS)


def world(uri: str, **options: float | None) -> str:
    """A procedural dataset with other options; those that are None stay as they are."""
    base, _, query = uri.partition("?")
    changes = {name: str(value) for name, value in options.items() if value is not None}
    return f"{base}?{urlencode(dict(parse_qsl(query)) | changes)}"


def placed(settings: S, claims: Claims, seed: int, folder: str, **flaws: float) -> S:
    """A preset in the world of a seed; `flaws` are of the data alone."""
    shared = {"clutter": claims.clutter, "nuisance": claims.nuisance}
    data = replace(settings.data, uri=world(settings.data.uri, seed=seed, **flaws, **shared))
    evaluation: Evaluation = settings.evaluation
    test = evaluation.test
    # VLCP's preset has none where its grid of learning rates has one; its test data are of the same nature
    val = evaluation.val or test
    evaluation = replace(
        evaluation,
        baselines=(*REAL, "full"),
        draws=1,  # every world is a distillation of its own
        val=world(val, seed=seed + VAL_SEEDS, **shared),
        test=world(test, seed=seed + TEST_SEEDS, **shared),
    )
    run = replace(settings.run, seed=seed, dir=str((claims.out / folder / f"seed{seed}").absolute()))
    return replace(settings, run=run, data=data, evaluation=evaluation)


def edge_bench(claims: Claims, seed: int, folder: str = "edge") -> EdgeBench:
    flaws = {"wrong": claims.wrong, "vague": claims.vague, "captions": 1}
    edge, covmatch = (
        placed(preset(), claims, seed, folder, **flaws) for preset in (edge_local, covmatch_local)
    )
    return EdgeBench(
        edge=replace(edge, synthesis=replace(edge.synthesis, pairs=PAIRS)),
        covmatch=replace(covmatch, match=replace(covmatch.match, pairs=PAIRS)),
    )


def vlcp_bench(claims: Claims, seed: int) -> VlcpBench:
    vlcp = placed(vlcp_local(), claims, seed, "vlcp")
    return VlcpBench(
        vlcp=replace(vlcp, classifiers=replace(vlcp.classifiers, learning_rates=CLASSIFIER_RATES))
    )


def noise_bench(claims: Claims, noise: Noise, seed: int) -> EdgeBench:
    """EDGE, random and clip-score pairs alone."""
    plain: dict[str, Any] = {} if noise.cluttered else {"clutter": 0.0, "nuisance": 0.0}
    bench = edge_bench(replace(claims, wrong=noise.wrong, **plain), seed, f"noise/{noise.name}")
    evaluation = replace(bench.edge.evaluation, baselines=("random", "clip-score"))
    return replace(bench, edge=replace(bench.edge, evaluation=evaluation), arms=ARMS[:1], further=False)


def demo_bench(claims: Claims, seed: int) -> EdgeBench:
    """What `make demo` compares."""
    return replace(edge_bench(claims, seed, "demo"), arms=ARMS[:1], further=False)


def check_claims(claims: Claims) -> None:
    """Raises ``UserError`` where worlds would be counted twice or share data with one another, where nothing is asked,
    or where an option says nothing to the table.
    """
    if not claims.parts:
        raise UserError("parts= leaves nothing to measure; give edge, vlcp or both")
    idle = {"claims": (), "noise": ("parts", "wrong", "clutter", "nuisance"), "demo": ("parts",)}[
        claims.table
    ]
    plain = Claims()
    for name in idle:
        if getattr(claims, name) != getattr(plain, name):
            raise UserError(f"the table {claims.table} does not depend on --{name}; leave it out")
    seeds = claims.worlds
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < VAL_SEEDS for seed in seeds):
        raise UserError(
            f"seeds={' '.join(map(str, seeds))} are no worlds of their own; give different ones below {VAL_SEEDS:,}, "
            "as 101 102 103"
        )


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
    features = FeatureStore(scored(run, settings))
    generators = {
        arm.tuning: run.stage(
            f"finetune-{arm.tuning}",
            lambda stage, arm=arm: distill.finetune(stage, features, arm.settings(settings)),
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
    run: RunDir, features: FeatureStore, generator: Stage, arm: Arm, settings: Edge
) -> Sequence[Sample]:
    """The set of an arm."""
    own = arm.settings(settings)
    candidates = run.stage(
        f"{arm.name}-draw", lambda stage: distill.synthesize(stage, features, generator, own)
    )
    chosen = run.stage(f"{arm.name}-choose", lambda stage: distill.choose(stage, features, candidates, own))
    written = run.stage(f"{arm.name}-caption", lambda stage: distill.caption(stage, candidates, chosen, own))
    return distill.samples(candidates, chosen, written, own)


def held_out(
    run: RunDir, generators: Mapping[str, Stage], settings: Edge, prompts: int
) -> dict[str, dict[str, float]]:
    """How drawings for right captions of test scenes look to CLIP, by generator; all begin with the same noise."""
    rows = read_rows(settings.evaluation.sources(settings.data)["test"])[:prompts]
    seeds = sample_seeds(settings.run.seed, len(rows))
    drawings = [Drawing(at, row.captions[0], seeds[at], row.key) for at, row in enumerate(rows)]
    px, clip = settings.finetune.image_px, settings.features.clip

    def body(stage: Stage, generator: Store) -> StageResult:
        draw(stage, drawings, generator, settings.synthesis, image_px=px, clip=clip)
        return StageResult(rows_in=len(drawings), rows_out=len(drawings))

    found = {}
    for name, tuned in generators.items():
        generator = tuned.store.child("generator")
        stage = run.stage(f"held-out-{name}", lambda stage, generator=generator: body(stage, generator))
        images = read_drawn(stage.store)
        features = (np.stack(images[f"{tower}_feature"].to_numpy()) for tower in ("image", "text"))
        found[name] = pair_quality(*features)
    return found


def learnt(run: RunDir, samples: Sequence[Sample], bench: EdgeBench) -> dict[str, LearntPairs]:
    """What CovMatch makes of EDGE's pairs and of real ones."""
    edge, covmatch = bench.edge, bench.covmatch
    iterations = edge.refine.iterations or covmatch.match.iterations
    edge = replace(edge, refine=replace(edge.refine, iterations=iterations))
    matched, whole = FeatureStore(scored(run, edge)), whole_moments(run, "refine-moments", edge)
    refined = run.stage("refine", lambda stage: distill.refine(stage, matched, whole, samples, edge))
    found = {"edge-refined": refined}
    given = StartSet({"uri": BASE, "method": distill.METHOD}, single_captions(samples), None)
    for arm in bench.match_arms:
        own = arm.settings(covmatch)
        fed = (
            FeatureStore(scored(run, own)),
            whole_moments(run, f"match-moments-{own.features.clip_score_fraction:g}", own),
            own,
            given if own.match.init == FROM_EDGE else None,
        )
        found[arm.name] = run.stage(arm.name, lambda stage, fed=fed: covmatch_stages.match(stage, *fed))
    return {name: LearntPairs.from_bytes(stage.store.read_bytes(LEARNT)) for name, stage in found.items()}


def scored(run: RunDir, settings: Edge | Covmatch) -> Store:
    """The features of the data and the moments of the pairs that the settings keep.

    One run has moments of several shares of the pairs, each in a store of its own: on this world it costs seconds.
    """
    name = f"features-{settings.features.clip_score_fraction:g}"
    return run.stage(name, lambda stage: precompute(stage, None, settings.data, settings.features)).store


def whole_moments(run: RunDir, name: str, settings: Edge | Covmatch) -> Stage | None:
    """The moments of these pairs under the initial encoders, where the preset matches those."""
    if settings.matching.real_moments == "batches":
        return None
    store = scored(run, settings)
    return run.stage(name, lambda stage: whole_stage(stage, None, settings, store))


def evaluated(
    run: RunDir, name: str, sets: Sets, features: FeatureStore, settings: Edge | Covmatch
) -> dict[str, dict[str, float]]:
    """The metrics of students of each set, of real sets, and of chance."""
    evaluation, students, seed = settings.evaluation, settings.students, settings.run.seed
    pairs = settings.synthesis.pairs if isinstance(settings, Edge) else settings.match.pairs
    px = students.image_px

    def body(stage: Stage) -> StageResult:
        val, test = held_out_sets(settings, RejectList(stage.store, None))
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
    sets = vlcp_arms.draw_sets(run, made, bench.vlcp)
    return {VLCP: means(vlcp_arms.judge(run, made, sets, bench.vlcp).store.read_json(EVALUATION))}


def main() -> None:
    claims = tyro.cli(Claims)
    check_claims(claims)
    seeds = claims.worlds
    if claims.table == "noise":
        noisy = {
            noise: {seed: measured(noise_bench(claims, noise, seed)) for seed in seeds} for noise in NOISE
        }
        told = noise_markdown(noisy)
        held: dict[str, Any] = {noise.name: figures for noise, figures in noisy.items()}
    elif claims.table == "demo":
        held = {str(seed): measured(demo_bench(claims, seed)) for seed in seeds}
        told = demo_markdown({int(seed): figures for seed, figures in held.items()})
    else:
        worlds: dict[int, Found] = {seed: {} for seed in seeds}
        for seed in seeds:
            if "edge" in claims.parts:
                worlds[seed] |= measured(edge_bench(claims, seed))
            if "vlcp" in claims.parts:
                worlds[seed] |= measured(vlcp_bench(claims, seed))
        told = markdown(worlds)
        held = {"figures": worlds, "claims": decided_claims(list(worlds.values()))}
    claims.out.mkdir(parents=True, exist_ok=True)
    changed = {
        part.name: getattr(claims, part.name)
        for part in fields(claims)
        if part.name not in ("table", "out") and getattr(claims, part.name) != part.default
    }
    named = [
        f"{name}-{'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in changed.items()
    ]
    file = claims.out / "_".join([claims.table, *named])  # a part of the worlds must not replace all of them
    Path(f"{file}.json").write_text(json.dumps(held, indent=2))
    Path(f"{file}.md").write_text(f"{told}\n")
    print(f"\n{told}\n\n{file}.json, {file}.md")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
