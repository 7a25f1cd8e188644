"""CovMatch from shards to report: the stages of a run, in order (arXiv 2510.18583)."""

import shlex
import sys
from typing import Any

from mmdd_ray.config import Covmatch
from mmdd_ray.covmatch.moments import read_whole, whole_stage
from mmdd_ray.data import distilled
from mmdd_ray.data.distilled import LEARNT, Sample
from mmdd_ray.data.images import encode_png
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.sets import EVALUATION, check_kept, coreset
from mmdd_ray.export import evaluate_stage, export_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.start import started

JOB = "covmatch_flickr30k"
START = "start.json"
LOSSES = "losses.parquet"
LOSS_COLUMNS = ("step", "covariance", "mean", "contrastive", "total")
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
    with started(settings, JOB, preset) as (run, precomputed):
        features = FeatureStore(precomputed.store)
        check_size(features, settings)
        whole = None
        if settings.match.real_moments == "whole":
            whole = run.stage("moments", lambda stage: whole_stage(stage, None, settings))
        matched = run.stage("match", lambda stage: match(stage, features, whole, settings))
        export_stage(
            run,
            precomputed,
            settings,
            lambda: samples(matched, settings),
            method="CovMatch",
            models={"image encoder": settings.match.image_model, "text encoder": settings.match.text_model},
        )
        evaluated = evaluate_stage(run, "covmatch", features, settings)
        return _report(run, matched, evaluated, settings)


def check_size(features: FeatureStore, settings: Covmatch) -> None:
    """Finds before anything is learnt that there are too few real pairs.

    Raises:
        UserError: There are fewer than `match.pairs` or `match.real_batch`, or clip-score keeps fewer than
            `match.pairs`.
    """
    needs = {"match.pairs": settings.match.pairs}
    if settings.match.iterations:
        needs["match.real_batch"] = settings.match.real_batch
    features.require(needs, settings.data.uri)
    check_kept(features, settings, settings.match.pairs)


def match(stage: Stage, features: FeatureStore, whole: Stage | None, settings: Covmatch) -> StageResult:
    """Learns the pairs, into `learnt_pairs.safetensors`; `start.json` names the real ones that they began as."""
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.covmatch.distill import learn

    matching = settings.match
    start, keys = coreset(
        features,
        matching.init,
        settings.data,
        matching.pairs,
        matching.image_px,
        settings.run.seed,
        settings.evaluation,
    )
    stage.store.write_json(START, {"init": matching.init, "source_keys": keys})
    moments = read_whole(whole.store, settings) if whole else None
    return learn(stage, features, start, moments, settings)


def samples(matched: Stage, settings: Covmatch) -> tuple[list[Sample], LearntPairs]:
    """The learnt pairs, and what people see of them: images rounded to 8 bits and the captions that they began as."""
    learnt = LearntPairs.from_bytes(matched.store.read_bytes(LEARNT))
    keys = matched.store.read_json(START)["source_keys"]
    rows = zip(learnt.images(), learnt.captions, learnt.nearest, keys, strict=True)
    return [
        Sample(
            key=f"{number:06d}",
            image=encode_png(image),
            captions=tuple(captions),
            seed=settings.run.seed,
            source_key=key,
            extra={distilled.NEAREST: nearest},
        )
        for number, (image, captions, nearest, key) in enumerate(rows)
    ], learnt


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
