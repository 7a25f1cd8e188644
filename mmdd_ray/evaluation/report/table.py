"""The table of a report for a terminal."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmdd_ray.data.inventory import about_source
from mmdd_ray.evaluation.held_out import about_held_out
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.layout import TERMINAL_COLUMNS, bytes_text, filled, table_lines
from mmdd_ray.evaluation.report.panels import across_students, of_other_protocols, protocol_title
from mmdd_ray.evaluation.report.text import (
    about_given,
    about_looks,
    difference_rows,
    duration_text,
    full_is_part,
    has_one_student,
    label_of,
    mean_std,
    metric_label,
    most_draws,
    set_label,
    verdict,
)
from mmdd_ray.evaluation.report.words import EXTRA_TITLE, FULL, TASK_TEXTS


def summary_table(report: Mapping[str, Any]) -> str:
    """The outcome as text for a terminal, and where the files are."""
    distilled = report["distilled"]
    blocks = []
    if message := verdict(report):
        wrapped = textwrap.fill(message, TERMINAL_COLUMNS, break_on_hyphens=False)
        blocks += [wrapped.replace("\u00a0", " "), ""]
    if report["scores"]:
        blocks += _of_panel(report, report)
        for panel in of_other_protocols(report):
            blocks += _of_panel(panel, report)
        for across in across_students(report):
            blocks += _of_students(across, report)
        for name, parts in report["by_pairs"].items():
            points = ", ".join(f"{one['mean']:.1f} of {one['pairs']:,}" for one in parts)
            blocks.append(f"{'by pairs':<13}{set_label(name, report)}: {points}")
    blocks += [_noted(note) for note in about_given(report)]
    if full_is_part(report):
        blocks.append(f"{FULL:<13}{set_label(FULL, report)}, drawn at random")
    if distilled:
        blocks.append(
            f"{'set':<13}{distilled['images']:,} images, {distilled['pairs']:,} pairs, "
            f"sha256 {distilled['checksum'][:16]}…"
        )
    if report["source"]:
        blocks += [f"{'source':<13}{line}" for line in about_source(report["source"])[:-1]]
    blocks += [_noted(line, "held out") for line in about_held_out(report["held_out"])]
    for outcome in report["outcome"].values():
        if outcome["reasons"]:
            blocks += [_noted(outcome["title"] + ":"), *(_noted(one) for one in outcome["reasons"])]
    resumed = [name for name, stage in report["stages"].items() if stage["resumed"]]
    footnote = f" (only the last attempt of {', '.join(resumed)})" if resumed else ""
    blocks.append(f"{'time':<13}{duration_text(report['seconds'])}{footnote}")
    blocks += [f"{name:<13}{path}" for name, path in report["files"].items()]
    return "\n".join(blocks)


def _score_rows(scores: Mapping[str, Any], metrics: Iterable[str]) -> list[list[str]]:
    """Cells of a table with a row for each metric and a column for each set."""
    rows = [[metric_label(metric), *[mean_std(one[metric]) for one in scores.values()]] for metric in metrics]
    return [["", *scores], *rows]


def _difference_lines(rows: Sequence[tuple[str, str, str, str]], metric: str) -> list[str]:
    """The differences, in a block for each set."""
    widths = [max(len(row[column]) for row in rows) for column in (1, 2)]
    lines: list[str] = []
    for place, (ours, theirs, interval, over) in enumerate(rows):
        if place == 0 or rows[place - 1][0] != ours:
            lines.append(f"{metric} of {ours}, difference to … (95 % interval)")
        lines.append(f"  {theirs:<{widths[0]}}  {interval:<{widths[1]}}  {over}".rstrip())
    return lines


def _noted(note: str, title: str = "note") -> str:
    return textwrap.fill(
        note,
        TERMINAL_COLUMNS,
        initial_indent=f"{title:<13}",
        subsequent_indent=" " * 13,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _of_panel(panel: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """The table of one protocol, with the run's own students."""
    scores, sets, task = panel["scores"], panel["sets"], report["task"]
    unit, main = TASK_TEXTS[task]["unit"], MAIN_METRIC[task]
    rows = _score_rows(scores, METRICS[task])
    if (draws := most_draws(report)) > 1:
        between = [one[main].get("std_between_draws") for one in scores.values()]
        of_draws = ["  of draws", *["" if std is None else f"± {std:.1f}" for std in between]]
        rows.insert(2 + METRICS[task].index(main), of_draws)
    if best := panel["best_looks"]:
        cells = [mean_std(best[name][main]) if name in best else "" for name in scores]
        rows += [["best look", *cells]]
    rows += [[unit, *[f"{sets[name][unit]:,}" if name in sets else "" for name in scores]]]
    rows += [["size", *[bytes_text(sets[name]["bytes"]) if name in sets else "" for name in scores]]]
    what = "recall" if task == "retrieval" else "accuracy"
    over = "of one student" if has_one_student(scores) else "mean ± standard deviation over students"
    notes = [f"{what} in percent, {over}"]
    if protocol := panel["protocol"]:
        notes.insert(0, f"{protocol_title(protocol)}: {panel['models']}")
    if draws > 1:
        notes.append(f"of draws: standard deviation between the means of {draws} draws")
    if best:
        notes.append(about_looks(main))
    if protocol:
        notes.append(filled(protocol["chosen"]))
    lines = ["\n".join(notes) + "\n", *table_lines(rows)]
    if differences := difference_rows(panel, report):
        lines += _difference_lines(differences, TASK_TEXTS[task]["main"])
        once = ["  every set was made once: intervals hold the luck of students, not of making it"]
        lines += [*(once if draws == 1 else []), ""]
    for name, told in panel["notes"].items():
        lines += [_noted(f"{label_of(name, report)}: {one}") for one in told]
    if extra := panel["extra_scores"]:
        lines += [
            f"{EXTRA_TITLE}: accuracy in percent\n",
            *table_lines(_score_rows(extra, next(iter(extra.values())))),
        ]
    return lines


def _of_students(across: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """The table of the deciding metric with several kinds of students."""
    columns = [f"({number})" for number in range(1, len(across["models"]) + 1)]
    rows = [["", *columns, "drop"]]
    for name, row in across["rows"].items():
        drop = "" if row["drop"] is None else f"{row['drop']:.1f}"
        rows.append([set_label(name, report), *map(mean_std, row["scores"]), drop])
    main = TASK_TEXTS[report["task"]]["main"]
    title = f"{protocol_title(across['protocol'])}: {main} with other students"
    named = [f"{column} {models}" for column, models in zip(columns, across["models"], strict=True)]
    notes = [
        filled(across["protocol"]["chosen"]),
        "drop: how far the mean of the others is below (1), in points",
    ]
    return ["\n".join([title, *named, *notes]) + "\n", *table_lines(rows)]
