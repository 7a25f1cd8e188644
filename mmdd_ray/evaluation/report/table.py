"""The table of a report for a terminal."""

import textwrap
from collections.abc import Mapping
from typing import Any

from mmdd_ray.data.inventory import about_source
from mmdd_ray.evaluation.held_out import about_held_out
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.layout import TERMINAL_COLUMNS, fitting
from mmdd_ray.evaluation.report.text import (
    duration_text,
    full_is_part,
    main_scores,
    mean_std,
    metric_label,
    most_draws,
    set_label,
    verdict,
)
from mmdd_ray.evaluation.report.words import FULL, TASK_TEXTS


def summary_table(report: Mapping[str, Any]) -> str:
    """The outcome as text for a terminal, and where the files are."""
    scores, sets, distilled = report["scores"], report["sets"], report["distilled"]
    blocks = []
    if message := verdict(report):
        wrapped = textwrap.fill(message, TERMINAL_COLUMNS, break_on_hyphens=False)
        blocks += [wrapped.replace("\u00a0", " "), ""]
    if scores:
        unit = TASK_TEXTS[report["task"]]["unit"]
        rows = [["", *scores]]
        rows += [
            [metric_label(metric), *[mean_std(one[metric]) for one in scores.values()]]
            for metric in METRICS[report["task"]]
        ]
        if (draws := most_draws(report)) > 1:
            between = [one.get("std_between_draws") for one in main_scores(report).values()]
            of_draws = ["  of draws", *["" if std is None else f"± {std:.1f}" for std in between]]
            rows.insert(2 + METRICS[report["task"]].index(MAIN_METRIC[report["task"]]), of_draws)
        rows += [[unit, *[f"{sets[name][unit]:,}" if name in sets else "" for name in scores]]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        what = "recall" if report["task"] == "retrieval" else "accuracy"
        note = f"of draws: standard deviation between the means of {draws} draws\n" if draws > 1 else ""
        blocks.append(f"{what} in percent, mean ± standard deviation over students\n{note}")
        for places in fitting(widths):
            for row in rows:
                cells = [f"{row[place]:>{widths[place]}}" for place in places]
                blocks.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
            blocks.append("")
    if full_is_part(report):
        blocks.append(f"{FULL:<13}{set_label(FULL, report)}, drawn at random")
    if distilled:
        blocks.append(
            f"{'set':<13}{distilled['images']:,} images, {distilled['pairs']:,} pairs, "
            f"sha256 {distilled['checksum'][:16]}…"
        )
    if report["source"]:
        blocks += [f"{'source':<13}{line}" for line in about_source(report["source"])[:-1]]
    blocks += [f"{'held out':<13}{line}" for line in about_held_out(report["held_out"])]
    resumed = [name for name, stage in report["stages"].items() if stage["resumed"]]
    footnote = f" (only the last attempt of {', '.join(resumed)})" if resumed else ""
    blocks.append(f"{'time':<13}{duration_text(report['seconds'])}{footnote}")
    blocks += [f"{name:<13}{path}" for name, path in report["files"].items()]
    return "\n".join(blocks)
