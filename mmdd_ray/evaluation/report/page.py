"""The page ``report.html``: one file that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmdd_ray.data.inventory import about_source
from mmdd_ray.distilled.contact_sheet import png_bytes, spread, thumbnail
from mmdd_ray.distilled.read import read_distilled
from mmdd_ray.distilled.sample import CONTACT_SHEET, FOLDER
from mmdd_ray.evaluation.held_out import about_held_out
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report import charts
from mmdd_ray.evaluation.report.beside import Beside
from mmdd_ray.evaluation.report.layout import page_environment
from mmdd_ray.evaluation.report.panels import (
    about_protocols,
    across_students,
    is_looked_at,
    learning_curves,
    of_other_protocols,
    protocol_title,
)
from mmdd_ray.evaluation.report.text import (
    about_full,
    about_given,
    best_scores,
    difference_rows,
    headline,
    label_of,
    main_scores,
    metric_label,
    most_draws,
    set_label,
    tiles,
    verdict,
)
from mmdd_ray.evaluation.report.words import (
    AUDIT_STAGE,
    CHANCE,
    COPIES,
    REPORT_HTML,
    REPORT_JSON,
    TASK_TEXTS,
    TEXTS,
)
from mmdd_ray.storage.store import Store

EXAMPLES = 12


def write_report(report: Mapping[str, Any], run: Store, beside: Sequence[Beside] = ()) -> None:
    """Writes ``report.json`` and ``report.html`` into the run directory.

    The page shows images of the run's distilled set, if there is one, and the pairs ``beside`` each other, which
    ``agreement`` sums up; ``ValueError`` when the set is damaged.
    """
    run.write_json(REPORT_JSON, report)
    run.write_bytes(REPORT_HTML, report_html(report, run, beside).encode())


def report_html(report: Mapping[str, Any], run: Store, beside: Sequence[Beside] = ()) -> str:
    """The page, with everything it shows inside."""
    environment = page_environment()
    environment.filters["label"] = lambda name: label_of(name, report)
    environment.filters["set_label"] = lambda name: set_label(name, report)
    distilled = run.child(FOLDER)
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report),
        headline=headline(report),
        tiles=tiles(report),
        metrics=METRICS.get(report["task"], ()),
        metric_label=metric_label,
        extra_panels=[
            (panel, [*panel["extra_scores"][CHANCE]], best_scores(panel["extra_scores"]))
            for panel in (report, *of_other_protocols(report))
            if panel["extra_scores"]
        ],
        task=TASK_TEXTS.get(report["task"]),
        texts=TEXTS | report["words"],
        best=best_scores(report["scores"]),
        draws=most_draws(report),
        about_full=about_full(report),
        about_given=about_given(report),
        differences_of=lambda panel: difference_rows(panel, report),
        other_panels=[(panel, best_scores(panel["scores"])) for panel in of_other_protocols(report)],
        across=across_students(report),
        protocols=about_protocols(report),
        protocol_title=protocol_title,
        main_metric=MAIN_METRIC.get(report["task"], ""),
        has_plan=any(stage["planned_seconds"] is not None for stage in report["stages"].values()),
        about_source=about_source(report["source"]) if report["source"] else [],
        about_held_out=about_held_out(report["held_out"]),
        charts={name: Markup(svg) for name, svg in report_charts(report).items()},
        examples=[
            (sample, _data_uri(png_bytes(thumbnail(sample.image))))
            for sample in (spread(read_distilled(distilled), EXAMPLES) if report["distilled"] else [])
        ],
        beside=[(one, one.real and _data_uri(one.real), _data_uri(one.drawn)) for one in beside],
        copies_sheet=_data_uri(run.read_bytes(f"{AUDIT_STAGE}/{COPIES}")) if report["audit"] else "",
        contact_sheet=_data_uri(distilled.read_bytes(CONTACT_SHEET)) if report["distilled"] else "",
    )


def report_charts(report: Mapping[str, Any]) -> dict[str, charts.Chart]:
    """The charts of the page, by name."""
    found = {}
    main = main_scores(report)
    if scored := {name: score for name, score in main.items() if name != CHANCE}:
        means, stds = ([score[part] for score in scored.values()] for part in ("mean", "std"))
        labels = [set_label(name, report) for name in scored]
        what = TASK_TEXTS[report["task"]]["main"]
        draws = [score.get("draw_means", ()) for score in scored.values()]
        found["scores"] = charts.bars(labels, means, stds, main[CHANCE]["mean"], what, draws)
    for part in ("losses", "refinement"):
        terms = {name: values for name, values in report[part].items() if name != "step"}
        if terms:
            found[part] = charts.panels(report[part]["step"], terms)
    if curves := {set_label(name, report): one["loss_curve"] for name, one in report["sets"].items()}:
        found["students"] = charts.lines(curves, "training done, %", TASK_TEXTS[report["task"]]["loss"])
    for number, panel in enumerate([report, *of_other_protocols(report)] if main else []):
        if is_looked_at(panel):
            task = TASK_TEXTS[report["task"]]
            curves = learning_curves(panel, MAIN_METRIC[report["task"]])
            found[f"learning-{number}"] = charts.curves(
                {set_label(name, report): curve for name, curve in curves.items()},
                "steps",
                f"{task['main']}, %",
            )
    if report["by_pairs"]:
        points = {
            set_label(name, report): ([one["pairs"] for one in parts], [one["mean"] for one in parts])
            for name, parts in report["by_pairs"].items()
        }
        found["by_pairs"] = charts.curves(points, "pairs", f"{TASK_TEXTS[report['task']]['main']}, %")
    if report["audit"]:
        values = {name: one["values"] for name, one in report["audit"]["spectrum"].items()}
        found["spectrum"] = charts.spectra({"distilled set": values["set"], "real data": values["real"]})
    return found


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
