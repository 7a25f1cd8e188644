"""The contribution of each prototype of VLCP: sets drawn with both prototypes, with either alone, and with neither."""

from dataclasses import dataclass, replace

import ray

from mmdd_ray.diffusion.synthesize import SampleRequest, draw, read_drawn
from mmdd_ray.engine.draws import Draw, draws_of
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.evaluation.compare import has_all
from mmdd_ray.evaluation.compare_labelled import compare_classifiers
from mmdd_ray.evaluation.labelled_sets import labelled_images
from mmdd_ray.evaluation.teachers import TEACHER_STAGE, is_current_teacher, needs_teacher, prepare_teacher
from mmdd_ray.features.precompute import precompute
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.vlcp import stages
from mmdd_ray.methods.vlcp.describe import Descriptions, ImageClass, describe_images, read_classes
from mmdd_ray.methods.vlcp.latents import encode_latents, find_prototypes, read_prototypes
from mmdd_ray.methods.vlcp.settings import Vlcp, VlcpSynthesis
from mmdd_ray.methods.vlcp.synthesize import guided, prompted, sample_requests
from mmdd_ray.storage.store import Store

ARMS: dict[str, dict[str, bool]] = {
    "both": {},
    "image-only": {"use_text": False},
    "text-only": {"use_image": False},
    "names-tuned": {"use_image": False, "use_text": False},
}
"""Changes of `synthesis` by the name of the set; all are drawn by the tuned generator."""
AS_IS = "names-as-is"
"""The set that the generator as it is draws from the names of the classes."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that the sets are drawn from."""

    features: FeatureStore
    classes: list[ImageClass]
    texts: Descriptions
    tuned: StageDir
    found: StageDir


@dataclass(frozen=True)
class Plan:
    """The requests of one set, and how they are drawn."""

    requests: list[SampleRequest]
    generator: Store | str
    synthesis: VlcpSynthesis
    prototypes: Store | None

    def draw(self, stage: StageDir, image_px: int) -> StageResult:
        how = guided(self.synthesis, self.prototypes)
        return draw(stage, self.requests, self.generator, self.synthesis, image_px=image_px, guided=how)


def prepare(run: RunDir, settings: Vlcp) -> Prepared:
    """The stages of a run up to its prototypes."""
    encoded = run.stage(
        "features", lambda stage: precompute(stage, run.store, settings.data, settings.features)
    )
    features = FeatureStore(encoded.store)
    classes = read_classes(features, settings.data, settings.describe)
    described = run.stage(
        "describe", lambda stage: describe_images(stage, settings.data, settings.describe, classes)
    )
    texts = Descriptions(settings.describe, {one.label: one.name for one in classes}, described.store)
    tuned = run.stage("finetune", lambda stage: stages.finetune(stage, features, texts, settings))
    encoded = run.stage(
        "latents",
        lambda stage: encode_latents(stage, settings.data, settings.finetune, settings.prototypes, texts),
    )
    duplicates, seed = features.duplicates(), settings.run.seed
    found = run.stage(
        "prototypes",
        lambda stage: find_prototypes(stage, encoded.store, classes, duplicates, settings.prototypes, seed),
    )
    return Prepared(features, classes, texts, tuned, found)


def judge(run: RunDir, made: Prepared, settings: Vlcp) -> StageDir:
    """Draws all sets and trains classifiers on them and on real images; before that a teacher, where a protocol needs
    one. Draws of a set have the same prototypes, and noise of their own."""
    sets: dict[str, list[ray.ObjectRef]] = {}
    needs, drawings = [], draws_of(settings)
    classes = tuple(one.label for one in made.classes)
    labels = [row["label"] for row in read_prototypes(made.found.store)]  # of every set, in this order
    for drawing in drawings:
        for name, drawn in _draw_sets(run, made, drawing).items():
            images = read_drawn(drawn.store)["image"].to_pylist()
            labelled = labelled_images(images, labels, classes, settings.classifiers.image_px)
            sets.setdefault(name, []).append(ray.put(labelled))
            needs.append(drawn)
    if needs_teacher(settings):
        if not is_current_teacher(run.store.child(TEACHER_STAGE), settings):
            run.store.remove(TEACHER_STAGE)
        run.stage(
            TEACHER_STAGE,
            lambda stage: prepare_teacher(stage, run.store, made.features, settings, classes),
        )
    if not has_all(run.store.child("evaluate"), settings.classifiers, settings.evaluation):
        run.reopen("evaluate")
    return run.stage(
        "evaluate",
        lambda stage: compare_classifiers(
            stage,
            sets,
            made.texts.templates(),
            made.features,
            [drawing.compared for drawing in drawings],
            run.store,
            per_class=settings.prototypes.images_per_class,
            captioned=settings.describe.source == "captions",
        ),
        needs,
    )


def _draw_sets(run: RunDir, made: Prepared, drawing: Draw[Vlcp]) -> dict[str, StageDir]:
    """The stages of one draw of all sets, by name."""
    settings, seed = drawing.settings, drawing.settings.run.seed
    prototypes, px = made.found.store, settings.finetune.image_px
    rows, tuned = read_prototypes(prototypes), made.tuned.store.child("generator")
    plans: dict[str, Plan] = {}
    for name, changes in ARMS.items():
        own = replace(settings.synthesis, **changes)
        plans[name] = Plan(sample_requests(rows, made.texts, own, seed), tuned, own, prototypes)
    requests = prompted(made.classes, settings.prototypes.images_per_class, made.texts, seed)
    plans[AS_IS] = Plan(requests, settings.finetune.generator, settings.synthesis, None)
    return {
        name: run.stage(f"draw-{name}", lambda stage, plan=plan: plan.draw(stage, px), within=drawing.within)
        for name, plan in plans.items()
    }
