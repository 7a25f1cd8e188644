"""The charts of a report's page, by name, each with a description for readers who do not see it."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.report import charts
from mmdd_ray.evaluation.report.panels import is_looked_at, learning_curves, of_other_protocols
from mmdd_ray.evaluation.report.text import label_of, main_scores, set_label, signed
from mmdd_ray.evaluation.report.words import CHANCE, FULL, TASK_TEXTS

AT_ONCE = ("random", FULL)  # sets that take no time


def report_charts(report: Mapping[str, Any]) -> dict[str, charts.Chart]:
    """SVG by name: those that the figures of the report allow."""
    return dict([*_of_scores(report), *_of_trainings(report), *_of_sets(report)])


def _of_scores(report: Mapping[str, Any]) -> Iterator[tuple[str, charts.Chart]]:
    main = main_scores(report)
    scored = {name: score for name, score in main.items() if name != CHANCE}
    if not scored:
        return
    what = TASK_TEXTS[report["task"]]["main"]
    means, stds = ([score[part] for score in scored.values()] for part in ("mean", "std"))
    labels = [set_label(name, report) for name in scored]
    draws = [score.get("draw_means", ()) for score in scored.values()]
    told = ", ".join(f"{label} {mean:.1f} %" for label, mean in zip(labels, means, strict=True))
    yield (
        "scores",
        charts.described(
            charts.bars(labels, means, stds, main[CHANCE]["mean"], what, draws),
            f"Bars of {what}: {told}; chance {main[CHANCE]['mean']:.1f} %",
        ),
    )
    if rows := _differences(report):
        points = "; ".join(
            f"{name} {signed(mean)} from {signed(low)} to {signed(high)}" for name, mean, low, high in rows
        )
        xlabel = f"difference of {what}, percentage points"
        told = f"Differences of {what} in percentage points with 95 % intervals: {points}"
        yield "differences", charts.described(charts.intervals(rows, xlabel), told)
    if report["by_pairs"]:
        parts_of = {
            set_label(name, report): ([one["pairs"] for one in parts], [one["mean"] for one in parts])
            for name, parts in report["by_pairs"].items()
        }
        told = f"Curves of {what} against the number of pairs, of {', '.join(parts_of)}"
        yield "by_pairs", charts.described(charts.curves(parts_of, "pairs", f"{what}, %"), told)
    timed = {
        set_label(name, report): (seconds, main[name]["mean"], main[name]["std"])
        for name, seconds in report["seconds_of_sets"].items()
        if name in main
    }
    ours = next(iter(main))
    if ours in report["seconds_of_sets"] and (
        untimed := {set_label(name, report): main[name]["mean"] for name in AT_ONCE if name in main}
    ):
        told = ", ".join(
            f"{name} {mean:.1f} % in {seconds:.0f} s" for name, (seconds, mean, _) in timed.items()
        )
        yield (
            "by_seconds",
            charts.described(
                charts.against_seconds(timed, untimed, f"{what}, %"),
                f"{what} against the time to make a set: {told}; without any: {', '.join(untimed)}",
            ),
        )


def _differences(report: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """Set − other, mean, low and high of the deciding metric, where it has an interval."""
    metric = MAIN_METRIC[report["task"]]
    return [
        (
            f"{label_of(ours, report)} − {label_of(theirs, report)}",
            *(found["metrics"][metric][part] for part in ("mean", "low", "high")),
        )
        for ours, others in report["differences"].items()
        for theirs, found in others.items()
        if found["metrics"][metric]["low"] is not None
    ]


def _of_trainings(report: Mapping[str, Any]) -> Iterator[tuple[str, charts.Chart]]:
    for part in ("losses", "refinement"):
        terms = {name: values for name, values in report[part].items() if name != "step"}
        if terms:
            told = f"Curves over {len(report[part]['step']):,} steps of {', '.join(terms)}"
            yield part, charts.described(charts.panels(report[part]["step"], terms), told)
    if curves := {set_label(name, report): one["loss_curve"] for name, one in report["sets"].items()}:
        loss = TASK_TEXTS[report["task"]]["loss"]
        told = f"Curves of the {loss} of students during their training on {', '.join(curves)}"
        yield "students", charts.described(charts.lines(curves, "training done, %", loss), told)
    for number, panel in enumerate([report, *of_other_protocols(report)] if report["scores"] else []):
        if is_looked_at(panel):
            what = f"{TASK_TEXTS[report['task']]['main']}, %"
            points = {
                set_label(name, report): curve
                for name, curve in learning_curves(panel, MAIN_METRIC[report["task"]]).items()
            }
            told = f"Learning curves of students of {', '.join(points)}"
            yield f"learning-{number}", charts.described(charts.curves(points, "steps", what), told)


def _of_sets(report: Mapping[str, Any]) -> Iterator[tuple[str, charts.Chart]]:
    if not report["audit"]:
        return
    if spectrum := report["audit"]["spectrum"]:  # a set of sentence vectors has none
        ranks = [f"{spectrum[part]['effective_rank']:.1f}" for part in ("set", "real")]
        yield (
            "spectrum",
            charts.described(
                charts.spectra({"set": spectrum["set"]["values"], "real data": spectrum["real"]["values"]}),
                f"Singular values of the set and of the real data; effective ranks {ranks[0]} and {ranks[1]}",
            ),
        )
    if found := report["audit"].get("map"):
        axes = [
            f"component {number} ({share:g} % of the variance)"
            for number, share in enumerate(found["explained"], 1)
        ]
        yield (
            "map",
            charts.described(
                charts.scatter({"real images": found["real"], "set": found["set"]}, *axes),
                f"Map of {len(found['real']):,} real images and {len(found['set']):,} images of the set by their CLIP "
                "features",
            ),
        )
