"""A finished run and its students, as its folder holds them.

Imports neither Ray nor torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdd_ray.engine.run_dir import STATUS
from mmdd_ray.engine.saved_run import json_object, saved_run
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.words import BASELINES, REPORT_JSON
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
)
"""Settings of students that count under a published protocol; all others are the protocol's. The checksum of a teacher
is beside each student that learnt from it."""
WITHOUT_EFFECT = ("looks", "teacher", "teacher_steps")
"""Settings that change nothing of the last figures under "equal-budget"."""

Student = Mapping[str, Any]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's word on its students under one protocol."""

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
        """Fingerprints of the pairs or images that the students of a set were trained on, one for each of its draws."""
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


def read_run(store: Store, name: str) -> list[FinishedRun]:
    """A finished run and its own students, once for each protocol; those of other models are left out.

    Args:
        name: The run's, for labels.

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
