"""The content of ``report.json``, from the manifests of a run directory and the figures of its comparison."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray.distilled.sample import FOLDER
from mmdd_ray.engine.run_dir import DRAWS, MANIFEST, SETTINGS
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS, extra_metrics
from mmdd_ray.evaluation.report.differences import are_same, differences
from mmdd_ray.evaluation.report.outcome import outcomes
from mmdd_ray.evaluation.report.stages import (
    all_rejects,
    beside_plan,
    merged,
    reject_examples,
    seconds_of_sets,
    stage_manifests,
    untimed_sets,
)
from mmdd_ray.evaluation.report.standing import SAME, standing
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, FULL, REPORT_HTML, REPORT_JSON, set_name
from mmdd_ray.planning.plan import planned_stages
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def build_report(
    run: Store,
    evaluation: Mapping[str, Any] | None = None,
    *,
    losses: Mapping[str, Sequence[float]] | None = None,
    refinement: Mapping[str, Sequence[float]] | None = None,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    agreement: Mapping[str, float] | None = None,
    audit: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    commits: Mapping[str, str] | None = None,
    preset_settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """The content of ``report.json``, from the manifests of the run directory ``run`` and these figures.

    Args:
        evaluation: result of ``compare``; without one the report has no scores.
        losses: columns of the method's loss curve: ``step`` and one for each term.
        refinement: columns of the loss curve of a refinement that followed.
        quality: of the synthetic pairs: columns of each figure, e.g. ``{"alignment": {"before": …, "after": …}}``.
        agreement: of real and of drawn images with their captions, as ``beside_real`` gives it.
        audit: of the distilled set, as ``audit_set`` writes it.
        labels: of sets, where people write them otherwise than files.
        words: titles and notes of the method's part.
        commits: that data on the Hugging Face hub were read at, by repository and revision.
        preset_settings: as the preset of the run has them, resolved; None where it is not known.
        command: what the user typed to start the run.

    Scores are in percent: ``scores.<set>.<metric>`` = ``{mean, std, runs}`` with the metrics ``METRICS`` of ``task``;
    for a set that was drawn several times also ``{draw_means, std_between_draws}``, as ``spread`` says. ``draws`` are
    the distilled sets of the run, of which ``distilled``, losses and quality are the first.
    ``protocol`` is how students were trained and tested, ``models`` are those that were; ``best_looks`` has the scores
    at the best look of each student at the test data, where a publication reports that. ``panels`` are the same figures
    under further protocols and of further students.
    ``standings.<distilled set>.<baseline>`` says which of the two scores higher, in the words of ``standing``, by the
    metric that decides. ``differences`` are as ``differences.differences`` gives them.
    ``by_pairs`` is the deciding metric of parts of a set, each of which holds the smaller ones.
    ``given`` says of each set that the user named where it is from and how it was read.
    ``extra_scores`` has the same for zero-shot classification, linear probes and compositional captions, where students
    were asked for them.
    ``real_images`` are the usable ones of the source, of which "full" may be a random part; ``seconds`` of a stage
    that was ``resumed`` are those of its last attempt; ``planned_…`` is what the plan said before, or None.
    ``outcome`` says in words how each distilled set compares, and what in the run's figures may be the reason, as
    ``outcome.outcomes`` gives it. ``changed`` has the value of the preset for each setting that differs from it, by
    ``section.field``; None where the preset is not known. ``seconds_of_sets`` is what ``stages.seconds_of_sets`` gives,
    ``untimed_sets`` what ``stages.untimed_sets`` gives.
    """
    saved = run.read_json(SETTINGS)
    folders = _draw_folders(saved["settings"])
    stages = stage_manifests(run, folders)
    features = stages.get("features")
    report = {
        "job": saved["job"],
        "preset": saved["preset"],
        "command": redact(command),
        **_of_evaluation(evaluation),
        "real_images": features["rows_out"] if features else None,
        "source": features["extra"].get("source") if features else None,
        "commits": dict(commits or {}),
        "stages": beside_plan(stages, planned_stages(run)),
        "seconds": round(sum(manifest["seconds"] for manifest in stages.values()), 3),
        "rejects": all_rejects(stages),
        "reject_examples": reject_examples(run),
        "losses": _curves(losses),
        "refinement": _curves(refinement),
        "quality": {name: dict(values) for name, values in (quality or {}).items()},
        "agreement": dict(agreement or {}),
        "audit": dict(audit or {}),
        "words": dict(words or {}),
        "devices": merged(manifest["devices"] for manifest in stages.values()),
        "versions": merged(manifest["versions"] for manifest in stages.values()),
        "settings": saved["settings"],
        "changed": None if preset_settings is None else changed(saved["settings"], preset_settings),
        **_of_distilled(run, saved["job"], folders, labels or {}),
    }
    ours = set_name(report["method"]) if report["distilled"] else ""
    report["seconds_of_sets"] = seconds_of_sets(stages, ours) if ours else {}
    report["untimed_sets"] = untimed_sets(stages, ours, [*report["sets"]]) if ours else {}
    report["outcome"] = outcomes(report, ours)
    return report


def changed(saved: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's value of each setting that differs from it, by ``section.field``."""
    ours, theirs = _flat(saved), _flat(json.loads(json.dumps(preset)))  # tuples become lists, as in the file
    return {name: theirs.get(name) for name, value in ours.items() if value != theirs.get(name)}


def _flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found


def _of_evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a report about students, if there were any."""
    if not evaluation:
        return {
            "task": None,
            "protocol": None,
            "models": "",
            "folder": "",
            "notes": {},
            "scores": {},
            "extra_scores": {},
            "best_looks": {},
            "standings": {},
            "differences": {},
            "sets": {},
            "given": {},
            "held_out": {},
            "panels": [],
            "by_pairs": {},
        }
    return {
        "task": evaluation["task"],
        **_panel(evaluation),
        "given": evaluation.get("given", {}),
        "held_out": evaluation.get("held_out", {}),
        "panels": [_panel(one) for one in evaluation["others"]],
        "by_pairs": evaluation.get("by_pairs", {}),
    }


def _panel(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The figures under one protocol, with one kind of student."""
    scores = _scores(evaluation, METRICS[evaluation["task"]])
    prints = {
        name: one.get("fingerprints", ()) for name, one in evaluation["sets"].items()
    }  # older runs: none
    return {
        "protocol": evaluation["protocol"],
        "models": evaluation["models"],
        "folder": evaluation["folder"],
        "notes": evaluation["notes"],
        "scores": scores,
        "extra_scores": _extra_scores(evaluation),
        "best_looks": {
            name: one["best_look"] for name, one in _ordered(evaluation["sets"]) if one["best_look"]
        },
        "standings": _standings(scores, MAIN_METRIC[evaluation["task"]], prints),
        "differences": differences(scores, prints),
        "sets": _without_metrics(evaluation["sets"]),
    }


def _of_distilled(run: Store, job: str, folders: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The part of a report about the distilled set, if the run made one."""
    files = {name: redact(run.path(name)) for name in (REPORT_HTML, REPORT_JSON)}
    if not run.exists(f"{FOLDER}/{MANIFEST}"):
        return {"method": job, "distilled": None, "draws": [], "labels": dict(labels), "files": files}
    distilled = run.read_json(f"{FOLDER}/{MANIFEST}")
    shown = ("images", "pairs", "captions_per_image", "bytes", "checksum")
    return {
        "method": distilled["method"],
        "distilled": {key: distilled[key] for key in shown},
        "draws": [_draw(run, folder) for folder in folders],
        "labels": {set_name(distilled["method"]): distilled["method"]} | dict(labels),
        "files": files | {FOLDER: redact(run.path(FOLDER))},
    }


def _without_metrics(sets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    left_out = ("metrics", "best_look")
    return {
        name: {key: value for key, value in one.items() if key not in left_out}
        for name, one in _ordered(sets)
    }


def _draw_folders(settings: Mapping[str, Any]) -> list[str]:
    """Where the draws of a run with these settings lie in it: as prefixes of names."""
    draws = settings.get("evaluation", {}).get("draws", 1)
    return ["", *(f"{DRAWS}/{number}/" for number in range(1, draws))]


def _draw(run: Store, folder: str) -> dict[str, Any]:
    manifest = run.read_json(f"{folder}{FOLDER}/{MANIFEST}")
    return {"set": f"{folder}{FOLDER}", **{key: manifest[key] for key in ("seed", "checksum")}}


def _extra_scores(evaluation: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of tests that only some comparisons have; none where there was no such test."""
    names = extra_metrics(evaluation["chance"], evaluation["task"])
    return _scores(evaluation, names) if names else {}


def _scores(evaluation: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    chance = evaluation["chance"]
    scores = {
        name: {metric: dict(one["metrics"][metric]) for metric in metrics}
        for name, one in _ordered(evaluation["sets"])
    }
    scores[CHANCE] = {
        metric: {"mean": chance[metric], "std": 0.0, "runs": [chance[metric]]} for metric in metrics
    }
    return scores


def _standings(
    scores: Mapping[str, Any], metric: str, prints: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    """Where each distilled set stands beside each baseline of its size."""
    baselines = [name for name in scores if name in BASELINES and name != FULL]
    ours = [name for name in scores if name not in (*BASELINES, CHANCE)] if baselines else []
    return {
        name: {
            other: SAME
            if are_same(name, other, prints)
            else standing(scores[name][metric], scores[other][metric])
            for other in baselines
        }
        for name in ours
    }


def _ordered(sets: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The distilled set first, the full data last."""
    place = {name: i for i, name in enumerate(BASELINES)}
    return sorted(sets.items(), key=lambda item: place.get(item[0], -1))


def _curves(columns: Mapping[str, Sequence[float]] | None) -> dict[str, list[float | None]]:
    return {name: [_finite(value) for value in values] for name, values in (columns or {}).items()}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN
