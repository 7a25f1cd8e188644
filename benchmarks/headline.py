"""How long each method takes until its pairs are as good as the best that trajectory matching learns.

    python benchmarks/headline.py     # three procedural worlds; an hour on two idle cores
    python benchmarks/headline.py --photos FOLDER --flickr8k FOLDER     # Flickr8k at 64 px, three seeds; hours

In each world every method distils 100 pairs with growing budgets, and students of one kind are trained on all of these
sets and on real ones. The time of a set is that of its stages, of processes that start, too; it is counted with and
without what another distillation of the same data uses again: features, experts, moments, a tuned generator.

Settings are chosen first, of as many trials for each method, on a world that is not reported. With Flickr8k each seed
is a world: it has the same photographs, and other pairs to start from, experts and students. Trials are judged on the
last thousand photographs of the train split, and the report on the dev split. EDGE is left out there, because no
generator of photographs is at hand; and features are those of the encoders, because no CLIP is.

The same command goes on after a kill; a stage that was interrupted is done again from its start, since its time counts.
Timings need idle cores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import flickr8k
import tyro
from claims_measure import evaluated, scored, whole_moments
from claims_worlds import Claims, placed, zoo_versions
from markdown_table import markdown_table
from speed import Ratio, Speed, record

from mmdd_ray import cli
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import LEARNT, Sample
from mmdd_ray.engine.cluster import connected
from mmdd_ray.engine.run_dir import MANIFEST, STARTED, RunDir, StageDir
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import whole_stage
from mmdd_ray.methods.covmatch import stages as covmatch_stages
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.edge import stages as edge_stages
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.methods.trajectory import stages as trajectory_stages
from mmdd_ray.methods.trajectory.presets import local as trajectory_local
from mmdd_ray.methods.trajectory.settings import Trajectory
from mmdd_ray.storage.store import Store

PAIRS = 100
RIVAL, FROM_RANDOM = "trajectory", "covmatch-random"
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    RIVAL: (
        {},
        {"init": "clip-score"},
        {"init": "clip-score", "pixel_rate": 1000.0},
        {"init": "clip-score", "similarity": "low-rank"},
    ),
    "covmatch": ({}, {"pixel_rate": 0.02}, {"token_rate": 0.004}, {"pixel_rate": 0.02, "token_rate": 0.004}),
    "edge": ({}, {"learning_rate": 2e-4}, {"contrastive_weight": 2.0}, {"max_timestep_fraction": 0.6}),
}
"""Settings that are tried for each method: changes of the local preset's `match`, or of its `finetune`."""
PHOTO_TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    RIVAL: ({}, {"pixel_rate": 1000.0}, {"student_rate": 0.1}, {"similarity": "low-rank"}),
    "covmatch": tuple(flickr8k.TRIALS.values()),
}
LADDERS = {
    "cpu": {
        RIVAL: (30, 60, 120, 240),
        FROM_RANDOM: (20, 40, 80, 160),
        "covmatch": (5, 10, 20, 40, 80),
        "edge": (0, 15, 30, 60),
    },
    "photos": {RIVAL: (30, 60, 120, 240), "covmatch": (5, 10, 20, 40, 60, 120, 240)},
    "tiny photos": {RIVAL: (1, 2), "covmatch": (1, 2)},
    "tiny": {RIVAL: (1, 2), FROM_RANDOM: (1,), "covmatch": (1, 2), "edge": (0, 1)},
}
"""Iterations, or steps of fine-tuning, by size; trials have those of `TRIED_AT`."""
TRIED_AT = {RIVAL: 2, "covmatch": 3, "edge": 3}
"""Rungs of the trials, or the last: the longest that are quick enough to be tried often."""
REUSED = ("features", "experts", "moments", "finetune")
"""Stages that another distillation of these data uses again, by the beginning of their name."""
COUNTED = {"whole": "all stages", "further": "a further distillation", "work": "all stages, without starts"}
RECALL = itemgetter("recall")
EVALUATE = "evaluate"  # whose time does not count
FIGURES = "figures.json"  # of a run directory that is finished
TRIAL_WORLD, FIRST_WORLD = 1, 101


@dataclass(kw_only=True)
class Headline(Speed):
    """Times distillations until they are as good as trajectory matching."""

    size: Literal["cpu", "tiny"] = "cpu"
    """How much is computed: an hour on a laptop, or minutes in a test."""
    repetitions: int = 3
    """Worlds of the report, of the seeds 101, 102, …"""
    photos: Path | None = None
    """Folder of Flickr8k's shards, whose photographs take the place of procedural worlds."""
    flickr8k: Path = Path("runs/flickr8k")
    """Folder in which benchmarks/flickr8k.py has trained its image encoder, for photographs."""
    runs: Path = Path("runs/headline")
    """Folder of the run directories."""

    @property
    def ladders(self) -> dict[str, tuple[int, ...]]:
        """The budgets of each method."""
        if self.photos:
            return LADDERS["photos" if self.size == "cpu" else "tiny photos"]
        return LADDERS[self.size]

    @property
    def trials(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Settings that are tried for each method."""
        found = PHOTO_TRIALS if self.photos else TRIALS
        return {name: trials[:2] for name, trials in found.items()} if self.size == "tiny" else found


Sets = Mapping[str, tuple[str, Mapping[str, Any], int]]
"""By name: the method, changes of its settings, and its budget."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that the sets of one world depend on."""

    trajectory: Trajectory
    covmatch: Covmatch
    edge: Edge | None
    """None for photographs."""
    sets: Sets
    models: Mapping[str, str | None] = field(default_factory=zoo_versions)

    @property
    def base(self) -> Edge | Covmatch:
        """Data, features and students, which are the same for each method."""
        return self.edge or self.covmatch


def photographs(asked: Headline, seed: int, folder: str, sets: Sets) -> World:
    """Flickr8k with the settings of its benchmark, but for the rates; students leave the text encoder frozen."""
    assert asked.photos
    base = flickr8k.settings_of(flickr8k.Flickr8k(asked.photos, asked.photos, asked.flickr8k), PAIRS)
    base = flickr8k.Arm(PAIRS, seed).settings(base)
    evaluation = replace(
        base.evaluation, seeds=3, protocols=("equal-budget",), baselines=("random", "herding", "full")
    )
    if seed == TRIAL_WORLD:
        evaluation = replace(evaluation, test=evaluation.val)
    base = replace(
        base,
        run=replace(base.run, dir=str((asked.runs / "photos" / folder / f"seed{seed}").absolute())),
        students=replace(base.students, trained="frozen-text"),
        evaluation=evaluation,
    )
    if asked.size == "tiny":
        base = replace(
            base,
            students=replace(base.students, steps=2, learning_rates=(0.1,)),
            data=replace(base.data, limit=200),
            evaluation=replace(evaluation, seeds=1, baselines=("random", "herding"), max_pairs=50),
        )
    local, under = trajectory_local(), base.match
    return World(
        edge=None,
        covmatch=base,
        trajectory=replace(
            local,
            run=base.run,
            data=base.data,
            match=replace(
                local.match,
                pairs=PAIRS,
                image_model=under.image_model,
                text_model=under.text_model,
                image_px=under.image_px,
                max_tokens=under.max_tokens,
                embed_dim=under.embed_dim,
            ),
            students=base.students,
            evaluation=base.evaluation,
        ),
        sets=sets,
    )


def world_of(asked: Headline, seed: int, folder: str, sets: Sets) -> World:
    """The local presets in the world of a seed, all with the features and the students of EDGE's; or photographs."""
    if asked.photos:
        return photographs(asked, seed, folder, sets)
    claims = Claims(out=asked.runs)
    edge, covmatch, trajectory = (
        placed(preset(), claims, seed, folder) for preset in (edge_local, covmatch_local, trajectory_local)
    )
    edge = replace(edge, synthesis=replace(edge.synthesis, pairs=PAIRS))
    if asked.size == "tiny":
        edge = replace(
            edge,
            students=replace(edge.students, steps=2, learning_rates=(0.1,)),
            evaluation=replace(edge.evaluation, seeds=1, baselines=("random", "herding")),
        )
    shared = {"features": edge.features, "students": edge.students, "evaluation": edge.evaluation}
    return World(
        edge=edge,
        covmatch=replace(covmatch, **shared, match=replace(covmatch.match, pairs=PAIRS)),
        trajectory=replace(trajectory, **shared, match=replace(trajectory.match, pairs=PAIRS)),
        sets=sets,
    )


Made = LearntPairs | list[Sample]


def distilled(run: RunDir, world: World, name: str) -> tuple[Made, list[StageDir]]:
    """A set, and the stages that made it."""
    method, changes, budget = world.sets[name]
    found = encoded(run, world)
    features = FeatureStore(found.store)
    if world.edge and method == "edge":
        tuned = replace(world.edge.finetune, **changes, steps=budget)
        return _drawn(run, name, features, replace(world.edge, finetune=tuned), [found])
    if method in ("covmatch", FROM_RANDOM):
        learnt = replace(world.covmatch.match, **changes, iterations=budget)
        covmatch = replace(world.covmatch, match=learnt)
        whole = whole_moments(run, "moments", covmatch) if world.edge else found
        assert whole is not None
        matched = run.stage(name, lambda stage: covmatch_stages.match(stage, features, whole, covmatch))
        return _learnt(matched), [*([found] if world.edge else []), whole, matched]
    followed = replace(world.trajectory.match, **changes, iterations=budget)
    trajectory = replace(world.trajectory, match=followed)
    experts = run.stage("experts", lambda stage: trajectory_stages.experts(stage, features, trajectory))
    matched = run.stage(name, lambda stage: trajectory_stages.match(stage, features, experts, trajectory))
    # of photographs it needs no features: experts encode the texts themselves
    return _learnt(matched), [*([found] if world.edge else []), experts, matched]


def encoded(run: RunDir, world: World) -> StageDir:
    """The features: CLIP's of scenes, and of photographs those of the encoders, with their moments."""
    if world.edge:
        return scored(run, world.edge)
    return run.stage("moments", lambda stage: whole_stage(stage, None, world.covmatch))


def _learnt(stage: StageDir) -> LearntPairs:
    return LearntPairs.from_bytes(stage.store.read_bytes(LEARNT))


def _drawn(
    run: RunDir, name: str, features: FeatureStore, edge: Edge, before: list[StageDir]
) -> tuple[list[Sample], list[StageDir]]:
    tuned = run.stage(f"finetune-{name}", lambda stage: edge_stages.finetune(stage, features, edge))
    drawn = run.stage(f"{name}-draw", lambda stage: edge_stages.synthesize(stage, features, tuned, edge))
    chosen = run.stage(f"{name}-choose", lambda stage: edge_stages.choose(stage, features, drawn, edge))
    written = run.stage(f"{name}-caption", lambda stage: edge_stages.caption(stage, drawn, chosen, edge))
    return edge_stages.samples(drawn, chosen, written, edge), [*before, tuned, drawn, chosen, written]


@dataclass(frozen=True)
class Seconds:
    """Time of a distillation, in seconds."""

    whole: float
    further: float
    """Without what another distillation of these data uses again."""
    work: float
    """Time of the whole without the starts of processes."""

    @classmethod
    def of(cls, stages: Sequence[StageDir]) -> "Seconds":
        """The sum over the stages that made a set."""
        whole, starts = (
            [stage.manifest[name] or 0.0 for stage in stages] for name in ("seconds", "startup_seconds")
        )
        again = [stage.name.startswith(REUSED) for stage in stages]
        further = (seconds for seconds, reused in zip(whole, again, strict=True) if not reused)
        return cls(sum(whole), sum(further), sum(whole) - sum(starts))


Found = dict[str, dict[str, float]]
"""Mean recall and seconds of each set; recall alone of real ones."""


def drop_interrupted(run: Store) -> None:
    """Removes stages that were begun and not ended, whose manifests would have the time of their last attempt alone."""
    for name in run.entries():
        if name != EVALUATE and run.exists(f"{name}/{STARTED}") and not run.exists(f"{name}/{MANIFEST}"):
            run.remove(name)


def measured(asked: Headline, seed: int, part: str, sets: Sets) -> Found:
    """The figures of a world, which are measured as far as they are not in its run directory."""
    world = world_of(asked, seed, part, sets)
    with RunDir.open(world.base.run.dir, f"headline_{part}", "local", world) as run:
        if not run.store.exists(FIGURES):
            drop_interrupted(run.store)
            with connected(world.base.run, run.store) as devices:
                run.devices = devices.as_json()
                made = {name: distilled(run, world, name) for name in sets}
                compared = {name: one for name, (one, _) in made.items()}
                features = FeatureStore(encoded(run, world).store)
                recalls = evaluated(run, EVALUATE, compared, features, world.base)
            figures: Found = {name: {"recall": one["mean_recall"]} for name, one in recalls.items()}
            for name, (_, stages) in made.items():
                figures[name] |= asdict(Seconds.of(stages))
            run.store.write_json(FIGURES, figures)
        return run.store.read_json(FIGURES)


def chosen_trials(asked: Headline) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """The changes of each method with the best mean recall in the world of the trials, and all of these recalls."""
    sets = {
        f"{method}-trial{at}": (method, changes, asked.ladders[method][: TRIED_AT[method] + 1][-1])
        for method, trials in asked.trials.items()
        for at, changes in enumerate(trials)
    }
    recalls = {name: one["recall"] for name, one in measured(asked, TRIAL_WORLD, "tune", sets).items()}
    best = {
        method: max(
            trials, key=lambda changes, of=method: recalls[f"{of}-trial{asked.trials[of].index(changes)}"]
        )
        for method, trials in asked.trials.items()
    }
    return best, recalls


def name_of(method: str, budget: int) -> str:
    return f"{method}-{budget}"


def ratios_of(worlds: Sequence[Found], ladders: Mapping[str, Sequence[int]]) -> list[Ratio]:
    """How often a method is faster than the rival at its best, world by world.

    None of a method that does not come up to the rival in every world, and none at all where the rival is not above
    random and herding pairs on the mean: a weak rival makes a ratio worthless.
    """
    rungs = {method: [name_of(method, budget) for budget in budgets] for method, budgets in ladders.items()}
    best = [max((world[name] for name in rungs[RIVAL]), key=RECALL) for world in worlds]
    for real in ("random", "herding"):
        if mean(map(RECALL, best)) <= mean(world[real]["recall"] for world in worlds):
            return []
    found = []
    for method in filter(RIVAL.__ne__, ladders):
        reached = [
            next((world[name] for name in rungs[method] if RECALL(world[name]) >= RECALL(own)), None)
            for own, world in zip(best, worlds, strict=True)
        ]
        first = [one for one in reached if one is not None]
        if len(first) == len(worlds):
            found += [
                Ratio(
                    f"headline: {method}, {counted}",
                    tuple(own[part] / their[part] for own, their in zip(best, first, strict=True)),
                )
                for part, counted in COUNTED.items()
            ]
    return found


def table(worlds: Sequence[Found]) -> str:
    """Markdown: each set's recall and seconds, mean ± standard deviation over the worlds."""
    head = ["set", "mean recall", "seconds", "without what is used again", "without starts"]
    rows = []
    for name in worlds[0]:
        parts = [part for part in ("recall", *COUNTED) if part in worlds[0][name]]
        cells = [_spread([world[name][part] for world in worlds]) for part in parts]
        rows.append([name, *cells, *[""] * (4 - len(cells))])
    return markdown_table(head, rows)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    asked = tyro.cli(Headline)
    changes, trials = chosen_trials(asked)
    # without trials of its own: the preset begins with pairs of the better half by CLIP, which may be good already
    chosen = {**changes, FROM_RANDOM: {**changes["covmatch"], "init": "random"}}
    sets = {
        name_of(method, budget): (method, chosen[method], budget)
        for method, budgets in asked.ladders.items()
        for budget in budgets
    }
    seeds = range(FIRST_WORLD, FIRST_WORLD + asked.repetitions)
    worlds = [measured(asked, seed, "report", sets) for seed in seeds]
    print(f"\n{table(worlds)}\n\nchosen: {chosen}")
    ratios = ratios_of(worlds, asked.ladders)
    record(
        "headline_photos" if asked.photos else "headline",
        asked,
        ratios,
        table=table(worlds),
        chosen=chosen,
        trials=trials,
        worlds=worlds,
    )


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
