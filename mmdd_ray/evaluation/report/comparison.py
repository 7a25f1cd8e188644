"""Runs side by side, for a terminal and as a page; imports neither Ray nor torch."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from markupsafe import Markup

from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report import charts
from mmdd_ray.evaluation.report.differences import SAME_SET
from mmdd_ray.evaluation.report.layout import (
    TERMINAL_COLUMNS,
    bytes_text,
    filled,
    page_environment,
    table_lines,
)
from mmdd_ray.evaluation.report.page_charts import AT_ONCE
from mmdd_ray.evaluation.report.standing import listed
from mmdd_ray.evaluation.report.text import (
    about_lack,
    about_looks,
    best_scores,
    duration_text,
    mean_stds,
    metric_label,
    signed,
)
from mmdd_ray.evaluation.report.words import CHANCE, FULL, LABELS, TASK_TEXTS
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

COMPARISON_JSON, COMPARISON_HTML = "comparison.json", "comparison.html"
HEADINGS = ("pairs", "images", "size", "images seen", "time")


def write_comparison(found: Mapping[str, Any], out: Store) -> list[str]:
    """Writes ``comparison.json`` and ``comparison.html``; gives where they are.

    Args:
        found: What ``beside_runs.compare_runs`` gives.
    """
    out.write_json(COMPARISON_JSON, found)
    out.write_bytes(COMPARISON_HTML, comparison_html(found).encode())
    return [redact(out.path(name)) for name in (COMPARISON_HTML, COMPARISON_JSON)]


def comparison_html(found: Mapping[str, Any]) -> str:
    """The page; it needs no network."""
    small = [
        best_scores(
            {one["label"]: one["scores"] for one in table["sets"] if one["set"] != FULL}
            | {CHANCE: {metric: {"mean": mean} for metric, mean in table["chance"].items()}}
        )
        for table in found["tables"]
    ]
    return (
        page_environment()
        .get_template("comparison.html.jinja")
        .render(
            found=found,
            tables=list(
                zip(
                    found["tables"],
                    small,
                    map(_time_chart, found["tables"], repeat(found["task"])),
                    strict=True,
                )
            ),
            metrics=METRICS[found["task"]],
            metric_label=metric_label,
            task=TASK_TEXTS[found["task"]],
            main=MAIN_METRIC[found["task"]],
            signed=signed,
            over=_over,
            opening=_opening(found),
            untimed=_untimed,
            looks=_has_looks,
            interval=interval,
            chance=LABELS[CHANCE],
        )
    )


def _time_chart(table: Mapping[str, Any], task: str) -> Markup | None:
    """The deciding metric against the time to make a set, where the times of two sets are known."""
    metric, what = MAIN_METRIC[task], TASK_TEXTS[task]["main"]
    scores = {one["label"]: one["scores"][metric] for one in table["sets"]}
    timed = {
        one["label"]: (one["making_seconds"], scores[one["label"]]["mean"], scores[one["label"]]["std"])
        for one in table["sets"]
        if one["making_seconds"]
    }
    if len(timed) < 2 or not any(one["distilled"] and one["making_seconds"] for one in table["sets"]):
        return None
    untimed = {one["label"]: scores[one["label"]]["mean"] for one in table["sets"] if one["set"] in AT_ONCE}
    chart = charts.against_seconds(timed, untimed, f"{what}, %")
    return Markup(charts.described(chart, f"{what} against the time to make a set: {', '.join(timed)}"))


def _opening(found: Mapping[str, Any]) -> str:
    """The sets that runs made, with the figures that decide."""
    main, task = MAIN_METRIC[found["task"]], TASK_TEXTS[found["task"]]
    table = found["tables"][0]
    told = [
        f"{one['label']} {mean_stds(one['scores'][main])} %".replace(" ±", "\u00a0±")
        for one in table["sets"]
        if one["distilled"]
    ]
    return (
        f"The students of {listed([*found['runs']])} in one table. {task['main'].capitalize()} under the protocol "
        f"{table['protocol']['name']}: {'; '.join(told)}."
    )


def _has_looks(table: Mapping[str, Any]) -> bool:
    """Whether students were tested on their way, as a published protocol has it."""
    return any(one["best_look"] for one in table["sets"])


def _untimed(table: Mapping[str, Any]) -> str:
    """Which sets the chart against time does not show, and why."""
    return " ".join(
        f"{one['label']} is not shown: its time is not known"
        f"{', because ' + one['untimed'] if one['untimed'] else ''}."
        for one in table["sets"]
        if not one["making_seconds"] and one["set"] not in AT_ONCE
    )


def check_out(out: Store) -> None:
    """Refuses a folder whose files are not those of an earlier comparison.

    Raises:
        UserError: It has files, and no comparison.json.
    """
    found = out.entries()
    if found and COMPARISON_JSON not in found:
        raise UserError(
            f"--out {redact(out.uri)} is not empty, it has {found[0]} and no {COMPARISON_JSON}; name a new folder"
        )


def comparison_table(found: Mapping[str, Any]) -> str:
    """The tables and the differences as text for a terminal."""
    main, task = MAIN_METRIC[found["task"]], TASK_TEXTS[found["task"]]
    width = max(map(len, found["runs"]))
    blocks = [f"{name:<{width}}  {run['dir']}" for name, run in found["runs"].items()]
    for table in found["tables"]:
        blocks += ["", f"{task['title']}, protocol {table['protocol']['name']}"]
        blocks += [f"percent, {_over(table)}", filled(table["chosen"])]
        if has_looks := _has_looks(table):
            blocks.append(about_looks(main))
        headings = ["best look", *HEADINGS] if has_looks else HEADINGS
        rows = [["", *map(metric_label, METRICS[found["task"]]), *headings]]
        rows += [_row(one, METRICS[found["task"]], main if has_looks else None) for one in table["sets"]]
        means = [f"{table['chance'][metric]:.1f}" for metric in METRICS[found["task"]]]
        rows += [[LABELS[CHANCE], *means, *[""] * len(headings)]]
        blocks += ["", *table_lines(rows)]
        if table["differences"]:
            blocks.append(
                f"{task['main']}, differences in points over the same student seeds, 95 % intervals"
            )
            blocks += [line for one in table["differences"] for line in _difference(one, main)] + [""]
    blocks += [filled(note) for note in found["notes"]]
    return "\n".join(blocks)


def _over(table: Mapping[str, Any]) -> str:
    """How the figures of a table are means."""
    if all(one["students"] * one["draws"] == 1 for one in table["sets"]):
        return "of one student for each set, so that nothing is known of the spread"
    return "mean ± standard deviation over students, pooled over draws (± that between draws)"


def _row(one: Mapping[str, Any], metrics: Sequence[str], look: str | None) -> list[str]:
    """Cells of a set; with ``look``, that metric at the best look of its students."""
    best = [mean_stds(one["best_look"][look]) if one["best_look"] else ""] if look else []
    counts = [f"{one['pairs']:,}", f"{one['images']:,}", bytes_text(one["bytes"])]
    return [
        one["label"],
        *[mean_stds(one["scores"][metric]) for metric in metrics],
        *best,
        *counts,
        f"{one['images_seen']:,}",
        duration_text(one["seconds"]),
    ]


def _difference(one: Mapping[str, Any], metric: str) -> list[str]:
    """A line, or two where it is longer than a terminal."""
    if one["metrics"][metric].get("lack") == SAME_SET:
        return [f"{one['ours']} − {one['theirs']}  {about_lack(one['metrics'][metric])}"]
    score = one["metrics"][metric]
    over = one["over"] if one["count"] > 1 else one["over"].removesuffix("s")
    sets = f"{one['ours']} − {one['theirs']}"
    figures = f"{signed(score['mean'])}  ({interval(score)}), {one['count']} {over}"
    whole = f"{sets}  {figures}"
    return [whole] if len(whole) <= TERMINAL_COLUMNS else [sets, f"    {figures}"]


def interval(score: Mapping[str, Any]) -> str:
    """``−0.3 to +2.7``, or ``–, too few``."""
    if lack := about_lack(score):
        return f"–, {lack}"
    return f"{signed(score['low'])} to {signed(score['high'])}"
