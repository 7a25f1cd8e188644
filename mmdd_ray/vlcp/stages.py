"""VLCP from shards to report: the stages of a run, in order (Zou et al., ICCV 2025, arXiv 2506.23580)."""

import shlex
import sys
from collections.abc import Sequence
from typing import Any

import ray

from mmdd_ray.config import Vlcp, VlcpSynthesis
from mmdd_ray.data.distilled import FOLDER, Sample, read_distilled
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.draws import Draw, draws_of
from mmdd_ray.evaluate.labelled_sets import compare_classifiers, labelled_images
from mmdd_ray.evaluate.report import build_report, write_report
from mmdd_ray.evaluate.sets import EVALUATION
from mmdd_ray.export import export_stage
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.start import started
from mmdd_ray.store import Store
from mmdd_ray.vlcp.describe import Descriptions, ImageClass, check_names, describe_images, read_classes
from mmdd_ray.vlcp.latents import encode_latents, find_prototypes, read_prototypes
from mmdd_ray.vlcp.synthesize import draw, drawings_of, prompted, read_drawn

JOB = "vlcp_imagenette"
LOSS_COLUMNS = ("step", "noise")


def distill(settings: Vlcp, preset: str) -> dict[str, Any]:
    """Runs whatever is left to do of a VLCP run, and returns its report.

    Call `mmdd_ray.check.check` first, which finds most mistakes before Ray starts.

    Raises:
        ValueError: Something in the settings or the data is wrong; one sentence that names the setting.
    """
    with started(settings, JOB, preset) as (run, precomputed):
        features = FeatureStore(precomputed.store)
        classes = read_classes(features, settings.data, settings.describe)
        features.require({"finetune.batch_pairs": settings.finetune.batch_pairs}, settings.data.uri)
        check_names(run.store.child("describe"), classes, settings.describe.class_names)
        described = run.stage(
            "describe", lambda stage: describe_images(stage, settings.data, settings.describe, classes)
        )
        texts = Descriptions(
            settings.describe,
            {one.label: one.name for one in classes},
            described.store,
            described.manifest["finished"],
        )
        draws = draws_of(run, settings)
        made = [distill_once(one.run, precomputed, features, classes, texts, one.settings) for one in draws]
        baselines = [baseline for _, baseline in made]
        evaluated = run.stage(
            "evaluate",
            lambda stage: evaluate(stage, draws, baselines, texts, features),
            [one.run for one in draws],
        )
        return _report(run, made[0][0], evaluated)


def distill_once(
    run: RunDir,
    precomputed: Stage,
    features: FeatureStore,
    classes: list[ImageClass],
    texts: Descriptions,
    settings: Vlcp,
) -> tuple[Stage, Stage | None]:
    """The stages of one draw, up to its set in `distilled/`; gives `finetune`, and `prompts` if they are a baseline."""
    tuned = run.stage("finetune", lambda stage: finetune(stage, features, texts, settings))
    encoded = run.shared(
        "latents",
        lambda stage: encode_latents(stage, settings.data, settings.finetune, settings.prototypes, texts),
    )
    found = run.stage(
        "prototypes",
        lambda stage: find_prototypes(
            stage,
            encoded.store,
            classes,
            features.duplicates(),
            settings.prototypes,
            settings.run.seed,
        ),
    )
    drawn = run.stage("synthesize", lambda stage: synthesize(stage, found, tuned, texts, settings))
    export_stage(
        run,
        precomputed,
        settings,
        lambda: (samples(found, drawn, classes, settings.synthesis), None),
        method="VLCP",
        models=_models(settings),
        class_names={one.label: one.name for one in classes},
    )
    baseline = None
    if "prompts" in settings.evaluation.baselines:
        baseline = run.stage("prompts", lambda stage: draw_prompts(stage, classes, texts, settings))
    return tuned, baseline


def finetune(stage: Stage, features: FeatureStore, texts: Descriptions, settings: Vlcp) -> StageResult:
    """Fine-tunes the generator on (image, description) into the stage's folder `generator/`."""
    # here, because they bring torch and Ray Train: 8 s that no other stage needs
    from mmdd_ray.diffusion.finetune import finetune as train
    from mmdd_ray.diffusion.objective import NoiseObjective

    tuning, seed = settings.finetune, settings.run.seed
    pairs = training_pairs(
        settings.data, image_px=tuning.image_px, seed=seed, excluded=features.duplicates(), texts=texts.of
    )
    return train(pairs, tuning, NoiseObjective(tuning.image_px), seed=seed, stage=stage)


def synthesize(stage: Stage, found: Stage, tuned: Stage, texts: Descriptions, settings: Vlcp) -> StageResult:
    """Draws an image from each prototype."""
    drawings = drawings_of(read_prototypes(found.store), texts, settings.synthesis, settings.run.seed)
    generator = tuned.store.child("generator")
    return draw(stage, drawings, found.store, generator, settings.synthesis, settings.finetune.image_px)


def draw_prompts(stage: Stage, classes: list[ImageClass], texts: Descriptions, settings: Vlcp) -> StageResult:
    """Draws the baseline that knows no more than the names of the classes, by the generator as it is."""
    drawings = prompted(classes, settings.prototypes.images_per_class, texts, settings.run.seed)
    generator, synthesis = settings.finetune.generator, settings.synthesis
    return draw(stage, drawings, None, generator, synthesis, settings.finetune.image_px)


def samples(found: Stage, drawn: Stage, classes: list[ImageClass], synthesis: VlcpSynthesis) -> list[Sample]:
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
            zip(read_prototypes(found.store), read_drawn(drawn.store), strict=True)
        )
    ]


def evaluate(
    stage: Stage,
    draws: Sequence[Draw[Vlcp]],
    baselines: Sequence[Stage | None],
    texts: Descriptions,
    features: FeatureStore,
) -> StageResult:
    """Trains classifiers on the exported sets and on their baselines; `baselines` are the drawings from prompts."""
    run, settings = draws[0].run, draws[0].settings
    labels = tuple(texts.names)
    px, per_class = settings.classifiers.image_px, settings.prototypes.images_per_class
    sets = {"vlcp": [_exported(one.run.store.child(FOLDER), labels, px) for one in draws]}
    if prompted := [_prompted(one.store, labels, per_class, px) for one in baselines if one]:
        sets["prompts"] = prompted
    return compare_classifiers(
        stage, sets, texts.templates(), features, [one.compared for one in draws], run.store
    )


def _exported(distilled: Store, labels: tuple[int, ...], px: int) -> ray.ObjectRef:
    samples = read_distilled(distilled)
    own = [sample.label for sample in samples if sample.label is not None]
    return ray.put(labelled_images([sample.image for sample in samples], own, labels, px))


def _prompted(drawn: Store, labels: tuple[int, ...], per_class: int, px: int) -> ray.ObjectRef:
    images = [row["image"] for row in read_drawn(drawn)]
    return ray.put(labelled_images(images, [label for label in labels for _ in range(per_class)], labels, px))


def _models(settings: Vlcp) -> dict[str, str]:
    models = {"clip": settings.features.clip, "generator": settings.finetune.generator}
    return models | ({"describer": settings.describe.model} if settings.describe.source == "vlm" else {})


def _report(run: RunDir, tuned: Stage, evaluated: Stage) -> dict[str, Any]:
    losses = tuned.store.read_parquet("losses.parquet").to_pydict()
    report = build_report(
        run.store,
        evaluated.store.read_json(EVALUATION),
        losses={name: losses[name] for name in LOSS_COLUMNS if name in losses},
        command=shlex.join(["python", *sys.argv]),
    )
    write_report(report, run.store)
    return report
