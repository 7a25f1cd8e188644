"""The sets that the claims compare, and the settings of one world.

A world is a seed: its data, its validation data (seed + ``VAL_SEEDS``), its test data (seed + ``TEST_SEEDS``) and
``run.seed``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

import vlcp_arms
from claims_tables import BASE, REAL, Noise
from tyro.conf import Positional

from mmdd_ray.config import Evaluation
from mmdd_ray.errors import UserError
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.methods.trajectory.settings import Trajectory
from mmdd_ray.methods.vlcp.presets import local as vlcp_local
from mmdd_ray.methods.vlcp.settings import Vlcp
from mmdd_ray.models import zoo

PAIRS = 100  # of every set of EDGE, CovMatch and real pairs
WORLDS = {"claims": range(101, 106), "noise": range(101, 106), "demo": range(101, 111)}
CLASSIFIER_RATES = (0.02, 0.05, 0.1)
VAL_SEEDS, TEST_SEEDS = 10_000, 20_000  # on top of the world's
NOISE = tuple(Noise(wrong, cluttered) for cluttered in (False, True) for wrong in (0.0, 0.1, 0.2, 0.3))
S = TypeVar("S", Edge, Covmatch, Vlcp, Trajectory)


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
    """The groups of claims to measure; "edge" has CovMatch's sets, too."""
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
    """The comparison of `make demo`."""
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
