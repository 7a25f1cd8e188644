"""The page ``report.html``: one file that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from mmdd_ray.data.inventory import about_source
from mmdd_ray.distilled.thumbnails import EXACT_PX, data_uri, jpeg_of
from mmdd_ray.evaluation.held_out import about_held_out
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.beside import Beside
from mmdd_ray.evaluation.report.gallery import gallery
from mmdd_ray.evaluation.report.layout import page_environment
from mmdd_ray.evaluation.report.page_charts import report_charts
from mmdd_ray.evaluation.report.panels import (
    about_protocols,
    across_students,
    of_other_protocols,
    protocol_title,
)
from mmdd_ray.evaluation.report.stages import totals
from mmdd_ray.evaluation.report.text import (
    about_full,
    about_given,
    about_untimed,
    best_scores,
    difference_rows,
    has_one_student,
    headline,
    label_of,
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
    QUALITY_LABELS,
    REPORT_HTML,
    REPORT_JSON,
    TASK_TEXTS,
    TEXTS,
)
from mmdd_ray.storage.store import Store

MAX_SHEET_BYTES = 400_000  # of a picture as it is; a larger one is shown as JPEG


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
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report),
        headline=headline(report),
        tiles=tiles(report),
        outcomes=[one for one in report["outcome"].values() if one["tone"] != "above" or one["reasons"]],
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
        one_student=has_one_student(report["scores"]),
        quality_label=lambda name: QUALITY_LABELS.get(name, name.capitalize()),
        draws=most_draws(report),
        about_full=about_full(report),
        about_untimed=about_untimed(report),
        about_given=about_given(report),
        differences_of=lambda panel: difference_rows(panel, report),
        other_panels=[(panel, best_scores(panel["scores"])) for panel in of_other_protocols(report)],
        across=across_students(report),
        protocols=about_protocols(report),
        protocol_title=protocol_title,
        main_metric=MAIN_METRIC.get(report["task"], ""),
        about_source=about_source(report["source"]) if report["source"] else [],
        about_held_out=about_held_out(report["held_out"]),
        charts={name: Markup(svg) for name, svg in report_charts(report).items()},
        gallery=gallery(run) if report["distilled"] else None,
        exact_px=EXACT_PX,
        total=totals(report["stages"]),
        gpu_hour_price=report["settings"].get("plan", {}).get("gpu_hour_price", 0),
        beside=[(one, one.real and data_uri(one.real), data_uri(one.drawn)) for one in beside],
        copies_sheet=_sheet(run.read_bytes(f"{AUDIT_STAGE}/{COPIES}")) if report["audit"] else "",
    )


def _sheet(png: bytes) -> str:
    return data_uri(png if len(png) <= MAX_SHEET_BYTES else jpeg_of(png))
