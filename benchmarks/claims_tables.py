"""The claims of the papers, what decides them, and the tables of `claims.py`. Needs neither Ray nor torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from markdown_table import markdown_table

from mmdd_ray.evaluation.paired import Bar, Paired, first_above

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Figures of one world by table, set and metric."""

EDGE, COVMATCH, VLCP, HELD_OUT = "edge", "covmatch", "vlcp", "held-out"
BASE = "edge-100x1"  # what EDGE's other sets differ from in one thing
REAL = ("random", "herding", "k-center", "clip-score")

LABELS = {
    BASE: "EDGE, 100 × 1",
    "edge-50x2": "EDGE, 50 × 2",
    "edge-20x5": "EDGE, 20 × 5",
    "edge-100x1-unselected": "EDGE, one drawing a prompt, 100 × 1",
    "edge-100x1-moments": "EDGE, selection by moments alone, 100 × 1",
    "edge-100x1-untuned": "EDGE without fine-tuning, 100 × 1",
    "edge-100x1-contrastive": "EDGE, L_C alone, 100 × 1",
    "edge-100x1-diversity": "EDGE, L_D alone, 100 × 1",
    "edge-refined": "EDGE, refined to the moments of the better half",
    "covmatch": "CovMatch from clip-score",
    "covmatch-random": "CovMatch from random pairs",
    "covmatch-edge": "CovMatch from EDGE, 100 × 1",
    "covmatch-batches": "CovMatch from random pairs, on batches of all pairs, encoders trained",
    "both": "VLCP",
    "image-only": "VLCP, image prototypes alone",
    "text-only": "VLCP, text prototypes alone",
    "names-tuned": "class names alone, tuned generator",
    "names-as-is": "class names alone, generator as it is",
    "random": "random real",
    "clip-score": "clip-score, random of the better half",
    "full": "all real data",
    "tuned": "fine-tuned generator",
    "untuned": "generator as it is",
}
"""How tables name a set; others by their own name."""


@dataclass(frozen=True)
class Table:
    """A table of sets."""

    title: str
    columns: Mapping[str, str]
    """Heads by metric."""
    digits: int = 1


_RECALLS = {"ir@1": "IR@1", "ir@10": "IR@10", "tr@1": "TR@1", "tr@10": "TR@10", "mean_recall": "mean recall"}
TABLES = {
    EDGE: Table(
        "Students of EDGE's preset, images × captions; sets of fewer images are trained on in smaller batches",
        _RECALLS,
    ),
    COVMATCH: Table("Students of CovMatch's preset", _RECALLS),
    HELD_OUT: Table(
        "Held-out prompts, drawn by both generators from the same noise",
        {"alignment": "alignment ↑", "similarity": "similarity ↓", "recall": "recall ↑"},
        4,
    ),
    VLCP: Table("Classifiers of VLCP's preset", {"top-1": "top-1", "top-5": "top-5"}),
}
METRICS = {EDGE: "mean_recall", COVMATCH: "mean_recall", VLCP: "top-1"}
"""The metric that decides a claim on a table that names no other."""


@dataclass(frozen=True)
class Claim:
    """A claim and the two sets whose difference decides it."""

    text: str
    table: str
    ours: str
    theirs: str
    bar: Bar = "above"
    metric: str = ""
    """Default: that of `METRICS`."""
    lower: bool = False
    """Whether ours should be the lower one."""

    def decided(self, worlds: Sequence[Figures]) -> Paired:
        """The difference in favour of the claim."""
        ours, theirs = (
            [world[self.table][name][self.metric or METRICS[self.table]] for world in worlds]
            for name in (self.ours, self.theirs)
        )
        return Paired.of(theirs, ours) if self.lower else Paired.of(ours, theirs)


def _above(subject: str, table: str, ours: str, rivals: Mapping[str, str], verb: str = "is") -> list[Claim]:
    return [Claim(f"{subject} {verb} above {said}", table, ours, rival) for rival, said in rivals.items()]


_REAL_RIVALS = {"random": "random real pairs", "herding": "herding", "k-center": "k-center"}
CLAIMS = (
    *_above("EDGE", EDGE, BASE, _REAL_RIVALS),
    Claim("EDGE is level with clip-score or better", EDGE, BASE, "clip-score", bar="not below"),
    Claim("fine-tuning raises alignment", HELD_OUT, "tuned", "untuned", metric="alignment"),
    Claim("fine-tuning lowers similarity", HELD_OUT, "tuned", "untuned", metric="similarity", lower=True),
    Claim("fine-tuning does not cost recall", HELD_OUT, "tuned", "untuned", metric="recall", bar="not below"),
    Claim("fine-tuning does not cost students' recall", EDGE, BASE, "edge-100x1-untuned", bar="not below"),
    *_above("two captions an image", EDGE, "edge-50x2", {BASE: "one", "edge-20x5": "five"}, "are"),
    *_above(
        "all losses",
        EDGE,
        BASE,
        {"edge-100x1-contrastive": "L_C alone", "edge-100x1-diversity": "L_D alone"},
        "are",
    ),
    *_above(
        "selection",
        EDGE,
        BASE,
        {"edge-100x1-unselected": "none", "edge-100x1-moments": "selection by moments alone"},
    ),
    *_above("EDGE without selection", EDGE, "edge-100x1-unselected", _REAL_RIVALS),
    *_above("EDGE refined", EDGE, "edge-refined", {BASE: "EDGE", "clip-score": "clip-score"}),
    *_above("CovMatch", COVMATCH, "covmatch", _REAL_RIVALS | {"clip-score": "clip-score"}),
    *_above("CovMatch from random pairs", COVMATCH, "covmatch-random", _REAL_RIVALS),
    *_above("CovMatch on batches of all pairs", COVMATCH, "covmatch-batches", _REAL_RIVALS),
    *(
        Claim(f"CovMatch from EDGE is above {said}", table, "covmatch-edge", rival)
        for table in (EDGE, COVMATCH)
        for rival, said in (("covmatch-random", "CovMatch from random pairs"), (BASE, "EDGE"))
    ),
    *_above("VLCP", VLCP, "both", {"random": "random real images", "herding": "herding"}),
    *_above(
        "both prototypes",
        VLCP,
        "both",
        {
            "image-only": "image prototypes alone",
            "text-only": "text prototypes alone",
            "names-tuned": "class names, tuned",
            "names-as-is": "class names, generator as it is",
        },
        "are",
    ),
)


def decided_claims(worlds: Sequence[Figures]) -> list[dict[str, Any]]:
    """The claims on the tables that were measured, as JSON; an interval of one world is null."""
    found = []
    for claim in CLAIMS:
        if claim.table in worlds[0]:
            difference = claim.decided(worlds)
            interval = [difference.low, difference.high] if isfinite(difference.low) else None
            found.append(
                {
                    "claim": claim.text,
                    "table": claim.table,
                    "ours": claim.ours,
                    "theirs": claim.theirs,
                    "metric": claim.metric or METRICS[claim.table],
                    "in_favour": difference.mean,
                    "interval": interval,
                    "verdict": difference.verdict(claim.bar),
                }
            )
    return found


def markdown(figures: Mapping[int, Figures]) -> str:
    """All tables of the worlds by seed, and what they say of the claims."""
    worlds = list(figures.values())
    parts = [_about(list(figures))]
    for name, table in TABLES.items():
        if name in worlds[0]:
            parts += [f"*{table.title}.*", _set_table([world[name] for world in worlds], table)]
    rows = [["claim", "metric", "students", "in its favour by", "95 % interval", "verdict"]]
    for one in decided_claims(worlds):
        digits = TABLES[one["table"]].digits
        low, high = one["interval"] or (-float("inf"), float("inf"))
        metric = TABLES[one["table"]].columns[one["metric"]].rstrip(" ↑↓")
        students = "" if one["table"] == HELD_OUT else one["table"]
        rows.append(
            [
                one["claim"],
                metric,
                students,
                _signed(one["in_favour"], digits),
                _interval(low, high, digits),
                one["verdict"],
            ]
        )
    return "\n\n".join([*parts, "*The claims.*", _rows(rows)])


@dataclass(frozen=True)
class Noise:
    """A world by how noisy it is."""

    wrong: float
    """Share of wrong captions."""
    cluttered: bool
    """With the marks, bars, light and grain that no caption mentions, or without."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"wrong{self.wrong:g}-{'cluttered' if self.cluttered else 'plain'}"


def noise_markdown(figures: Mapping[Noise, Mapping[int, Figures]]) -> str:
    """One table over noise, and from which noise on EDGE passes its rivals."""
    rivals = ("random", "clip-score")
    rows = [
        ["clutter", "wrong captions", *(LABELS[name] for name in (BASE, *rivals))]
        + [f"EDGE − {name}" for name in rivals]
    ]
    differences: dict[tuple[bool, str], dict[float, Paired]] = {}
    for noise in sorted(figures, key=lambda noise: (noise.cluttered, noise.wrong)):
        worlds = [world[EDGE] for world in figures[noise].values()]
        scores = {name: [world[name]["mean_recall"] for world in worlds] for name in (BASE, *rivals)}
        row = ["on" if noise.cluttered else "off", f"{100 * noise.wrong:g} %"]
        row += [_spread(values, 1) for values in scores.values()]
        for rival in rivals:
            found = Paired.of(scores[BASE], scores[rival])
            differences.setdefault((noise.cluttered, rival), {})[noise.wrong] = found
            row.append(f"{_signed(found.mean, 1)} ({_interval(found.low, found.high, 1)})")
        rows.append(row)
    told = [_passes(cluttered, rival, found) for (cluttered, rival), found in differences.items()]
    seeds = list(next(iter(figures.values())))
    return "\n\n".join([_about(seeds), _rows(rows), " ".join(told)])


def demo_markdown(figures: Mapping[int, Figures]) -> str:
    """Mean recalls world by world, and in how many of them EDGE is above each other set."""
    scores = {seed: world[EDGE] for seed, world in figures.items()}
    names = list(next(iter(scores.values())))
    rows = [["world", *(LABELS.get(name, name) for name in names)]]
    for seed, sets in scores.items():
        rows.append([str(seed), *(f"{sets[name]['mean_recall']:.1f}" for name in names)])
    means = {name: [sets[name]["mean_recall"] for sets in scores.values()] for name in names}
    rows.append(["mean", *(_spread(means[name], 1) for name in names)])
    above = [
        ""
        if name == BASE
        else str(sum(ours > theirs for ours, theirs in zip(means[BASE], means[name], strict=True)))
        for name in names
    ]
    rows.append([f"EDGE is above, worlds of {len(scores)}", *above])
    return "\n\n".join([_about(list(scores)), _rows(rows)])


def _passes(cluttered: bool, rival: str, differences: Mapping[float, Paired]) -> str:
    """A sentence that names the noise at which EDGE passes a rival."""
    rates = list(differences)
    ahead, shown = first_above(list(differences.values()))
    where = f"With clutter {'on' if cluttered else 'off'}, EDGE"
    if ahead is None:
        return f"{where} does not pass {rival} up to {100 * rates[-1]:g} % wrong captions."
    sure = "not shown at the last rate" if shown is None else f"shown from {100 * rates[shown]:g} % on"
    return f"{where} passes {rival} at {100 * rates[ahead]:g} % wrong captions ({sure})."


def _about(seeds: Sequence[int]) -> str:
    tuned = [seed for seed in seeds if seed < 101]
    warning = (
        f" **No result: settings may have been tuned on the worlds {', '.join(map(str, tuned))}.**"
        if tuned
        else ""
    )
    return (
        f"Worlds of the seeds {', '.join(map(str, seeds))}. Mean ± standard deviation over the worlds; intervals are "
        f"those of Student's t for differences that are paired by world.{warning}"
    )


def _set_table(worlds: Sequence[Mapping[str, Mapping[str, float]]], table: Table) -> str:
    rows = [["set", *table.columns.values()]]
    for name in worlds[0]:
        scores = [
            _spread([world[name][metric] for world in worlds], table.digits) for metric in table.columns
        ]
        rows.append([LABELS.get(name, name), *scores])
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return markdown_table(head, others, words=len(head))


def _spread(values: Sequence[float], digits: int) -> str:
    shown = f"{mean(values):.{digits}f}".replace("-", "−")
    return f"{shown} ± {stdev(values):.{digits}f}" if len(values) > 1 else shown


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _interval(low: float, high: float, digits: int) -> str:
    return f"{_signed(low, digits)} to {_signed(high, digits)}" if isfinite(low) else "unknown"
