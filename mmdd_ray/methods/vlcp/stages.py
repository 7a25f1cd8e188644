"""VLCP from shards to report: the stages of a run, in order (Zou et al., ICCV 2025, arXiv 2506.23580)."""

from collections.abc import Sequence
from typing import Any

import ray

from mmdd_ray.data.inventory import Source
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.diffusion.synthesize import SampleRequest, draw, read_drawn
from mmdd_ray.distilled.read import read_distilled
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.engine.run_dir import LOSSES, StageDir, StageResult
from mmdd_ray.evaluation.compare_labelled import compare_classifiers
from mmdd_ray.evaluation.labelled_sets import labelled_images
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.method import Context, Figures, Stage, Steps
from mmdd_ray.methods.shared_stages import (
    FEATURES,
    audit_stage,
    classifiers_comparison,
    export_stage,
    features_of,
    set_folder,
    teacher_stage,
)
from mmdd_ray.methods.vlcp.describe import (
    CLASSES,
    Descriptions,
    ImageClass,
    check_names,
    describe_images,
    read_classes,
)
from mmdd_ray.methods.vlcp.latents import encode_latents, find_prototypes, read_prototypes
from mmdd_ray.methods.vlcp.preflight import needs
from mmdd_ray.methods.vlcp.settings import Vlcp, VlcpSynthesis
from mmdd_ray.methods.vlcp.synthesize import guided, prompted, sample_requests
from mmdd_ray.planning.costs import (
    FEATURE_BYTES,
    StageCost,
    drawing_cost,
    finetune_cost,
)
from mmdd_ray.storage.store import Store

TITLE = "VLCP"
LOSS_COLUMNS = ("step", "noise")


def finetune(stage: StageDir, features: FeatureStore, texts: Descriptions, settings: Vlcp) -> StageResult:
    """Fine-tunes the generator on (image, description) into the stage's folder `generator/`."""
    # here, because they bring torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.diffusion.finetune import finetune as train
    from mmdd_ray.diffusion.objective import NoiseObjective

    tuning, seed = settings.finetune, settings.run.seed
    pairs = training_pairs(
        settings.data, image_px=tuning.image_px, seed=seed, excluded=features.duplicates(), texts=texts.of
    )
    return train(pairs, tuning, NoiseObjective(tuning), seed=seed, stage=stage)


def synthesize(
    stage: StageDir, found: StageDir, tuned: StageDir, texts: Descriptions, settings: Vlcp
) -> StageResult:
    """Draws an image from each prototype."""
    requests = sample_requests(read_prototypes(found.store), texts, settings.synthesis, settings.run.seed)
    return _draw(stage, requests, tuned.store.child("generator"), found.store, settings)


def draw_prompts(
    stage: StageDir, classes: list[ImageClass], texts: Descriptions, settings: Vlcp
) -> StageResult:
    """Draws the baseline that knows no more than the names of the classes, by the generator as it is."""
    requests = prompted(classes, settings.prototypes.images_per_class, texts, settings.run.seed)
    return _draw(stage, requests, settings.finetune.generator, None, settings)


def _draw(
    stage: StageDir,
    requests: list[SampleRequest],
    generator: Store | str,
    prototypes: Store | None,
    settings: Vlcp,
) -> StageResult:
    synthesis, px = settings.synthesis, settings.finetune.image_px
    return draw(stage, requests, generator, synthesis, image_px=px, guided=guided(synthesis, prototypes))


def samples(
    found: StageDir, drawn: StageDir, classes: list[ImageClass], synthesis: VlcpSynthesis
) -> list[Sample]:
    """The distilled set: an image of each prototype with its text, its class, and what of the data it comes from."""
    names = {one.label: one.name for one in classes}
    return [
        Sample(
            key=f"{number:06d}",
            image=row["image"],
            captions=(row["prompt"],),
            seed=row["seed"],
            source_key=prototype["text_key"] if synthesis.use_text else "",
            label=prototype["label"],
            extra={
                "class_name": names[prototype["label"]],
                "cluster": prototype["members"] if synthesis.use_image else [],
            },
        )
        for number, (prototype, row) in enumerate(
            zip(read_prototypes(found.store), read_drawn(drawn.store).to_pylist(), strict=True)
        )
    ]


def _exported(distilled: Store, labels: tuple[int, ...], px: int) -> ray.ObjectRef[Any]:
    samples = read_distilled(distilled)
    own = [sample.label for sample in samples if sample.label is not None]
    return ray.put(labelled_images([sample.image for sample in samples], own, labels, px))


def _prompted(drawn: Store, labels: tuple[int, ...], per_class: int, px: int) -> ray.ObjectRef[Any]:
    images = read_drawn(drawn)["image"].to_pylist()
    return ray.put(labelled_images(images, [label for label in labels for _ in range(per_class)], labels, px))


def _found_classes(context: Context[Vlcp]) -> list[ImageClass]:
    """The classes by the features, which takes a pass over all of their labels."""
    settings = context.settings
    return read_classes(features_of(context), settings.data, settings.describe)


def _classes(context: Context[Vlcp]) -> list[ImageClass]:
    """The classes that the stage `describe` has noted."""
    return [ImageClass(**one) for one in context.store("describe").read_json(CLASSES)]


def _texts(context: Context[Vlcp]) -> Descriptions:
    described = context.done["describe"]
    names = {one.label: one.name for one in _classes(context)}
    return Descriptions(context.settings.describe, names, described.store, described.manifest["finished"])


def _check(context: Context[Vlcp]) -> None:
    """Finds before anything is described that images or names of classes are missing, or are others than before."""
    settings = context.settings
    classes = _found_classes(context)
    features_of(context).require(needs(settings), settings.data.uri)
    check_names(context.run.store.child("describe"), classes, settings.describe.class_names)


def _find(stage: StageDir, context: Context[Vlcp]) -> StageResult:
    settings, duplicates = context.settings, features_of(context).duplicates()
    latents, classes = context.store("latents"), _classes(context)
    return find_prototypes(stage, latents, classes, duplicates, settings.prototypes, settings.run.seed)


def _roles(settings: Vlcp) -> dict[str, str]:
    """Names of the models that made the set, by their role."""
    models = {"clip": settings.features.clip, "generator": settings.finetune.generator}
    return models | ({"describer": settings.describe.model} if settings.describe.source == "vlm" else {})


def _compare(stage: StageDir, contexts: Sequence[Context[Vlcp]]) -> StageResult:
    """Trains classifiers on the exported sets, on drawings from prompts, and on real images."""
    first = contexts[0]
    settings, texts = first.settings, _texts(first)
    labels = tuple(texts.names)
    px, per_class = settings.classifiers.image_px, settings.prototypes.images_per_class
    sets = {"vlcp": [_exported(set_folder(one), labels, px) for one in contexts]}
    prompted = [one.store("prompts") for one in contexts if "prompts" in one.done]
    if prompted:
        sets["prompts"] = [_prompted(store, labels, per_class, px) for store in prompted]
    return compare_classifiers(
        stage,
        sets,
        texts.templates(),
        features_of(first),
        [one.draw.compared for one in contexts],
        first.run.store,
        per_class=per_class,
        captioned=settings.describe.source == "captions",
    )


def _figures(context: Context[Vlcp]) -> Figures:
    losses = context.store("finetune").read_parquet(LOSSES).to_pydict()
    return Figures(losses={name: losses[name] for name in LOSS_COLUMNS if name in losses})


# ---- what the stages cost


def _describe_cost(settings: Vlcp, source: Source) -> StageCost | None:
    describe = settings.describe
    if describe.source != "vlm":
        return None
    return StageCost(
        units=source.rows,
        unit="images",
        uses=f"{describe.model} at {describe.image_px} px, {describe.max_new_tokens} tokens",
        actors=describe.max_actors,
        gpus_each=describe.gpus_per_actor,
        section="describe",
        batches=f"{describe.chunk_images} images",
        passes=1,
        writes_bytes=source.rows * describe.max_new_tokens * 4,
    )


def _latents_cost(settings: Vlcp, source: Source) -> StageCost:
    prototypes, px = settings.prototypes, settings.finetune.image_px
    latent_bytes = 4 * (px // 8) ** 2 * FEATURE_BYTES  # of Stable Diffusion's VAEs
    return StageCost(
        units=source.rows,
        unit="images",
        uses=f"{settings.finetune.generator} at {px} px",
        actors=prototypes.max_actors,
        gpus_each=prototypes.gpus_per_actor,
        section="prototypes",
        batches=f"{prototypes.chunk_images} images",
        passes=1,
        writes_bytes=source.rows * latent_bytes,
    )


def _prototypes_cost(settings: Vlcp, source: Source) -> StageCost:
    uses = f"{settings.finetune.image_px} px, {settings.prototypes.images_per_class} each"
    return StageCost(units=source.rows, unit="images", uses=uses, section="prototypes")


def _images(settings: Vlcp, source: Source) -> int:
    return source.classes * settings.prototypes.images_per_class


STEPS: Steps[Vlcp] = Steps(
    stages=(
        FEATURES,
        teacher_stage(("features",), lambda context: tuple(one.label for one in _found_classes(context))),
        Stage(
            name="describe",
            needs=("features",),
            run=lambda stage, context: describe_images(
                stage, context.settings.data, context.settings.describe, _found_classes(context)
            ),
            cost=_describe_cost,
            shared=True,
        ),
        Stage(
            name="finetune",
            needs=("features", "describe"),
            run=lambda stage, context: finetune(
                stage, features_of(context), _texts(context), context.settings
            ),
            cost=lambda settings, source: finetune_cost(settings.finetune, source),
        ),
        Stage(
            name="latents",
            needs=("features", "describe"),
            run=lambda stage, context: encode_latents(
                stage,
                context.settings.data,
                context.settings.finetune,
                context.settings.prototypes,
                _texts(context),
            ),
            cost=_latents_cost,
            shared=True,
        ),
        Stage(name="prototypes", needs=("features", "describe", "latents"), run=_find, cost=_prototypes_cost),
        Stage(
            name="synthesize",
            needs=("describe", "finetune", "prototypes"),
            run=lambda stage, context: synthesize(
                stage, context.done["prototypes"], context.done["finetune"], _texts(context), context.settings
            ),
            cost=lambda settings, source: drawing_cost(
                settings.synthesis, settings.finetune, _images(settings, source), settings.synthesis.strength
            ),
        ),
        export_stage(
            ("describe", "prototypes", "synthesize"),
            lambda context: (
                samples(
                    context.done["prototypes"],
                    context.done["synthesize"],
                    _classes(context),
                    context.settings.synthesis,
                ),
                None,
            ),
            method=lambda settings: TITLE,
            models=_roles,
            class_names=lambda context: {one.label: one.name for one in _classes(context)},
        ),
        Stage(
            name="prompts",
            needs=("describe",),
            run=lambda stage, context: draw_prompts(
                stage, _classes(context), _texts(context), context.settings
            ),
            wanted=lambda settings: "prompts" in settings.evaluation.baselines,
            cost=lambda settings, source: drawing_cost(
                settings.synthesis, settings.finetune, _images(settings, source)
            ),
        ),
        audit_stage(_images),
    ),
    compare=classifiers_comparison(_compare, ("features", "describe", "export", "prompts")),
    before=_check,
    figures=_figures,
)
