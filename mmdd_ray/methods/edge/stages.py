"""EDGE from shards to report: the stages of a run, in order (arXiv 2509.15472)."""

from collections.abc import Sequence
from typing import Any

from mmdd_ray.data.inventory import Source
from mmdd_ray.diffusion.synthesize import draw, read_drawn
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import Sample, single_captions
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.report.beside import beside_real
from mmdd_ray.evaluation.report.words import set_name
from mmdd_ray.evaluation.sets import check_kept
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.costs import learning_cost
from mmdd_ray.matching.moments import read_whole
from mmdd_ray.matching.start import LOSS_COLUMNS as REFINEMENT_COLUMNS
from mmdd_ray.matching.start import START, learnt_samples, require_batch, start_of_samples
from mmdd_ray.methods.edge.choose import choose_drawn
from mmdd_ray.methods.edge.preflight import needs
from mmdd_ray.methods.edge.prompts import check_prompts, choose_prompts
from mmdd_ray.methods.edge.recaption import read_captions, recaption
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import (
    FEATURES,
    MOMENTS_OF_ALL,
    audit_stage,
    coresets_stage,
    export_stage,
    features_of,
    students_comparison,
)
from mmdd_ray.planning.costs import StageCost, drawing_cost, finetune_cost
from mmdd_ray.storage.redact import redact

TITLE = "EDGE"
REFINED = "EDGE refined by CovMatch"
LOSS_COLUMNS = ("step", "contrastive", "diversity", "noise", "total")


def title(settings: Edge) -> str:
    """The name of the method that made the set, as people write it."""
    return REFINED if settings.refine.iterations else TITLE


def check_size(features: FeatureStore, settings: Edge) -> None:
    """Finds before the fine-tuning that there are too few real pairs for what comes after it."""
    features.require(needs(settings), settings.data.uri)
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


def finetune(stage: StageDir, features: FeatureStore, settings: Edge) -> StageResult:
    """Fine-tunes the generator into the stage's folder `generator/`."""
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.methods.edge.finetune import finetune_generator

    return finetune_generator(stage, features, settings)


def synthesize(stage: StageDir, features: FeatureStore, tuned: StageDir, settings: Edge) -> StageResult:
    """Draws the candidates from real captions."""
    requests = choose_prompts(features, settings)
    return draw(
        stage,
        requests,
        tuned.store.child("generator"),
        settings.synthesis,
        image_px=settings.finetune.image_px,
        clip=settings.features.clip,
    )


def choose(stage: StageDir, features: FeatureStore, drawn: StageDir, settings: Edge) -> StageResult:
    """Decides which candidates to keep, into `choice.json`."""
    candidates = read_drawn(drawn.store)
    choice = choose_drawn(candidates, features.moments(settings.features.clip), settings)
    stage.store.write_json("choice.json", choice)
    figures = {name: choice[name] for name in ("quality", "moment_distance")}
    return StageResult(rows_in=len(candidates), rows_out=len(choice["kept"]), extra=figures)


def caption(stage: StageDir, drawn: StageDir, chosen: StageDir, settings: Edge) -> StageResult:
    """Has further captions written for the images that were kept."""
    kept = _kept(drawn, chosen)
    facts: dict[str, int] = {}
    if settings.captions.per_image > 1:
        images = {row["index"]: row["image"] for row in kept}
        facts = recaption(stage, images, settings.captions, seed=settings.run.seed)
    return StageResult(rows_in=len(kept), rows_out=len(kept) * settings.captions.per_image, extra=facts)


def refine(
    stage: StageDir, features: FeatureStore, whole: StageDir | None, drawn: Sequence[Sample], settings: Edge
) -> StageResult:
    """Learns pairs that begin as the samples; an image with c captions begins c pairs.

    `start.json` keeps of each pair the seed of its image and the key of the real pair whose caption was the prompt.
    """
    # here, because it brings torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.matching.learn import learn

    single = single_captions(drawn)
    about = {
        "init": TITLE,
        "source_keys": [sample.source_key for sample in single],
        "seeds": [sample.seed for sample in single],
    }
    stage.store.write_json(START, about)
    moments = read_whole(whole.store, settings) if whole else None
    return learn(stage, features, start_of_samples(single, settings.refine.image_px), moments, settings)


def samples(drawn: StageDir, chosen: StageDir, captioned: StageDir, settings: Edge) -> list[Sample]:
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


def _kept(drawn: StageDir, chosen: StageDir) -> list[dict[str, Any]]:
    kept = set(chosen.store.read_json("choice.json")["kept"])
    return [row for row in read_drawn(drawn.store).to_pylist() if row["index"] in kept]


def _recaption_cost(settings: Edge, source: Source) -> StageCost | None:
    captions = settings.captions
    if captions.per_image == 1:
        return None
    return StageCost(
        units=settings.images * (captions.per_image - 1),
        unit="captions",
        uses=f"{captions.model}, {captions.max_new_tokens} tokens",
        actors=captions.max_actors,
        gpus_each=captions.gpus_per_actor,
        section="captions",
        batches=f"{captions.batch_images} images",
    )


def _made(context: Context[Edge]) -> tuple[list[Sample], LearntPairs | None]:
    """The samples and learnt pairs to export."""
    if "refine" in context.done:
        return learnt_samples(context.done["refine"], context.settings.run.seed)
    return _samples(context), None


def _samples(context: Context[Edge]) -> list[Sample]:
    drawn, chosen, captioned = (context.done[name] for name in ("synthesize", "choose", "recaption"))
    return samples(drawn, chosen, captioned, context.settings)


def _refine(stage: StageDir, context: Context[Edge]) -> StageResult:
    return refine(
        stage, features_of(context), context.done.get("moments"), _samples(context), context.settings
    )


def _roles(settings: Edge) -> dict[str, str]:
    """Names of the models that made the set, by their role."""
    models = {
        "clip": settings.features.clip,
        "generator": settings.finetune.generator,
        "captioner": settings.captions.model,
    }
    if settings.refine.iterations:
        models |= {
            "image encoder": settings.refine.image_model,
            "text encoder": settings.refine.text_model,
        }
    return models


def _figures(context: Context[Edge]) -> Figures:
    """Curves and qualities for the report, and real pairs beside what was drawn for their captions."""
    done, settings = context.done, context.settings
    kept = _kept(done["synthesize"], done["choose"])
    agreement, pairs = beside_real(kept, features_of(context), settings.data)
    losses = done["finetune"].store.read_parquet(LOSSES).to_pydict()
    refinement = done["refine"].store.read_parquet(LOSSES).to_pydict() if "refine" in done else {}
    quality = done["choose"].store.read_json("choice.json")["quality"]
    return Figures(
        losses={name: losses[name] for name in LOSS_COLUMNS if name in losses},
        refinement={name: refinement[name] for name in REFINEMENT_COLUMNS if name in refinement},
        quality={name: {"distilled set": value} for name, value in quality.items()},
        agreement=agreement,
        beside=pairs,
    )


STEPS: Steps[Edge] = Steps(
    stages=(
        FEATURES,
        Stage(
            name="finetune",
            needs=("features",),
            run=lambda stage, context: finetune(stage, features_of(context), context.settings),
            cost=lambda settings, source: finetune_cost(
                settings.finetune,
                source,
                f"losses on {settings.finetune.space}",
                settings.features.clip if settings.finetune.space == "clip" else None,
            ),
        ),
        Stage(
            name="synthesize",
            needs=("features", "finetune"),
            run=lambda stage, context: synthesize(
                stage, features_of(context), context.done["finetune"], context.settings
            ),
            cost=lambda settings, source: drawing_cost(
                settings.synthesis, settings.finetune, settings.candidates, clip=settings.features.clip
            ),
        ),
        Stage(
            name="choose",
            needs=("features", "synthesize"),
            run=lambda stage, context: choose(
                stage, features_of(context), context.done["synthesize"], context.settings
            ),
        ),
        Stage(
            name="recaption",
            needs=("synthesize", "choose"),
            run=lambda stage, context: caption(
                stage, context.done["synthesize"], context.done["choose"], context.settings
            ),
            cost=_recaption_cost,
        ),
        MOMENTS_OF_ALL,
        Stage(
            name="refine",
            needs=("features", "synthesize", "choose", "recaption", "moments"),
            run=_refine,
            wanted=lambda settings: settings.refine.iterations > 0,
            cost=lambda settings, source: learning_cost(settings, source, settings.synthesis.pairs),
        ),
        export_stage(("synthesize", "choose", "recaption", "refine"), _made, method=title, models=_roles),
        coresets_stage(lambda settings: settings.synthesis.pairs),
        audit_stage(lambda settings, source: settings.images),
    ),
    compare=students_comparison(lambda settings: set_name(title(settings))),
    before=lambda context: check_size(features_of(context), context.settings),
    figures=_figures,
)
