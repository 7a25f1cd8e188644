"""A report in words: verdict, headline, tiles and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.paired import ALL_EQUAL, ALL_ZERO, LEAST, TOO_FEW, Paired
from mmdd_ray.evaluation.report.differences import SAME_SET, over_words
from mmdd_ray.evaluation.report.panels import of_other_protocols
from mmdd_ray.evaluation.report.standing import (
    EQUAL,
    HIGHER,
    LEVEL,
    LOWER,
    SAME,
    about_spread,
    sentence,
    standing,
)
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL, IN_SENTENCES, LABELS, TASK_TEXTS

LACKS = {
    TOO_FEW: "too few",
    ALL_ZERO: "all differences are 0",
    ALL_EQUAL: "all differences are equal",
    SAME_SET: "the same set",
}
"""Why there is no interval, in a cell of a table."""
_DOUBTS = {
    SAME: "the same set",
    LEVEL: "not distinguishable",
    **dict.fromkeys((HIGHER, EQUAL, LOWER), "spread not known"),
}
"""The words of a tile beside a ratio that is no finding, by the standing of its two sets."""
NEAR_CHANCE = 2.0  # times the odds of chance: below it students have hardly learnt


def verdict(report: Mapping[str, Any]) -> str:
    """How each distilled set compares with the baselines of its size under each protocol, in words; nothing without
    both."""
    message, panels = [], [report, *of_other_protocols(report)]
    for panel in panels:
        main = {name: one[MAIN_METRIC[report["task"]]] for name, one in panel["scores"].items()}
        under = f"Under {panel['protocol']['name']}, " if len(panels) > 1 else ""
        for ours, standings in panel["standings"].items():
            unit = TASK_TEXTS[report["task"]]["unit"]
            names = {"random": f"random real {unit}", "prompts": f"{unit} drawn from class names"}
            in_words = {
                f"{names.get(name, name)} ({main[name]['mean']:.1f}\u00a0%)": word
                for name, word in standings.items()
            }
            doubt = _doubt(main, ours, standings)
            message.append(sentence(f"{under}{label_of(ours, report)}", in_words, doubt))
    return " ".join(message)


def _doubt(main: Mapping[str, Any], ours: str, standings: Mapping[str, str]) -> str:
    """Why nothing is known of the spread, where a standing is that of the means alone."""
    unknown = (name for name, word in standings.items() if word in (HIGHER, LOWER, EQUAL))
    return next(filter(None, (about_spread(main[ours], main[name]) for name in unknown)), "")


def headline(report: Mapping[str, Any]) -> str:
    """The figures of the outcome in one sentence."""
    distilled, sets, given = report["distilled"], report["sets"], report["given"]
    clauses = []
    for name, main in main_scores(report).items():
        task = TASK_TEXTS[report["task"]]
        count = f"{sets[name][task['unit']]:,}" if name in sets else ""
        score = f"{mean_std(main)} %".replace(" ", "\u00a0")  # never broken over lines
        if "draw_means" in main:
            score += f" (over {len(main['draw_means'])} draws ±\u00a0{main['std_between_draws']:.1f})"
        if name == FULL:
            full = set_label(FULL, report) if full_is_part(report) else "the full data"
            clauses.append(f"{full} ({count} {task['unit']}) {score}")
        elif name == "random":
            clauses.append(f"{count} random real {task['unit']} {score}")
        elif name not in (*BASELINES, CHANCE):
            is_ours = given.get(name, {}).get("kind", "distilled") == "distilled"
            made = "synthetic " if is_ours else ""  # others may be anything, real pairs, too
            clauses.append(
                f"{count} {made}{task['unit']} of {label_of(name, report)} reach {score} {task['main']}"
            )
    if clauses:
        return "; ".join(clauses) + "."
    if distilled:
        return (
            f"{distilled['images']:,} synthetic images with {distilled['pairs']:,} captions, not evaluated."
        )
    return "No distilled set and no evaluation."


@dataclass(frozen=True)
class Tile:
    """A figure that matters most."""

    value: str
    what: str
    doubt: str = ""
    """Why it is no finding; it is shown muted then."""


def tiles(report: Mapping[str, Any]) -> list[Tile]:
    """The few figures that matter most."""
    main = main_scores(report)
    mean = {name: score["mean"] for name, score in main.items()}
    tiles = []
    ours = next((name for name in mean if name not in (*BASELINES, CHANCE)), None)
    if ours is not None:
        task = TASK_TEXTS[report["task"]]
        short = task["main"].split()[-1]
        tiles.append(Tile(f"{mean[ours]:.1f} %", f"{task['main']} of {label_of(ours, report)}"))
        if mean.get("random"):
            stands = report["standings"].get(ours, {}).get("random", "")
            what = f"the {short} of random {task['unit']}"
            tiles.append(Tile(f"{mean[ours] / mean['random']:.2f} ×", what, _DOUBTS.get(stands, "")))
        if mean.get(FULL):
            full = set_label(FULL, report) if full_is_part(report) else "the full data"
            what, stands = f"of the {short} of {full}", standing(main[ours], main[FULL])
            tiles.append(Tile(f"{100 * mean[ours] / mean[FULL]:.0f} %", what, _DOUBTS.get(stands, "")))
    if distilled := report["distilled"]:
        if report["task"] == "classification":
            tiles.append(Tile(f"{distilled['images']:,}", "synthetic images"))
        else:
            tiles.append(
                Tile(f"{distilled['pairs']:,}", f"pairs on {distilled['images']:,} synthetic images")
            )
    return [*tiles, Tile(duration_text(report["seconds"]), "in all stages")]


def about_given(report: Mapping[str, Any]) -> list[str]:
    """What people should know of the sets that were named, a sentence each; first, that they differ in size."""
    unit = TASK_TEXTS[report["task"]]["unit"] if report["task"] else ""
    counts = {name: report["sets"][name][unit] for name in report["given"]}
    lines = []
    if len(set(counts.values())) > 1:
        first, *others = (f"{label_of(name, report)} {count:,}" for name, count in counts.items())
        baselines = " like the baselines" if report["standings"] else ""
        lines.append(
            f"the sets differ in size, so they are no fair comparison: {first} {unit}{baselines}, "
            f"{', '.join(others)}"
        )
    return lines + [
        f"{label_of(name, report)}: {note}"
        for name, about in report["given"].items()
        for note in about["notes"]
    ]


def difference_rows(panel: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Differences of the deciding metric: set, other set, mean with its interval, and over what."""
    metric = MAIN_METRIC[report["task"]] if report["task"] else ""
    rows = []
    for ours, others in panel["differences"].items():
        for theirs, found in others.items():
            names = (label_of(ours, report), label_of(theirs, report))
            score = found["metrics"][metric]
            over = f"{found['count']} {over_words(found)}"
            if score.get("lack") == SAME_SET:
                rows.append((*names, about_lack(score), ""))
            else:
                rows.append((*names, _with_interval(score), over))
    return rows


def _with_interval(score: Mapping[str, Any]) -> str:
    """``+1.0 [−0.5, +2.5]``, or ``+1.0 [–, too few]``."""
    if lack := about_lack(score):
        return f"{signed(score['mean'])} [–, {lack}]"
    return f"{signed(score['mean'])} [{signed(score['low'])}, {signed(score['high'])}]"


def about_lack(score: Mapping[str, Any]) -> str:
    """Why a difference has no interval; empty where it has one."""
    return LACKS[score["lack"]] if "lack" in score else ""


def main_scores(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The deciding metric of each set, and of chance."""
    return {name: one[MAIN_METRIC[report["task"]]] for name, one in report["scores"].items()}


def most_draws(report: Mapping[str, Any]) -> int:
    """How often the sets were drawn that depend on a seed."""
    return max((len(one.get("draw_means", (0,))) for one in main_scores(report).values()), default=1)


def best_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """For each metric the best mean of the small sets, which the table prints in bold.

    A metric is left out where bold would say nothing: all sets show the same figure, or the best is at chance. All are
    left out where the sets have different numbers of students, since a mean over fewer is luckier.
    """
    small = {name: metrics for name, metrics in scores.items() if name not in (FULL, CHANCE)}
    if len({students_of(metrics) for metrics in small.values()}) != 1:
        return {}
    best = {}
    for metric in next(iter(small.values())):
        own = [metrics[metric] for metrics in small.values()]
        first = max(own, key=lambda score: score["mean"])
        is_one = len({f"{score['mean']:.1f}" for score in own}) == 1
        if not is_one and not _is_at_chance(first, scores[CHANCE][metric]["mean"]):
            best[metric] = first["mean"]
    return best


def students_of(metrics: Mapping[str, Any]) -> int:
    """How many students each draw of a set had."""
    score = next(iter(metrics.values()))
    return len(score["runs"]) // len(score.get("draw_means", (0,)))


def has_one_student(scores: Mapping[str, Any]) -> bool:
    """Whether all sets have a single figure, so that no deviation is shown."""
    return all(len(next(iter(one.values()))["runs"]) == 1 for one in scores.values())


def is_near_chance(figure: float, chance: float) -> bool:
    """Whether students of this figure, in percent, have hardly learnt: the odds of a hit are below twice those of
    chance. Twice the chance itself would be 100 % of two classes."""
    return figure * (100 - chance) < NEAR_CHANCE * chance * (100 - figure)


def _is_at_chance(score: Mapping[str, Any], chance: float) -> bool:
    """Whether the 95 % interval of a mean reaches down to chance; of fewer than three figures, whether it is near."""
    figures_S = score.get("draw_means", score["runs"])
    if len(figures_S) < LEAST:
        return is_near_chance(score["mean"], chance)
    return Paired.of(figures_S, [chance] * len(figures_S)).low <= 0


def mean_std(score: Mapping[str, Any]) -> str:
    """``12.3 ± 0.4``; a single student of each draw has no deviation."""
    several = len(score["runs"]) > len(score.get("draw_means", (0,)))
    return f"{score['mean']:.1f} ± {score['std']:.1f}" if several else f"{score['mean']:.1f}"


def mean_stds(score: Mapping[str, Any]) -> str:
    """``12.3 ± 0.4 ± 0.8``: the second deviation is that between draws, where there are several."""
    if "draw_means" not in score:
        return mean_std(score)
    shown = mean_std(score)
    return f"{shown if '±' in shown else f'{shown} ± –'} ± {score['std_between_draws']:.1f}"


def signed(value: float) -> str:
    """``+1.2`` or ``−0.3``, with the sign that typographers use."""
    return f"{value:+.1f}".replace("-", "−")


def about_looks(metric: str) -> str:
    """The row or column of best looks in a terminal's table."""
    return f"best look: {metric_label(metric)} at each student's best test, chosen on the test data"


def metric_label(name: str) -> str:
    return (
        name.replace("_", " ")
        .replace("/", " ")
        .replace("ir@", "IR@")
        .replace("tr@", "TR@")
        .replace("top-", "Top-")
    )


def label_of(name: str, report: Mapping[str, Any]) -> str:
    return report["labels"].get(name, LABELS.get(name, name))


def in_sentence(name: str, report: Mapping[str, Any]) -> str:
    """A set as a sentence names it."""
    if name in report["labels"] or name not in IN_SENTENCES:
        return label_of(name, report)
    return IN_SENTENCES[name].format(unit=TASK_TEXTS[report["task"]]["unit"])


def set_label(name: str, report: Mapping[str, Any]) -> str:
    """Like ``label_of``, but all the data is called so only if it is all of them."""
    if name == FULL and full_is_part(report):
        return f"{report['sets'][FULL]['images']:,} of {report['real_images']:,} real images"
    return label_of(name, report)


def full_is_part(report: Mapping[str, Any]) -> bool:
    """Whether "full" is a random part of the data, because evaluation.full_pairs is below their number."""
    sets, real_images = report["sets"], report["real_images"]
    return FULL in sets and real_images is not None and sets[FULL]["images"] < real_images


def about_untimed(report: Mapping[str, Any]) -> str:
    """Which sets a chart against time does not show, and why; empty where it shows all."""
    told = [
        f"{set_label(name, report)} is not shown: its time is not known, because {why}."
        for name, why in report["untimed_sets"].items()
    ]
    return " ".join(told)


def about_full(report: Mapping[str, Any]) -> str:
    """How to read the best and the worst that the table shows."""
    main = main_scores(report)
    small = [score["mean"] for name, score in main.items() if name not in (FULL, CHANCE)]
    if FULL in main and main[FULL]["mean"] < max(small, default=0.0):
        return "With as many steps as the other sets, the real data are no ceiling here; chance is the floor."
    if full_is_part(report):
        return "The real images are a random part of the data, chance is the floor."
    if FULL not in main:
        return "Chance is the floor."
    return "The full data is the ceiling, chance the floor."


def duration_text(seconds: float) -> str:
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
