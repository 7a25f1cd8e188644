"""EDGE from shards to report: the stages of a run, in order (arXiv 2509.15472)."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmdd_ray.config import Edge
from mmdd_ray.data.distilled import Sample, single_captions
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.diffusion.synthesize import draw, read_drawn
from mmdd_ray.draws import draws_of
from mmdd_ray.edge.choose import choose_drawn
from mmdd_ray.edge.prompts import check_prompts, choose_prompts
from mmdd_ray.edge.recaption import read_captions, recaption
from mmdd_ray.errors import UserError
from mmdd_ray.evaluate.beside import beside_real
from mmdd_ray.evaluate.distilled_set import set_name
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.report_texts import REFINED
from mmdd_ray.evaluate.sets import EVALUATION, check_kept
from mmdd_ray.export import evaluate_stage, export_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import read_whole, whole_stage
from mmdd_ray.matching.start import (
    LOSS_COLUMNS as REFINEMENT_COLUMNS,
)
from mmdd_ray.matching.start import (
    LOSSES,
    START,
    learnt_samples,
    require_batch,
    start_of_samples,
)
from mmdd_ray.redact import redact
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.start import started

JOB = "edge_cc3m"
METHOD = "EDGE"
LOSS_COLUMNS = ("step", "contrastive", "diversity", "noise", "total")


def distill(settings: Edge, preset: str) -> dict[str, Any]:
    """Runs whatever is left to do of an EDGE run, and returns its report.

    Call `mmdd_ray.check.check` first, which finds most mistakes before Ray starts.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting.
    """
    with started(settings, JOB, preset) as (run, precomputed):
        features = FeatureStore(precomputed.store)
        check_size(features, settings)
        draws = draws_of(run, settings)
        made = [distill_once(one.run, precomputed, features, one.settings) for one in draws]
        name = set_name(REFINED if settings.refine.iterations else METHOD)
        evaluated = evaluate_stage(name, draws, features)
        return _report(run, features, made[0], evaluated, settings)


@dataclass(frozen=True)
class Made:
    """The stages of one draw that the report reads."""

    tuned: Stage
    drawn: Stage
    chosen: Stage
    refined: Stage | None


def distill_once(run: RunDir, precomputed: Stage, features: FeatureStore, settings: Edge) -> Made:
    """The stages of one draw, up to its set in `distilled/`."""
    tuned = run.stage("finetune", lambda stage: finetune(stage, features, settings))
    drawn = run.stage("synthesize", lambda stage: synthesize(stage, features, tuned, settings))
    chosen = run.stage("choose", lambda stage: choose(stage, features, drawn, settings))
    captioned = run.stage("recaption", lambda stage: caption(stage, drawn, chosen, settings))
    models = {
        "clip": settings.features.clip,
        "generator": settings.finetune.generator,
        "captioner": settings.captions.model,
    }
    method, refined = METHOD, None
    if settings.refine.iterations:
        method = REFINED
        models |= {
            "image encoder": settings.refine.image_model,
            "text encoder": settings.refine.text_model,
        }
        refined = _refined(run, precomputed, (drawn, chosen, captioned), settings)

    def made() -> tuple[list[Sample], LearntPairs | None]:
        if refined:
            return learnt_samples(refined, settings.run.seed)
        return samples(drawn, chosen, captioned, settings), None

    export_stage(run, precomputed, settings, made, method=method, models=models)
    return Made(tuned, drawn, chosen, refined)


def check_size(features: FeatureStore, settings: Edge) -> None:
    """Finds before the fine-tuning that there are too few real pairs for what comes after it."""
    needs = {
        "synthesis.pairs": settings.synthesis.pairs if settings.evaluation.baselines else 0,
        "finetune.batch_pairs": settings.finetune.batch_pairs,
    }
    features.require(needs, settings.data.uri)
    check_prompts(features, settings)
    fraction, images = settings.features.clip_score_fraction, settings.images
    if fraction < 1 and settings.synthesis.candidates_per_image > 1:
        kept = features.agreeing().n_images
        if kept < images:
            raise UserError(
                f"features.clip_score_fraction={fraction:g} leaves {kept:,} images of {redact(settings.data.uri)}, "
                f"whose moments say nothing of {images:,} drawn ones; raise features.clip_score_fraction, or draw one "
                "candidate (synthesis.candidates_per_image=1)"
            )
    require_batch(features, settings)
    check_kept(features, settings, settings.synthesis.pairs)


def finetune(stage: Stage, features: FeatureStore, settings: Edge) -> StageResult:
    """Fine-tunes the generator into the stage's folder `generator/`."""
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.edge.finetune import finetune_generator

    return finetune_generator(stage, features, settings)


def synthesize(stage: Stage, features: FeatureStore, tuned: Stage, settings: Edge) -> StageResult:
    """Draws the candidates from real captions."""
    drawings = choose_prompts(features, settings)
    draw(
        stage,
        drawings,
        tuned.store.child("generator"),
        settings.synthesis,
        image_px=settings.finetune.image_px,
        clip=settings.features.clip,
    )
    return StageResult(rows_in=len(drawings), rows_out=len(drawings))


def choose(stage: Stage, features: FeatureStore, drawn: Stage, settings: Edge) -> StageResult:
    """Decides which candidates to keep, into `choice.json`."""
    candidates = read_drawn(drawn.store)
    choice = choose_drawn(candidates, features.moments(settings.features.clip), settings)
    stage.store.write_json("choice.json", choice)
    figures = {name: choice[name] for name in ("quality", "moment_distance")}
    return StageResult(rows_in=len(candidates), rows_out=len(choice["kept"]), extra=figures)


def caption(stage: Stage, drawn: Stage, chosen: Stage, settings: Edge) -> StageResult:
    """Has further captions written for the images that were kept."""
    kept = _kept(drawn, chosen)
    if settings.captions.per_image > 1:
        recaption(
            stage, {row["index"]: row["image"] for row in kept}, settings.captions, seed=settings.run.seed
        )
    return StageResult(rows_in=len(kept), rows_out=len(kept) * settings.captions.per_image)


def _refined(run: RunDir, precomputed: Stage, made: tuple[Stage, Stage, Stage], settings: Edge) -> Stage:
    """The stage `refine` of a run, after the pass over all real pairs if it needs one.

    Args:
        made: The stages `synthesize`, `choose` and `recaption`.
    """
    whole, features = None, FeatureStore(precomputed.store)
    if settings.refine.real_moments == "whole":
        scored = precomputed.store
        whole = run.shared("moments", lambda stage: whole_stage(stage, None, settings, scored))
    return run.stage(
        "refine", lambda stage: refine(stage, features, whole, samples(*made, settings), settings)
    )


def refine(
    stage: Stage, features: FeatureStore, whole: Stage | None, drawn: Sequence[Sample], settings: Edge
) -> StageResult:
    """Learns pairs that begin as the samples; an image with c captions begins c pairs.

    `start.json` keeps of each pair the seed of its image and the key of the real pair whose caption was the prompt.
    """
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.matching.learn import learn

    single = single_captions(drawn)
    about = {
        "init": METHOD,
        "source_keys": [sample.source_key for sample in single],
        "seeds": [sample.seed for sample in single],
    }
    stage.store.write_json(START, about)
    moments = read_whole(whole.store, settings) if whole else None
    return learn(stage, features, start_of_samples(single, settings.refine.image_px), moments, settings)


def samples(drawn: Stage, chosen: Stage, captioned: Stage, settings: Edge) -> list[Sample]:
    """The distilled set: the images that were kept, each with its prompt and the written captions."""
    written = read_captions(captioned.store) if settings.captions.per_image > 1 else {}
    return [
        Sample(
            key=f"{number:06d}",
            image=row["image"],
            # A captioner that has nothing to say leaves the prompt, so that the set keeps its size.
            captions=(row["prompt"], *(text or row["prompt"] for text in written.get(row["index"], ()))),
            seed=row["seed"],
            source_key=row["source_key"],
        )
        for number, row in enumerate(_kept(drawn, chosen))
    ]


def _kept(drawn: Stage, chosen: Stage) -> list[dict[str, Any]]:
    kept = set(chosen.store.read_json("choice.json")["kept"])
    return [row for row in read_drawn(drawn.store).to_pylist() if row["index"] in kept]


def _report(
    run: RunDir, features: FeatureStore, made: Made, evaluated: Stage, settings: Edge
) -> dict[str, Any]:
    agreement, pairs = beside_real(_kept(made.drawn, made.chosen), features, settings.data)
    refinement = made.refined.store.read_parquet(LOSSES).to_pydict() if made.refined else {}
    losses = made.tuned.store.read_parquet("losses.parquet").to_pydict()
    quality = made.chosen.store.read_json("choice.json")["quality"]
    report = build_report(
        run.store,
        evaluated.store.read_json(EVALUATION),
        losses={name: losses[name] for name in LOSS_COLUMNS if name in losses},
        refinement={name: refinement[name] for name in REFINEMENT_COLUMNS if name in refinement},
        quality={name: {"distilled set": value} for name, value in quality.items()},
        agreement=agreement,
        command=shlex.join(["python", *sys.argv]),
    )
    write_report(report, run.store, pairs)
    return report
