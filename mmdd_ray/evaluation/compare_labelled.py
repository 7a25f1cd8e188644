"""Compares labelled sets with real images, by the classifiers that they make."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from mmdd_ray.config import LabelledSettings
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.evaluation.compare import EVALUATION, compare, count_students
from mmdd_ray.evaluation.held_out import HeldOut, common_images
from mmdd_ray.evaluation.labelled_sets import PerClass, held_out_images, real_rows, real_sets
from mmdd_ray.evaluation.teachers import ABOUT, TEACHER_STAGE, about_teacher, name_teacher, needs_teacher
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.protocols.trainings import label_trainings
from mmdd_ray.storage.store import Store


def compare_classifiers(
    stage: StageDir,
    synthetic: Mapping[str, list[ray.ObjectRef[Any]]],
    templates: Mapping[int, str],
    features: FeatureStore,
    draws: Sequence[LabelledSettings],
    run_store: Store,
    *,
    per_class: PerClass,
    captioned: bool,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
) -> StageResult:
    """Compares labelled sets with real images; writes `compare`'s result as evaluation.json.

    Args:
        synthetic: Labelled sets by name, each draw of them, in the object store; the distilled or first one first.
        templates: What is said of each class, by label, ascending; of all labels of the data.
        per_class: Images of each class in a coreset.
        captioned: Whether clip-score compares images with their first captions, or with the templates.
        draws: Settings of each draw, with the baselines that it has of its own. Classifiers are those of the first.
        run_store: The run directory, whose rejects.parquet takes the refused validation and test rows, and whose stage
            `teacher` is done where a protocol needs one.
        about: By the name of a set that was given, where it is from and how it was read, for the report.
        images: By the name of a given set, its images (N, px, px, 3) uint8, which are looked for among validation and
            test images.
    """
    settings, classes = draws[0], tuple(templates)
    listed = RejectList(stage.store, run_store)
    sources = settings.evaluation.sources(settings.data)
    read: dict[str, HeldOut] = {}
    kinds = label_trainings(settings.classifiers, settings.evaluation)
    if any(len(protocol.learning_rates) > 1 for protocol, _ in kinds):
        val, read["val"] = held_out_images("val", sources["val"], settings, features, classes, listed)
    test, read["test"] = held_out_images("test", sources["test"], settings, features, classes, listed)
    if "val" not in read:
        val = test  # which a grid of one learning rate has no use for
    found_in = common_images(read, features.image_digests(), images)
    listed.save()
    real = [
        item for own in draws for item in real_rows(features, own, templates, per_class, captioned).items()
    ]
    sets: dict[str, Any] = {**synthetic}
    for name, labelled in real_sets(features, real, settings, classes):
        sets.setdefault(name, []).append(ray.put(labelled))
    weights, teacher = None, None
    if needs_teacher(settings):
        prepared = run_store.child(TEACHER_STAGE)
        teacher = prepared.read_json(ABOUT)
        weights = prepared.path(teacher["weights"])
    found = compare(
        sets, val, test, settings.classifiers, settings.evaluation, settings.run.seed, stage, weights
    )
    if teacher:
        name_teacher(found, about_teacher(teacher, settings.classifiers), settings)
    told = {"held_out": found_in, "given": dict(about or {}), "teacher": teacher and teacher["made_from"]}
    stage.store.write_json(EVALUATION, found | told)
    return StageResult(
        rows_in=sum(one["images"] for one in found["sets"].values()) + val.n_images + test.n_images,
        rows_out=count_students(found),
        rejects=Counter(reason for *_, reason in listed.rows),
    )
