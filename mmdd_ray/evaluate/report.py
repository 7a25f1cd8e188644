"""The report of a run: ``report.json`` for programs, ``report.html`` (one file, no network) for people.

::

    report = build_report(run.store, evaluation)    # a dict, what report.json holds
    write_report(report, run.store)
    print(summary_table(report))
"""

import base64
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mmdd_ray.data.contact_sheet import png_bytes, spread, thumbnail
from mmdd_ray.data.distilled import CONTACT_SHEET, FOLDER, read_distilled
from mmdd_ray.data.inventory import about_source
from mmdd_ray.evaluate import charts
from mmdd_ray.evaluate.beside import Beside
from mmdd_ray.evaluate.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluate.report_texts import BASELINES, CHANCE, FULL, LABELS, TASK_TEXTS, TEXTS
from mmdd_ray.evaluate.verdict import sentence, standing
from mmdd_ray.plan import planned_seconds
from mmdd_ray.redact import redact
from mmdd_ray.run import DRAWS, MANIFEST, SETTINGS
from mmdd_ray.store import Store
from mmdd_ray.work import planned_as

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
EXAMPLES = 12
TERMINAL_COLUMNS = 80


def build_report(
    run: Store,
    evaluation: Mapping[str, Any] | None = None,
    *,
    losses: Mapping[str, Sequence[float]] | None = None,
    refinement: Mapping[str, Sequence[float]] | None = None,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    agreement: Mapping[str, float] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """What ``report.json`` holds, from the manifests of the run directory ``run`` and these figures.

    Args:
        evaluation: result of ``compare``; without one the report has no scores.
        losses: columns of the method's loss curve: ``step`` and one for each term.
        refinement: the same of a refinement that followed.
        quality: of the synthetic pairs, the same columns for each figure, e.g. ``{"alignment": {"before": …,
            "after": …}, "similarity": {…}}`` for a generator before and after fine-tuning.
        agreement: of real and of drawn images with their captions, as ``beside_real`` gives it.
        command: what the user typed to start the run.

    Scores are in percent: ``scores.<set>.<metric>`` = ``{mean, std, runs}`` with the metrics ``METRICS`` of ``task``;
    for a set that was drawn several times also ``{draw_means, std_between_draws}``, as ``spread`` says. ``draws`` are
    the distilled sets of the run, of which ``distilled``, losses and quality are the first.
    ``standings.<distilled set>.<baseline>`` says which of the two scores higher, in the words of ``standing``, by the
    metric that decides.
    ``real_images`` are the usable ones of the source, of which "full" may be a random part; ``seconds`` of a stage
    that was ``resumed`` are those of its last attempt; ``planned_seconds`` is what the plan said before, or None.
    """
    held = run.read_json(SETTINGS)
    distilled = run.read_json(f"{FOLDER}/{MANIFEST}") if run.exists(f"{FOLDER}/{MANIFEST}") else None
    folders = _draw_folders(held["settings"])
    stages = _stage_manifests(run, folders)
    sets = evaluation["sets"] if evaluation else {}
    planned = planned_seconds(run)
    real_images = stages["features"]["rows_out"] if "features" in stages else None
    scores = _scores(evaluation) if evaluation else {}
    return {
        "job": held["job"],
        "preset": held["preset"],
        "method": distilled["method"] if distilled else held["job"],
        "command": redact(command),
        "task": evaluation["task"] if evaluation else None,
        "scores": scores,
        "standings": _standings(scores, MAIN_METRIC[evaluation["task"]]) if evaluation else {},
        "sets": {
            name: {key: value for key, value in one.items() if key != "metrics"}
            for name, one in _ordered(sets)
        },
        "real_images": real_images,
        "source": stages["features"]["extra"].get("source") if "features" in stages else None,
        "distilled": distilled
        and {key: distilled[key] for key in ("images", "pairs", "captions_per_image", "bytes", "checksum")},
        "draws": [_draw(run, folder) for folder in folders] if distilled else [],
        "stages": {
            name: {key: manifest[key] for key in ("rows_in", "rows_out", "seconds", "resumed")}
            | {"planned_seconds": planned.get(planned_as(name))}
            for name, manifest in stages.items()
        },
        "seconds": round(sum(manifest["seconds"] for manifest in stages.values()), 3),
        "rejects": dict(
            sum((Counter(manifest["rejects"]) for manifest in stages.values()), Counter()).most_common()
        ),
        "losses": _curves(losses),
        "refinement": _curves(refinement),
        "quality": {name: dict(values) for name, values in (quality or {}).items()},
        "agreement": dict(agreement or {}),
        "devices": _merged(manifest["devices"] for manifest in stages.values()),
        "versions": _merged(manifest["versions"] for manifest in stages.values()),
        "settings": held["settings"],
        "files": {
            name: redact(run.path(name))
            for name in (REPORT_HTML, REPORT_JSON, *([FOLDER] if distilled else []))
        },
    }


def _draw_folders(settings: Mapping[str, Any]) -> list[str]:
    """Where the draws of a run with these settings lie in it: as prefixes of names."""
    draws = settings.get("evaluation", {}).get("draws", 1)
    return ["", *(f"{DRAWS}/{number}/" for number in range(1, draws))]


def _draw(run: Store, folder: str) -> dict[str, Any]:
    manifest = run.read_json(f"{folder}{FOLDER}/{MANIFEST}")
    return {"set": f"{folder}{FOLDER}", **{key: manifest[key] for key in ("seed", "checksum")}}


def _stage_manifests(run: Store, folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Manifests of the finished stages in their order; that of the distilled set is none of them."""
    names = [
        f"{folder}{name}/{MANIFEST}"
        for folder in folders
        for name in (run.child(folder) if folder else run).entries()
    ]
    found = [manifest for name in names if run.exists(name) and "stage" in (manifest := run.read_json(name))]
    return {manifest["stage"]: manifest for manifest in sorted(found, key=lambda m: m["finished"])}


def _scores(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    metrics, chance = METRICS[evaluation["task"]], evaluation["chance"]
    scores = {
        name: {metric: dict(one["metrics"][metric]) for metric in metrics}
        for name, one in _ordered(evaluation["sets"])
    }
    scores[CHANCE] = {
        metric: {"mean": chance[metric], "std": 0.0, "runs": [chance[metric]]} for metric in metrics
    }
    return scores


def _standings(scores: Mapping[str, Any], metric: str) -> dict[str, dict[str, str]]:
    """Where each distilled set stands beside each baseline of its size."""
    baselines = [name for name in scores if name in BASELINES and name != FULL]
    ours = [name for name in scores if name not in (*BASELINES, CHANCE)] if baselines else []
    return {
        name: {other: standing(scores[name][metric], scores[other][metric]) for other in baselines}
        for name in ours
    }


def _ordered(sets: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The distilled set first, the full data last."""
    place = {name: i for i, name in enumerate(BASELINES)}
    return sorted(sets.items(), key=lambda item: place.get(item[0], -1))


def _merged(parts: Any) -> dict[str, Any]:
    """One value for each name; several in order, where a resumed run met different ones."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, value in part.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _curves(columns: Mapping[str, Sequence[float]] | None) -> dict[str, list[float | None]]:
    return {name: [_finite(value) for value in values] for name, values in (columns or {}).items()}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


# ---- For people


def write_report(report: Mapping[str, Any], run: Store, beside: Sequence[Beside] = ()) -> None:
    """Writes ``report.json`` and ``report.html`` into the run directory.

    The page shows images of the run's distilled set, if there is one, and the pairs ``beside`` each other, which
    ``agreement`` sums up; ``ValueError`` when the set is damaged.
    """
    run.write_json(REPORT_JSON, report)
    run.write_bytes(REPORT_HTML, report_html(report, run, beside).encode())


def report_html(report: Mapping[str, Any], run: Store, beside: Sequence[Beside] = ()) -> str:
    """The page, with everything it shows inside."""
    # captions and settings come from outside: everything but our own charts is escaped
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spread_of": _mean_stds, "duration": _duration, "bytes": _bytes, "label": _label}
    environment.filters["set_label"] = lambda name: _set_label(name, report)
    distilled = run.child(FOLDER)
    return environment.get_template("report.html.jinja").render(
        report=report,
        verdict=verdict(report),
        headline=headline(report),
        tiles=_tiles(report),
        metrics=METRICS.get(report["task"], ()),
        metric_label=_metric,
        task=TASK_TEXTS.get(report["task"]),
        texts=TEXTS.get(str(report["method"]).lower(), TEXTS["edge"]),
        best=_best(report["scores"]),
        draws=_most_draws(report),
        about_full=_about_full(report),
        has_plan=any(stage["planned_seconds"] is not None for stage in report["stages"].values()),
        about_source=about_source(report["source"]) if report["source"] else [],
        charts={name: Markup(svg) for name, svg in _charts(report).items()},
        examples=[
            (sample, _data_uri(png_bytes(thumbnail(sample.image))))
            for sample in (spread(read_distilled(distilled), EXAMPLES) if report["distilled"] else [])
        ],
        beside=[(one, one.real and _data_uri(one.real), _data_uri(one.drawn)) for one in beside],
        contact_sheet=_data_uri(distilled.read_bytes(CONTACT_SHEET)) if report["distilled"] else "",
    )


def verdict(report: Mapping[str, Any]) -> str:
    """How each distilled set compares with the baselines of its size, in words; nothing without both."""
    told, main = [], _main_scores(report)
    for ours, standings in report["standings"].items():
        unit = TASK_TEXTS[report["task"]]["unit"]
        names = {"random": f"random real {unit}", "prompts": f"{unit} drawn from class names"}
        in_words = {
            f"{names.get(name, name)} ({main[name]['mean']:.1f}\u00a0%)": word
            for name, word in standings.items()
        }
        told.append(sentence(_label(ours), in_words))
    return " ".join(told)


def headline(report: Mapping[str, Any]) -> str:
    """The figures of the outcome in one sentence."""
    distilled, sets = report["distilled"], report["sets"]
    clauses = []
    for name, main in _main_scores(report).items():
        task = TASK_TEXTS[report["task"]]
        count = f"{sets[name][task['unit']]:,}" if name in sets else ""
        score = f"{_mean_std(main)} %".replace(" ", "\u00a0")  # never broken over lines
        if "draw_means" in main:
            score += f" (over {len(main['draw_means'])} draws ±\u00a0{main['std_between_draws']:.1f})"
        if name == FULL:
            full = _set_label(FULL, report) if _full_is_part(report) else "the full data"
            clauses.append(f"{full} ({count} {task['unit']}) {score}")
        elif name == "random":
            clauses.append(f"{count} random real {task['unit']} {score}")
        elif name not in (*BASELINES, CHANCE):
            clauses.append(f"{count} synthetic {task['unit']} of {_label(name)} reach {score} {task['main']}")
    if clauses:
        return "; ".join(clauses) + "."
    if distilled:
        return (
            f"{distilled['images']:,} synthetic images with {distilled['pairs']:,} captions, not evaluated."
        )
    return "No distilled set and no evaluation."


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few figures that matter most, as (value, what it is)."""
    mean = {name: main["mean"] for name, main in _main_scores(report).items()}
    tiles = []
    ours = next((name for name in mean if name not in (*BASELINES, CHANCE)), None)
    if ours is not None:
        task = TASK_TEXTS[report["task"]]
        short = task["main"].split()[-1]
        tiles.append((f"{mean[ours]:.1f} %", f"{task['main']} of {_label(ours)}"))
        if mean.get("random"):
            tiles.append((f"{mean[ours] / mean['random']:.2f} ×", f"the {short} of random {task['unit']}"))
        if mean.get(FULL):
            full = _set_label(FULL, report) if _full_is_part(report) else "the full data"
            tiles.append((f"{100 * mean[ours] / mean[FULL]:.0f} %", f"of the {short} of {full}"))
    if distilled := report["distilled"]:
        if report["task"] == "classification":
            tiles.append((f"{distilled['images']:,}", "synthetic images"))
        else:
            tiles.append((f"{distilled['pairs']:,}", f"pairs on {distilled['images']:,} synthetic images"))
    return [*tiles, (_duration(report["seconds"]), "in all stages")]


def _charts(report: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    main = _main_scores(report)
    if scored := {name: score for name, score in main.items() if name != CHANCE}:
        means, stds = ([score[part] for score in scored.values()] for part in ("mean", "std"))
        labels = [_set_label(name, report) for name in scored]
        what = TASK_TEXTS[report["task"]]["main"]
        draws = [score.get("draw_means", ()) for score in scored.values()]
        found["scores"] = charts.bars(labels, means, stds, main[CHANCE]["mean"], what, draws)
    for part in ("losses", "refinement"):
        terms = {name: values for name, values in report[part].items() if name != "step"}
        if terms:
            found[part] = charts.panels(report[part]["step"], terms)
    if curves := {_set_label(name, report): one["loss_curve"] for name, one in report["sets"].items()}:
        found["students"] = charts.lines(curves, "training done, %", TASK_TEXTS[report["task"]]["loss"])
    return found


def _main_scores(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The deciding metric of each set, and of chance."""
    return {name: one[MAIN_METRIC[report["task"]]] for name, one in report["scores"].items()}


def _most_draws(report: Mapping[str, Any]) -> int:
    """How often the sets were drawn that depend on a seed."""
    return max((len(one.get("draw_means", (0,))) for one in _main_scores(report).values()), default=1)


def _best(scores: Mapping[str, Any]) -> dict[str, float]:
    """For each metric the best mean of the small sets, which the table prints in bold."""
    small = [metrics for name, metrics in scores.items() if name not in (FULL, CHANCE)]
    return {metric: max(one[metric]["mean"] for one in small) for metric in small[0]} if small else {}


def summary_table(report: Mapping[str, Any]) -> str:
    """The outcome as text for a terminal, and where the files are."""
    scores, sets, distilled = report["scores"], report["sets"], report["distilled"]
    blocks = []
    if told := verdict(report):
        wrapped = textwrap.fill(told, TERMINAL_COLUMNS, break_on_hyphens=False)
        blocks += [wrapped.replace("\u00a0", " "), ""]
    if scores:
        unit = TASK_TEXTS[report["task"]]["unit"]
        rows = [["", *scores]]
        rows += [
            [_metric(metric), *[_mean_std(one[metric]) for one in scores.values()]]
            for metric in METRICS[report["task"]]
        ]
        if (draws := _most_draws(report)) > 1:
            between = [one.get("std_between_draws") for one in _main_scores(report).values()]
            of_draws = ["  of draws", *["" if std is None else f"± {std:.1f}" for std in between]]
            rows.insert(2 + METRICS[report["task"]].index(MAIN_METRIC[report["task"]]), of_draws)
        rows += [[unit, *[f"{sets[name][unit]:,}" if name in sets else "" for name in scores]]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        what = "recall" if report["task"] == "retrieval" else "accuracy"
        note = f"of draws: standard deviation between the means of {draws} draws\n" if draws > 1 else ""
        blocks.append(f"{what} in percent, mean ± standard deviation over students\n{note}")
        for places in _fitting(widths):
            for row in rows:
                cells = [f"{row[place]:>{widths[place]}}" for place in places]
                blocks.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
            blocks.append("")
    if _full_is_part(report):
        blocks.append(f"{FULL:<13}{_set_label(FULL, report)}, drawn at random")
    if distilled:
        blocks.append(
            f"{'set':<13}{distilled['images']:,} images, {distilled['pairs']:,} pairs, "
            f"sha256 {distilled['checksum'][:16]}…"
        )
    if report["source"]:
        blocks += [f"{'source':<13}{line}" for line in about_source(report["source"])[:-1]]
    resumed = [name for name, stage in report["stages"].items() if stage["resumed"]]
    footnote = f" (only the last attempt of {', '.join(resumed)})" if resumed else ""
    blocks.append(f"{'time':<13}{_duration(report['seconds'])}{footnote}")
    blocks += [f"{name:<13}{path}" for name, path in report["files"].items()]
    return "\n".join(blocks)


def _fitting(widths: Sequence[int]) -> list[list[int]]:
    """The columns of a table in groups that a terminal has room for, each beside the first column."""
    groups: list[list[int]] = []
    room = 0
    for place, width in enumerate(widths[1:], 1):
        if not groups or width + 2 > room:
            groups.append([])
            room = TERMINAL_COLUMNS - widths[0]
        groups[-1].append(place)
        room -= width + 2
    return groups


def _mean_std(score: Mapping[str, Any]) -> str:
    """``12.3 ± 0.4``; a single student of each draw has no deviation."""
    several = len(score["runs"]) > len(score.get("draw_means", (0,)))
    return f"{score['mean']:.1f} ± {score['std']:.1f}" if several else f"{score['mean']:.1f}"


def _mean_stds(score: Mapping[str, Any]) -> str:
    """``12.3 ± 0.4 ± 0.8``: the second deviation is that between draws, where there are several."""
    if "draw_means" not in score:
        return _mean_std(score)
    shown = _mean_std(score)
    return f"{shown if '±' in shown else f'{shown} ± –'} ± {score['std_between_draws']:.1f}"


def _metric(name: str) -> str:
    return name.replace("_", " ").replace("ir@", "IR@").replace("tr@", "TR@").replace("top-", "Top-")


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _set_label(name: str, report: Mapping[str, Any]) -> str:
    """Like ``_label``, but all the data is called so only if it is all of them."""
    if name == FULL and _full_is_part(report):
        return f"{report['sets'][FULL]['images']:,} of {report['real_images']:,} real images"
    return _label(name)


def _full_is_part(report: Mapping[str, Any]) -> bool:
    """Whether "full" is a random part of the data, because evaluation.full_pairs is below their number."""
    sets, real_images = report["sets"], report["real_images"]
    return FULL in sets and real_images is not None and sets[FULL]["images"] < real_images


def _about_full(report: Mapping[str, Any]) -> str:
    """How to read the best and the worst that the table shows."""
    main = _main_scores(report)
    if FULL in main and main[FULL]["mean"] < _best(report["scores"])[MAIN_METRIC[report["task"]]]:
        return "With as many steps as the other sets, the real data are no ceiling here; chance is the floor."
    if _full_is_part(report):
        return "The real images are a random part of the data, chance is the floor."
    return "The full data is the ceiling, chance the floor."


def _duration(seconds: float) -> str:
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _bytes(count: int) -> str:
    return f"{count / 1000:,.0f} kB" if count < 10**6 else f"{count / 10**6:,.1f} MB"
