"""The teacher of soft labels: the one that is given, or one that is trained on the real images; tested either way."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import ray

from mmdd_ray.config import Classifiers, LabelledSettings
from mmdd_ray.engine.cluster import actor_resources
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import MANIFEST, StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.bench import RETRIES
from mmdd_ray.evaluation.compare import EVALUATION
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.labelled_sets import full_rows, held_out_images, real_sets
from mmdd_ray.evaluation.metrics import accuracy_chance, is_above_chance
from mmdd_ray.features.rejects import REJECTS, RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.protocols.trainings import label_trainings
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store, folder_and_name

TEACHER_STAGE = "teacher"
WEIGHTS, GIVEN_WEIGHTS = "teacher.safetensors", "teacher.pth"
ABOUT = "teacher.json"
SEED = 10**6  # far from those of students


def needs_teacher(settings: LabelledSettings) -> bool:
    """Whether a protocol of the comparison needs a teacher."""
    kinds = label_trainings(settings.classifiers, settings.evaluation)
    return any(protocol.needs_teacher for protocol, _ in kinds)


def is_current_teacher(folder: Store, settings: LabelledSettings) -> bool:
    """Whether the finished stage has the teacher that the settings ask for; True where the stage is not finished."""
    if not folder.exists(MANIFEST):
        return True
    return folder.exists(ABOUT) and folder.read_json(ABOUT)["made_from"] == _origin(settings.classifiers)


def _origin(settings: Classifiers) -> str:
    """Identity of the teacher: the checksum of the given file, or the number of steps of a training."""
    if settings.teacher is None:
        return f"{settings.teacher_steps} steps"
    store, name = folder_and_name(settings.teacher)
    return store.checksum(name)


def has_teacher(folder: Store, settings: LabelledSettings) -> bool:
    """Whether the comparison that a folder holds, if any, has the teacher that the settings ask for."""
    if not folder.exists(EVALUATION) or not needs_teacher(settings):
        return True
    return bool(folder.read_json(EVALUATION).get("teacher") == _origin(settings.classifiers))


def prepare_teacher(
    stage: StageDir,
    run: Store,
    features: FeatureStore,
    settings: LabelledSettings,
    classes: tuple[int, ...],
) -> StageResult:
    """Copies the given teacher, or trains one on the real images, into the stage's folder and tests it.

    At most `evaluation.full_pairs` images train it; it is tested on the test images.

    Args:
        run: The run directory, whose rejects.parquet takes the refused test rows if there are too many.

    Raises:
        UserError: The teacher is of another network or of other classes, or knows the test images no better than
            chance; or more test rows were refused than `data.max_reject_ratio` allows.
    """
    classifiers, source = settings.classifiers, settings.evaluation.sources(settings.data)["test"]
    test, _ = held_out_images("test", source, settings, features, classes, RejectList(stage.store, run))
    stage.store.remove(REJECTS)  # of an earlier attempt; the comparison lists these rows
    about: dict[str, Any] = {"made_from": _origin(classifiers)}
    if classifiers.teacher is None:
        ((_, images),) = real_sets(features, [("full", full_rows(features, settings))], settings, classes)
        about |= {"weights": WEIGHTS, "images": images.n_images}
        about["training_top_1"] = _train_on(images, stage.store, settings)
    else:  # students learn from the very file that was tested, whatever becomes of the other one
        store, name = folder_and_name(classifiers.teacher)
        about["weights"] = WEIGHTS if name.endswith(".safetensors") else GIVEN_WEIGHTS
        stage.store.write_bytes(about["weights"], store.read_bytes(name))
    resources = actor_resources(settings.evaluation.gpus_per_student)
    test_top_1 = ray.remote(max_retries=RETRIES, **resources)(_test_top_1)
    weights, device = stage.store.path(about["weights"]), device_with(resources)
    about["test_top_1"] = ray.get(test_top_1.remote(weights, classifiers, ray.put(test), device))
    if not is_above_chance(about["test_top_1"], test.n_images, len(test.classes)):
        raise UserError(_no_use(classifiers, about["test_top_1"], test))
    stage.store.write_json(ABOUT, about)
    return StageResult(rows_in=about.get("images", 0) + test.n_images, rows_out=1)


def _train_on(images: LabelledSet, store: Store, settings: LabelledSettings) -> float:
    """Writes the weights of a teacher of these images; gives its accuracy on them, in percent."""
    resources = actor_resources(settings.evaluation.gpus_per_student)
    train = ray.remote(max_retries=RETRIES, num_returns="streaming", **resources)(_train)
    told: Any = train.remote(ray.put(images), settings.classifiers, settings.run.seed, device_with(resources))
    trained: dict[str, Any] = {}
    with progress("teacher", settings.classifiers.teacher_steps, "steps") as bar:
        for one in told:
            trained = ray.get(one)
            bar.update(trained["steps"] - bar.n)
    store.write_bytes(WEIGHTS, trained["weights"])
    return float(trained["training_top_1"])


def _train(images: LabelledSet, settings: Classifiers, seed: int, device: str) -> Iterator[dict[str, Any]]:
    """How many `steps` are done, as they are; in the end with `weights` and their `training_top_1`."""
    from safetensors.torch import save

    from mmdd_ray.evaluation.tasks.teacher import train_teacher

    done = SimpleQueue[int | None]()
    own_seed = derive_seed(seed, SEED)
    with out_of_memory("classifiers.batch_images"), ThreadPoolExecutor(1) as beside:
        training = beside.submit(
            train_teacher, images, settings, seed=own_seed, device=device, on_steps=done.put
        )
        training.add_done_callback(lambda _: done.put(None))
        for steps in iter(done.get, None):
            yield {"steps": steps}
        weights, top_1 = training.result()
    yield {"steps": settings.teacher_steps, "weights": save(weights), "training_top_1": top_1}


def _test_top_1(weights: str, settings: Classifiers, test: LabelledSet, device: str) -> float:
    """Top-1 accuracy of the teacher in percent."""
    from mmdd_ray.evaluation.tasks.teacher import load_teacher, teacher_accuracy

    return teacher_accuracy(load_teacher(weights, settings, len(test.classes), device), test)


def _no_use(settings: Classifiers, top_1: float, test: LabelledSet) -> str:
    """Why a teacher that knows no more than chance is refused."""
    chance = accuracy_chance(len(test.classes))["top-1"]
    told = f"{top_1:.1f} % of the {test.n_images:,} test images rightly, and chance {chance:.1f} %"
    if settings.teacher is None:
        return (
            f"the teacher that was trained for classifiers.teacher_steps={settings.teacher_steps} names {told}; raise "
            "the steps, or name a teacher as classifiers.teacher"
        )
    return (
        f"classifiers.teacher={redact(settings.teacher)} names {told}: probably its classes are in another order than "
        "the labels of the data, or it is of other classes; give the weights of a network whose outputs are the "
        "labels, ascending"
    )


def about_teacher(about: Mapping[str, Any], settings: Classifiers) -> str:
    """Which teacher it is and how good, as a report says it.

    Args:
        about: The content of `ABOUT`.
    """
    of_test = f"{about['test_top_1']:.1f} % of the test images rightly"
    if settings.teacher:
        return f"teacher: {redact(settings.teacher)}, which names {of_test}"
    return (
        f"teacher: trained by the run in {settings.teacher_steps:,} steps on {about['images']:,} real images; names "
        f"{about['training_top_1']:.1f} % of them and {of_test}"
    )


def name_teacher(found: Mapping[str, Any], about: str, settings: LabelledSettings) -> None:
    """Adds the teacher to what was chosen under the protocols that have one.

    Args:
        found: The result of `compare`, which is changed.
    """
    kinds = label_trainings(settings.classifiers, settings.evaluation)
    taught = {protocol.shown_name(kind.image_px) for protocol, kind in kinds if protocol.needs_teacher}
    for panel in (found, *found["others"]):
        if panel["protocol"]["name"] in taught:
            panel["protocol"]["chosen"] += f"; {about}"
