"""CovMatch from shards to report: the stages of a run, in order (arXiv 2510.18583)."""

import shlex
import sys
from typing import Any

from mmdd_ray.config import Covmatch
from mmdd_ray.data.distilled import Sample
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.data.start_set import StartSet, read_start_set
from mmdd_ray.draws import draws_of
from mmdd_ray.evaluate.distilled_set import set_stage
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.sets import EVALUATION, check_kept, coreset
from mmdd_ray.export import evaluate_stage, export_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import read_whole, whole_stage
from mmdd_ray.matching.start import (
    LOSS_COLUMNS,
    LOSSES,
    START,
    Start,
    learnt_samples,
    require_batch,
    start_of_set,
)
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.start import started

JOB = "covmatch_flickr30k"
SAMPLING_ERRORS = {
    "cross_sampling_error": "error of C_vl of a real batch",
    "mean_sampling_error": "error of the means of a real batch",
}


def distill(settings: Covmatch, preset: str) -> dict[str, Any]:
    """Runs whatever is left to do of a CovMatch run, and returns its report.

    Call `mmdd_ray.check.check` first, which finds most mistakes before Ray starts.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting.
    """
    given = read_start_set(settings.match) if settings.match.start_set else None
    with started(settings, JOB, preset) as (run, precomputed):
        features = FeatureStore(precomputed.store)
        check_size(features, settings)
        whole = None
        if settings.match.real_moments == "whole":
            scored = precomputed.store
            whole = run.stage("moments", lambda stage: whole_stage(stage, None, settings, scored))
        if given:
            set_stage(run, given.about)  # another set in its place has what follows learnt again
        draws = draws_of(run, settings)
        matched, *_ = [
            distill_once(one.run, precomputed, features, whole, given, one.settings) for one in draws
        ]
        evaluated = evaluate_stage("covmatch", draws, features)
        return _report(run, matched, evaluated, settings)


def distill_once(
    run: RunDir,
    precomputed: Stage,
    features: FeatureStore,
    whole: Stage | None,
    given: StartSet | None,
    settings: Covmatch,
) -> Stage:
    """The stages of one draw, up to its set in `distilled/`; gives `match`."""
    matched = run.stage("match", lambda stage: match(stage, features, whole, settings, given))
    export_stage(
        run,
        precomputed,
        settings,
        lambda: samples(matched, settings),
        method="CovMatch",
        models={"image encoder": settings.match.image_model, "text encoder": settings.match.text_model},
        inputs={"start": matched.store.read_json(START)["set"]} if given else {},
    )
    return matched


def check_size(features: FeatureStore, settings: Covmatch) -> None:
    """Finds before anything is learnt that there are too few real pairs.

    Raises:
        UserError: There are fewer than `match.pairs` or `match.real_batch`, or clip-score keeps fewer than
            `match.pairs`.
    """
    if settings.match.start_set is None or settings.evaluation.baselines:
        features.require({"match.pairs": settings.match.pairs}, settings.data.uri)
    require_batch(features, settings)
    check_kept(features, settings, settings.match.pairs)


def match(
    stage: Stage,
    features: FeatureStore,
    whole: Stage | None,
    settings: Covmatch,
    given: StartSet | None = None,
) -> StageResult:
    """Learns the pairs, into `learnt_pairs.safetensors`; `start.json` names the real ones that they began as.

    Args:
        given: The set that `match.init` names, if it names one.
    """
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.matching.learn import learn

    start = start_of_set(given, settings.match) if given else _real_start(features, settings)
    stage.store.write_json(START, start.about)
    moments = read_whole(whole.store, settings) if whole else None
    return learn(stage, features, start.pairs, moments, settings)


def _real_start(features: FeatureStore, settings: Covmatch) -> Start:
    matching = settings.match
    pairs, keys = coreset(
        features,
        matching.init,
        settings.data,
        matching.pairs,
        matching.image_px,
        settings.run.seed,
        settings.evaluation,
    )
    return Start(pairs, {"init": matching.init, "source_keys": keys})


def samples(matched: Stage, settings: Covmatch) -> tuple[list[Sample], LearntPairs]:
    """What is exported of the learnt pairs."""
    return learnt_samples(matched, settings.run.seed)


def _report(run: RunDir, matched: Stage, evaluated: Stage, settings: Covmatch) -> dict[str, Any]:
    losses = matched.store.read_parquet(LOSSES).to_pydict()
    errors = {
        shown: [value for value in losses[name] if value is not None]
        for name, shown in SAMPLING_ERRORS.items()
        if name in losses
    }
    report = build_report(
        run.store,
        evaluated.store.read_json(EVALUATION),
        losses={name: losses[name] for name in LOSS_COLUMNS if name in losses},
        quality={
            shown: {
                f"mean over {len(found)} batches of {settings.match.real_batch} pairs": sum(found)
                / len(found)
            }
            for shown, found in errors.items()
        },
        command=shlex.join(["python", *sys.argv]),
    )
    write_report(report, run.store)
    return report
