"""Finished runs side by side: whether their students may stand in one table, and the differences of their sets.

Imports neither Ray nor torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from mmdd_ray.engine.settings_changes import UNSET
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.finished_run import FinishedRun, read_run
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.differences import MADE_ONCE, Compared
from mmdd_ray.evaluation.report.standing import listed
from mmdd_ray.evaluation.report.text import label_of, set_label
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL, TASK_TEXTS
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def compare_runs(uris: Sequence[str]) -> dict[str, Any]:
    """Content of ``comparison.json``: the sets of several runs in one table, and their paired differences.

    Args:
        uris: Run directories, local folders or URIs; at least two.

    Returns:
        ``runs`` by name (``dir``, ``job``, ``preset``, ``seed``, ``protocols``); ``task``; ``notes``, sentences for
        people; and ``tables``, one for each protocol: ``protocol``, ``chosen`` (how learning rates were, and on what),
        ``runs``, ``sets``, ``chance`` by metric, and ``differences``. A set has ``label``, ``set`` (its name in the
        run), ``runs`` (several, where they have the same baseline with the same figures), ``distilled``, ``draws``,
        ``students`` of each draw, ``scores`` and ``best_look`` (None without looks on the way) and ``notes`` (of how
        its students took it) as the report has them, ``fingerprints`` of its draws, ``making_seconds``, the time that
        the run took to make it (None where that is not known), ``untimed``, why it is not, ``pairs``, ``images``,
        ``bytes``, ``seconds`` of all its students, ``learning_rate`` and ``images_seen``, the images that one student
        sees in training. A difference has ``ours``, ``theirs`` (labels), ``over`` ("students", paired by their seeds,
        or "draws"), ``count``, and ``metrics``: ``mean``, ``low`` and ``high`` in percentage points, the latter two the
        95 % confidence interval (``Compared``), null where there is none; then ``lack`` says why, as in a report.

    Raises:
        UserError: There are fewer than two runs; one is none, is not finished or is damaged; or they may not stand in
            one table: another task, or within a protocol other students or other validation or test data.
    """
    if len(uris) < 2:
        raise UserError(f"{len(uris)} run cannot be compared; name at least two run directories")
    stores = [Store(uri) for uri in uris]
    named = [os.path.realpath(one.uri) if one.is_local else one.uri for one in stores]
    if repeated := [uri for uri in named if named.count(uri) > 1]:
        raise UserError(f"{redact(repeated[0])} is named twice; name each run once")
    read = [read_run(store, name) for store, name in zip(stores, _names(stores), strict=True)]
    runs = [panels[0] for panels in read]
    for run in runs[1:]:
        _refuse_other("the task", runs[0].task, run.task, runs[0], run)
    tables = []
    everything = [panel for panels in read for panel in panels]
    for protocol in dict.fromkeys(panel.protocol for panel in everything):
        own = [panel for panel in everything if panel.protocol == protocol]
        for run in own[1:]:
            refuse_unlike(own[0], run)
        tables.append(_table(own, protocol))
    return {
        "runs": {
            run.name: {
                "dir": run.uri,
                **{key: run.report[key] for key in ("job", "preset")},
                "seed": run.seed,
                "protocols": [panel.protocol[0] for panel in panels],
            }
            for run, panels in zip(runs, read, strict=True)
        },
        "task": runs[0].task,
        "tables": tables,
        "notes": list(dict.fromkeys(_notes(runs, tables))),
    }


def _names(stores: Sequence[Store]) -> list[str]:
    """The last part of each folder's path that tells all of them apart; the whole, if none does."""
    whole = [redact(store.uri) for store in stores]
    from_last = [uri.split("/")[::-1] for uri in whole]
    return next(
        (list(names) for names in zip(*from_last, strict=False) if len({*names}) == len(names)), whole
    )


# ---- what may stand in one table


def refuse_unlike(one: FinishedRun, other: FinishedRun) -> None:
    """Refuses two runs of one protocol whose students are not to be compared.

    Raises:
        UserError: Their students have another setting, were tested with other data, or had their learning rates chosen
            on other data; names the setting and both values.
    """
    for setting in dict.fromkeys([*one.judged, *other.judged]):
        value, others = (run.judged.get(setting, UNSET) for run in (one, other))
        _refuse_other(f"{one.section}.{setting}", value, others, one, other)
    own, theirs = (run.report["settings"]["evaluation"] for run in (one, other))
    made = [next(iter(run.tested.values())) for run in (one, other)]
    value, others = ([*next(iter(students.values()))["inputs"][2:]] for students in made)
    _refuse_other("the protocol's version or its teacher", value, others, one, other)
    for part in ("test", "val"):
        if one.held_out.get(part) != other.held_out.get(part):
            for setting in (part, f"{part}_split", f"{part}_image_root", "max_pairs"):
                _refuse_other(f"evaluation.{setting}", own.get(setting), theirs.get(setting), one, other)
            fingerprint = f"the fingerprint of evaluation.{part}={own[part]}"
            _refuse_other(fingerprint, one.held_out.get(part), other.held_out.get(part), one, other)


def _refuse_other(setting: str, value: Any, others: Any, one: FinishedRun, other: FinishedRun) -> None:
    if value != others:
        raise UserError(
            f"{setting} is {_shown(value)} in {one.uri}, but {_shown(others)} in {other.uri}, so their students cannot "
            "stand in one table; compare runs that agree in it"
        )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- the table


@dataclass(frozen=True)
class _Entry:
    """A row of the table."""

    label: str
    name: str
    runs: list[FinishedRun]


def _table(runs: Sequence[FinishedRun], protocol: tuple[str, str]) -> dict[str, Any]:
    """The sets of runs whose students are alike, and the differences of the distilled ones from others."""
    distilled = _labelled(
        [(label_of(name, run.report), name, [run]) for run in runs for name in run.distilled]
    )
    baselines = _labelled(
        [
            (set_label(name, own[0].report), name, own)
            for name in BASELINES
            for own in _alike(name, [run for run in runs if name in run.report["sets"]])
        ]
    )
    return {
        "protocol": {"name": protocol[0], "version": protocol[1]},
        "chosen": runs[0].report["protocol"]["chosen"],
        "runs": [run.name for run in runs],
        "sets": [_set(one, one in distilled) for one in [*distilled, *baselines]],
        "chance": {metric: score["mean"] for metric, score in runs[0].report["scores"][CHANCE].items()},
        "differences": [
            difference
            for ours, theirs in _compared(distilled, baselines)
            if (difference := _difference(ours, theirs)) is not None
        ],
    }


def _compared(distilled: Sequence[_Entry], baselines: Sequence[_Entry]) -> Iterator[tuple[_Entry, _Entry]]:
    """The distilled sets with each other, and with the small baselines of their runs."""
    yield from combinations(distilled, 2)
    for ours in distilled:
        for theirs in baselines:
            if theirs.name != FULL and any(run is ours.runs[0] for run in theirs.runs):
                yield ours, replace(theirs, runs=ours.runs)


def _labelled(found: Sequence[tuple[str, str, list[FinishedRun]]]) -> list[_Entry]:
    """Rows of the table, with the names of runs where two would be called alike."""
    labels = [label for label, _, _ in found]
    return [
        _Entry(
            f"{label} ({', '.join(run.name for run in runs)})" if labels.count(label) > 1 else label,
            name,
            runs,
        )
        for label, name, runs in found
    ]


def _alike(name: str, runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """The runs in groups that have the same set under this name, with the same figures."""
    groups: list[list[FinishedRun]] = []
    for run in runs:
        group = next((own for own in groups if _is_same(name, own[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _is_same(name: str, one: FinishedRun, other: FinishedRun) -> bool:
    return (
        one.fingerprints(name) == other.fingerprints(name)
        and one.report["scores"][name] == other.report["scores"][name]
    )


def _set(entry: _Entry, is_distilled: bool) -> dict[str, Any]:
    run = entry.runs[0]
    about, scores = run.report["sets"][entry.name], run.report["scores"][entry.name]
    figures = len(scores[MAIN_METRIC[run.task]]["runs"])
    return {
        "label": entry.label,
        "set": entry.name,
        "runs": [one.name for one in entry.runs],
        "distilled": is_distilled,
        "draws": about["draws"],
        "students": figures // about["draws"],
        "fingerprints": sorted(run.fingerprints(entry.name)),
        "scores": scores,
        "best_look": run.report["best_looks"].get(entry.name),
        "notes": list(run.report["notes"].get(entry.name, ())),
        "making_seconds": run.report.get("seconds_of_sets", {}).get(entry.name),  # older reports have none
        "untimed": run.report.get("untimed_sets", {}).get(entry.name, ""),
        **{
            key: about[key] for key in ("pairs", "images", "bytes", "seconds", "learning_rate", "images_seen")
        },
    }


def _difference(ours: _Entry, theirs: _Entry) -> dict[str, Any] | None:
    """Ours − theirs over the student seeds that both have; None where the same seeds are not the same students."""
    (one,), (other,) = ours.runs, theirs.runs
    if one.seed != other.seed:
        return None
    same = one.fingerprints(ours.name) == other.fingerprints(theirs.name)
    seeds = sorted(one.seeds(ours.name) & other.seeds(theirs.name))
    if not seeds:
        return None
    metrics = {}
    for metric in METRICS[one.task]:
        found = Compared.of(one.scores(ours.name, metric, seeds), other.scores(theirs.name, metric, seeds))
        metrics[metric] = found.interval(same)
    return {
        "ours": ours.label,
        "theirs": theirs.label,
        "over": found.over,
        "count": found.count,
        "metrics": metrics,
    }


def _notes(runs: Sequence[FinishedRun], tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What people should know of the tables, a sentence each."""
    if len(tables) > 1:
        named = ", ".join(table["protocol"]["name"] for table in tables)
        yield f"Each protocol has a table of its own ({named}): figures of different tables cannot be compared."
    for table in tables:
        own = {run.name: run for run in runs if run.name in table["runs"]}
        seeds = {name: run.seed for name, run in own.items()}
        if len({*seeds.values()}) > 1:
            told = ", ".join(f"{seed} in {name}" for name, seed in seeds.items())
            yield (
                f"run.seed is {told}: students of runs with different seeds do not start alike, so the differences "
                "between them are not paired, and are left out."
            )
        prints = {(run.report.get("source") or {}).get("fingerprint") for run in own.values()}
        if len(prints) > 1:
            yield f"The training data of {', '.join(own)} are not the same, and neither are baselines of real data."
        for what, found in (
            ("devices", [run.report["devices"] for run in own.values()]),
            ("versions of torch", [run.report["versions"].get("torch") for run in own.values()]),
        ):
            if any(one != found[0] for one in found[1:]):
                yield f"The {what} of {', '.join(own)} differ, and so do figures by rounding."
        versions = {name: _version(run) for name, run in own.items()}
        if len({*versions.values()}) > 1:
            told = ", ".join(f"{version} in {name}" for name, version in versions.items())
            yield (
                f"The runs are of different versions of mmdd-ray: {told}; its changelog says what these do differently."
            )
        counts = {
            name: one["students"] for one in table["sets"] if one["set"] != FULL for name in one["runs"]
        }
        if len({*counts.values()}) > 1:
            told = ", ".join(f"{count} in {name}" for name, count in counts.items())
            yield (
                f"The runs have different numbers of students of a set ({told}), so their means are not equally "
                "certain, and none is marked as the best."
            )
        under = f" under {table['protocol']['name']}" if len(tables) > 1 else ""
        yield from (f"{one['label']}{under}: {note}." for one in table["sets"] for note in one["notes"])
        yield from _sizes(table, TASK_TEXTS[runs[0].task]["unit"])
        yield from _same_sets(table)
        once = [one["label"] for one in table["sets"] if one["distilled"] and one["draws"] == 1]
        if once:
            yield MADE_ONCE.format(sets=listed(once), were="was" if len(once) == 1 else "were")


def _version(run: FinishedRun) -> str:
    """The version of mmdd-ray that a run was made by; of one that went on under another, all of them."""
    found = run.report["versions"].get("mmdd-ray", "not known")
    return " and ".join(found) if isinstance(found, list) else found


def _sizes(table: Mapping[str, Any], unit: str) -> Iterator[str]:
    """That distilled sets of a table differ in size."""
    counts = {one["label"]: one[unit] for one in table["sets"] if one["distilled"]}
    if len({*counts.values()}) > 1:
        told = ", ".join(f"{label} {count:,}" for label, count in counts.items())
        yield f"The sets differ in size, so they are no fair comparison: {told} {unit}."


def _same_sets(table: Mapping[str, Any]) -> Iterator[str]:
    """Which distilled sets of a table are one and the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in table["sets"]:
        if one["distilled"]:
            groups.setdefault(tuple(one["fingerprints"]), []).append(one["label"])
    for labels in groups.values():
        if len(labels) > 1:
            yield f"{listed(labels)} are the same set, for they have the very same pairs."
