"""Finished runs side by side: whether their students may stand in one table, and the differences of their sets.

Imports neither Ray nor torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmdd_ray.engine.run_dir import STATUS
from mmdd_ray.engine.saved_run import json_object, saved_run
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.differences import MADE_ONCE, Compared
from mmdd_ray.evaluation.report.standing import listed
from mmdd_ray.evaluation.report.text import label_of, set_label
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL, REPORT_JSON
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

EVALUATE = "evaluate"
SECTIONS = {"retrieval": "students", "classification": "classifiers"}
OF_PUBLISHED = (
    "image_model",
    "text_model",
    "image_px",
    "max_tokens",
    "embed_dim",
    "model",
    "width",
    "precision",
    "teacher",
)
"""Settings of students that count under a published protocol; all others are the protocol's."""
WITHOUT_EFFECT = ("looks", "teacher", "teacher_steps")
"""Settings that change nothing of the last figures under "equal-budget"."""
UNSET = "(not set)"

Student = Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run says of its students under one protocol."""

    name: str
    """A part of its folder's path that tells it from the other runs; the last, where that does."""
    uri: str
    """Its folder, credentials redacted."""
    report: Mapping[str, Any]
    """With the figures of this protocol as its own."""
    tested: Mapping[str, Mapping[tuple[int, int], Student]]
    """The students that the report is about, by set, and by draw and seed."""
    held_out: Mapping[str, str]
    """Fingerprints of "test", and of "val" where learning rates were chosen."""

    @property
    def task(self) -> str:
        return self.report["task"]

    @property
    def section(self) -> str:
        """Name of the settings of its students."""
        return SECTIONS[self.task]

    @property
    def judged(self) -> Mapping[str, Any]:
        """Settings of its students that count under its protocol."""
        found, published = self.report["settings"][self.section], self.report["protocol"]["published"]
        return {
            name: value
            for name, value in found.items()
            if (name in OF_PUBLISHED if published else name not in WITHOUT_EFFECT)
        }

    @property
    def protocol(self) -> tuple[str, str]:
        """Name and version."""
        found = self.report["protocol"]
        return str(found["name"]), str(found["version"])

    @property
    def seed(self) -> int:
        """The root of the seeds of its students."""
        return self.report["settings"]["run"]["seed"]

    @property
    def distilled(self) -> list[str]:
        """Names of its distilled sets."""
        return [name for name in self.report["sets"] if name not in BASELINES]

    def fingerprints(self, name: str) -> set[str]:
        """What the students of a set were trained on, a fingerprint for each of its draws."""
        return {one["inputs"][0] for one in self.tested[name].values()}

    def seeds(self, name: str) -> set[int]:
        """Seeds of the students of a set; each of its draws has the same."""
        return {seed for _, seed in self.tested[name]}

    def scores(self, name: str, metric: str, seeds: Sequence[int]) -> dict[str, Any]:
        """The metric of the students of these seeds, in percent, as ``spread`` gives it."""
        draws = sorted({draw for draw, _ in self.tested[name]})
        return spread(
            [[self.tested[name][draw, seed]["metrics"][metric] for seed in seeds] for draw in draws]
        )


def compare_runs(uris: Sequence[str]) -> dict[str, Any]:
    """Content of ``comparison.json``: the sets of several runs in one table, and their paired differences.

    Args:
        uris: Run directories, local folders or URIs; at least two.

    Returns:
        ``runs`` by name (``dir``, ``job``, ``preset``, ``seed``, ``protocols``); ``task``; ``notes``, sentences for
        people; and ``tables``, one for each protocol: ``protocol``, ``runs``, ``sets``, ``chance`` by metric, and
        ``differences``. A set has ``label``, ``set`` (its name in the run), ``runs`` (several, where they have the
        same baseline with the same figures), ``distilled``, ``draws``, ``students`` of each draw, ``scores`` as the
        report has them, ``fingerprints`` of its draws, ``making_seconds``, the time that the run took to make it (None
        where that is not known), ``untimed``, why it is not,
        ``pairs``, ``images``, ``bytes``, ``seconds`` of all its students, ``learning_rate`` and
        ``images_seen``, the images that one student sees in training. A difference has ``ours``, ``theirs`` (labels),
        ``over`` ("students", paired by their seeds, or "draws"), ``count``, and ``metrics``: ``mean``, ``low`` and
        ``high`` in percentage points, the latter two the 95 % confidence interval (``Compared``), null where there is
        none; then ``lack`` says why, as in a report.

    Raises:
        UserError: There are fewer than two runs; one is none, is not finished or is damaged; or they may not stand in
            one table: another task, or within a protocol other students or other validation or test data.
    """
    if len(uris) < 2:
        raise UserError(f"{len(uris)} run cannot be compared; name at least two run directories")
    stores = [Store(uri) for uri in uris]
    if repeated := [one.uri for one in stores if [other.uri for other in stores].count(one.uri) > 1]:
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


# ---- reading


def read_run(store: Store, name: str) -> list[FinishedRun]:
    """A finished run and its own students, once for each protocol; those of other models are left out.

    Args:
        name: Of the run, for labels.

    Raises:
        UserError: It is no run, a run of another version, one without students or without an end, or its students are
            not those of its report.
    """
    where = redact(store.uri)
    saved = saved_run(store)
    if "evaluation" not in saved["settings"]:
        raise UserError(f"{where} is a run of the job {saved['job']}, which trains no students to compare")
    again = f"python jobs/{saved['job']}.py {saved['preset']} --run.dir {where}"
    begun = f"go on with `{again}` and the other settings that it was begun with"
    if typed := _typed(store):
        begun = f"go on with `{typed}`"
    if not store.exists(REPORT_JSON):
        raise UserError(f"{where} is not finished, as it has no {REPORT_JSON}; {begun}")
    report = json_object(store, REPORT_JSON)
    if not report.get("sets") or report.get("task") not in METRICS:
        raise UserError(f"{where}/{REPORT_JSON} has no figures of students; {begun}")
    if report["settings"] != saved["settings"]:
        raise UserError(
            f"{where} is not finished, as its settings were extended after its {REPORT_JSON} was written; {begun}"
        )
    own = [panel for panel in report["panels"] if panel["models"] == report["models"]]
    return [_read_panel(store, name, where, report | panel, begun) for panel in ({}, *own)]


def _typed(store: Store) -> str:
    """The command that began a run; empty where its `status.json` does not say."""
    try:
        found = store.read_json(STATUS)
    except (FileNotFoundError, ValueError, StorageError):
        return ""
    return redact(str(found.get("command", ""))) if isinstance(found, dict) else ""


def _read_panel(store: Store, name: str, where: str, report: Mapping[str, Any], begun: str) -> FinishedRun:
    """The students of one protocol, whose figures the report has as its own."""
    folder = f"{EVALUATE}/{report['folder']}"
    results = [json_object(store, file) for file in store.files(folder) if file.endswith(".json")]
    tested = {label: _tested(f"{where}/{folder}", label, report, results, begun) for label in report["sets"]}
    # of the students that the report is about: others may be left of an earlier learning rate
    held_out = {"test": {one["inputs"][1] for own in tested.values() for one in own.values()}}
    if any(one["on_val"] for one in report["sets"].values()):
        held_out["val"] = {one["inputs"][1] for one in results if one["held_out"] == "val"}
    for part, found in held_out.items():
        if len(found) != 1:
            raise UserError(f"students of {where} had {len(found)} different sets of {part} data; {begun}")
    return FinishedRun(name, where, report, tested, {part: found.pop() for part, found in held_out.items()})


def _tested(
    where: str, name: str, report: Mapping[str, Any], results: Sequence[Student], begun: str
) -> dict[tuple[int, int], Student]:
    """The students of a set that its report is about, by draw and seed, checked against its figures."""
    about, main = report["sets"][name], MAIN_METRIC[report["task"]]
    own = {
        (one["draw"], one["seed"]): one
        for one in results
        if (one["set"], one["held_out"], one["learning_rate"]) == (name, "test", about["learning_rate"])
        and one["draw"] < about["draws"]
    }
    runs = report["scores"][name][main]["runs"]
    seeds = len(runs) // about["draws"]
    wanted = [(draw, seed) for draw in range(about["draws"]) for seed in range(1, seeds + 1)]
    if missing := [place for place in wanted if place not in own]:
        raise UserError(
            f"{where} lacks the student of the set {name} with the draw and seed {missing[0]}, which its "
            f"report counts; copy the run again, or {begun}"
        )
    if [own[place]["metrics"][main] for place in wanted] != runs:
        raise UserError(
            f"{where} has other figures of the set {name} than {REPORT_JSON}; copy the run again, or {begun}"
        )
    return {place: own[place] for place in wanted}


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
    """The sets of runs whose students are alike, and the differences of the distilled ones."""
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
        "runs": [run.name for run in runs],
        "sets": [_set(one, one in distilled) for one in [*distilled, *baselines]],
        "chance": {metric: score["mean"] for metric, score in runs[0].report["scores"][CHANCE].items()},
        "differences": [
            difference
            for ours, theirs in combinations(distilled, 2)
            if (difference := _difference(ours, theirs)) is not None
        ],
    }


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
        counts = {
            name: one["students"] for one in table["sets"] if one["set"] != FULL for name in one["runs"]
        }
        if len({*counts.values()}) > 1:
            told = ", ".join(f"{count} in {name}" for name, count in counts.items())
            yield (
                f"The runs have different numbers of students of a set ({told}), so their means are not equally "
                "certain, and none is marked as the best."
            )
        yield from _same_sets(table)
        once = [one["label"] for one in table["sets"] if one["distilled"] and one["draws"] == 1]
        if once:
            yield MADE_ONCE.format(sets=listed(once), were="was" if len(once) == 1 else "were")


def _same_sets(table: Mapping[str, Any]) -> Iterator[str]:
    """Which distilled sets of a table are one and the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in table["sets"]:
        if one["distilled"]:
            groups.setdefault(tuple(one["fingerprints"]), []).append(one["label"])
    for labels in groups.values():
        if len(labels) > 1:
            yield f"{listed(labels)} are the same set, for they have the very same pairs."
