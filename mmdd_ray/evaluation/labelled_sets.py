"""The labelled sets that classifiers are trained on: a synthetic one, coresets of each class, and all the data."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray

from mmdd_ray.config import Classifiers, Data, LabelledSettings
from mmdd_ray.data.class_names import check_same_names, shared_captions
from mmdd_ray.data.pair import Row
from mmdd_ray.data.sources import fetch_pairs
from mmdd_ray.engine.cluster import actor_resources
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import MANIFEST, StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.bench import RETRIES
from mmdd_ray.evaluation.compare import EVALUATION, compare, count_students
from mmdd_ray.evaluation.held_out import HeldOut, common_images, read_held_out
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.sets import CLIP_SCORE, judge_held_out
from mmdd_ray.features.coresets import clip_score, herding, k_center, kept_rows, random_subset
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore, image_features
from mmdd_ray.protocols import LabelProtocol
from mmdd_ray.protocols.trainings import trainings
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

TEACHER = "teacher.safetensors"
TEACHER_SEED = 10**6  # far from those of students

PerClass = int | Mapping[int, int]
"""Images of each class, or of that with each label."""
Choose = Callable[[list[np.ndarray], int, int], np.ndarray]
CORESETS: dict[str, Choose] = {
    "random": lambda blocks, count, seed: random_subset(len(blocks[0]), count, seed),
    "herding": herding,
    "k-center": k_center,
}


def labelled_images(
    images: Sequence[bytes], labels: Sequence[int], classes: tuple[int, ...], image_px: int
) -> LabelledSet:
    """A set of encoded synthetic images."""
    rows = [
        Row("distilled", i, str(i), image, [], label, None)
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return LabelledSet.from_rows(rows, classes, image_px=image_px, max_pixels=2**31)[0]


def class_coresets(
    features: FeatureStore,
    classes: tuple[int, ...],
    per_class: PerClass,
    names: Sequence[str],
    seed: int,
    score_N: np.ndarray | None = None,
    kept_fraction: float = 1.0,
) -> dict[str, np.ndarray]:
    """Sorted rows of `per_class` images of each class, or all where it has fewer, by the name of the coreset.

    Herding and k-center look at CLIP's image features, brought to unit norm. clip-score draws from the fraction of a
    class's images with the highest scores; from the best `per_class` where that are fewer, so that all sets are of
    one size.

    Args:
        score_N: What `class_scores` gives, for clip-score.
        kept_fraction: Of each class, for clip-score.
    """
    tables = list(features.tables(["label", "image"]))
    label_N = np.concatenate([table["label"].to_numpy() for table in tables])
    feature_ND = np.concatenate([image_features(table) for table in tables])
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number, label in enumerate(classes):
        rows = np.flatnonzero(label_N == label)
        own_ND = feature_ND[rows].astype(np.float32)
        own_ND /= np.linalg.norm(own_ND, axis=1, keepdims=True) + 1e-12
        wanted = per_class if isinstance(per_class, int) else per_class[label]
        count = min(wanted, len(rows))
        own_seed = derive_seed(seed, number)
        for name in names:
            if name == CLIP_SCORE:
                assert score_N is not None
                kept = max(kept_rows(len(rows), kept_fraction), count)
                picks = clip_score(score_N[rows], count, own_seed, kept)
            else:
                picks = CORESETS[name]([own_ND], count, own_seed)
            chosen[name].append(rows[picks])
    return {name: np.sort(np.concatenate(parts)) for name, parts in chosen.items()}


def class_scores(
    features: FeatureStore, settings: LabelledSettings, templates: Mapping[int, str], captioned: bool
) -> np.ndarray:
    """How well each image agrees with what is said of it, (rows,) float32 CLIP scores.

    Args:
        templates: What is said of the images of each class, by label.
        captioned: Whether captions describe images, so that the first of them is what is said. Otherwise they may be
            missing, or be names of folders that mean nothing to CLIP.
    """
    if captioned:
        return features.clip_scores()
    resources = actor_resources(settings.features.gpus_per_actor)
    device = device_with(resources)
    encode = ray.remote(max_retries=RETRIES, **resources)(_encode_texts)
    text_CD = ray.get(
        encode.remote(settings.features.clip, list(templates.values()), settings.features.chunk_pairs, device)
    )
    return features.clip_scores(dict(zip(templates, text_CD, strict=True)))


def _encode_texts(clip: str, texts: list[str], batch: int, device: str) -> np.ndarray:
    from mmdd_ray.models.clip import load_clip

    encoder = load_clip(clip, device)
    with out_of_memory("features.chunk_pairs"):
        parts = [
            encoder.encode_texts(texts[at : at + batch]).cpu().numpy() for at in range(0, len(texts), batch)
        ]
    return np.concatenate(parts)


def real_rows(
    features: FeatureStore,
    settings: LabelledSettings,
    templates: Mapping[int, str],
    per_class: PerClass,
    captioned: bool,
) -> dict[str, np.ndarray]:
    """Sorted rows of each baseline of `settings.evaluation` that is made of real images."""
    wanted, seed, classes = settings.evaluation.baselines, settings.run.seed, tuple(templates)
    addresses = features.addresses
    names = [name for name in (*CORESETS, CLIP_SCORE) if name in wanted]
    score_N = class_scores(features, settings, templates, captioned) if CLIP_SCORE in wanted else None
    fraction = settings.evaluation.clip_score_fraction
    chosen = class_coresets(features, classes, per_class, names, seed, score_N, fraction) if names else {}
    if "full" in wanted:
        count = min(settings.evaluation.full_pairs, len(addresses))
        chosen["full"] = np.sort(random_subset(len(addresses), count, seed))
    return chosen


def real_sets(
    features: FeatureStore,
    chosen: Sequence[tuple[str, np.ndarray]],
    settings: LabelledSettings,
    classes: tuple[int, ...],
) -> Iterator[tuple[str, LabelledSet]]:
    """The sets of these rows with their names, one decoded after the other."""
    addresses = features.addresses
    needed = np.unique(np.concatenate([np.empty(0, np.int64), *(rows for _, rows in chosen)])).tolist()
    # once for all sets: the rows of a baseline lie in almost every shard
    fetched = fetch_pairs(settings.data, [addresses[row] for row in needed])
    rows = dict(zip(needed, fetched, strict=True))
    for name, indices in chosen:
        own = [rows[row] for row in indices.tolist()]
        found, lost = LabelledSet.from_rows(
            own, classes, image_px=settings.classifiers.image_px, max_pixels=settings.data.max_image_pixels
        )
        if lost:
            raise UserError(
                f"data.uri={settings.data.uri} has changed since its features were made: {len(lost):,} images of the "
                f"set {name} are refused now ({lost[0][2]}); restore the data, or set run.dir to a new folder"
            )
        yield name, found


def held_out_images(
    part: str,
    data: Data,
    settings: LabelledSettings,
    features: FeatureStore,
    classes: tuple[int, ...],
    listed: RejectList,
) -> tuple[LabelledSet, HeldOut]:
    """The validation or test images, and what was read for them.

    `listed` takes the refused rows, with val/ or test/ before their shards.

    Raises:
        UserError: More than `data.max_reject_ratio` of the rows were refused, no image is left, or the classes are
            numbered in another way than in the training data.
    """
    read = read_held_out(data, settings.evaluation.max_pairs)
    setting = f"evaluation.{part}"
    if settings.data.needs_captions:
        rows = ((row.label, row.captions) for row in read.rows if row.reject is None)
        own, training = shared_captions(rows, at_least=2), features.shared_captions(at_least=2)
        check_same_names(f"{setting}={data.uri}", own, settings.data.uri, training)
    try:
        found, used, lost = LabelledSet.with_rows(
            read.rows, classes, image_px=settings.classifiers.image_px, max_pixels=data.max_image_pixels
        )
    except UserError as error:
        raise UserError(f"{setting}={data.uri}: {error}") from error
    judge_held_out(part, data, read, lost, listed)
    return found, read.decoded(used, found.images)


def needs_teacher(settings: LabelledSettings) -> bool:
    """Whether a teacher is to be trained: a protocol needs one, and `classifiers.teacher` names none."""
    wanted = any(protocol.needs_teacher for protocol, _ in _label_trainings(settings))
    return wanted and settings.classifiers.teacher is None


def _name_teacher(found: Mapping[str, Any], teacher: Store | None, settings: LabelledSettings) -> None:
    """Adds the teacher to what was chosen under the protocols that have one."""
    if teacher is None:
        about = f"teacher: {redact(str(settings.classifiers.teacher))}"
    else:
        made = teacher.read_json(MANIFEST)
        about = (
            f"teacher: trained by the run in {settings.classifiers.teacher_steps:,} steps on {made['rows_in']:,} real "
            f"images, {made['extra']['training_top_1']:.1f} % of which it names rightly"
        )
    taught = {
        protocol.shown_name(kind.image_px)
        for protocol, kind in _label_trainings(settings)
        if protocol.needs_teacher
    }
    for panel in (found, *found["others"]):
        if panel["protocol"]["name"] in taught:
            panel["protocol"]["chosen"] += f"; {about}"


def _label_trainings(settings: LabelledSettings) -> list[tuple[LabelProtocol, Classifiers]]:
    found = trainings(settings.classifiers, settings.evaluation)
    return [(protocol, kind) for protocol, kind in found if isinstance(protocol, LabelProtocol)]


def train_teacher_stage(
    stage: StageDir, features: FeatureStore, settings: LabelledSettings, classes: tuple[int, ...]
) -> StageResult:
    """Trains a teacher on the real images, at most `evaluation.full_pairs` of them, and writes its weights."""
    rows = np.sort(
        random_subset(
            len(features.addresses),
            min(settings.evaluation.full_pairs, len(features.addresses)),
            settings.run.seed,
        )
    )
    ((_, images),) = real_sets(features, [("full", rows)], settings, classes)
    resources = actor_resources(settings.evaluation.gpus_per_student)
    train = ray.remote(max_retries=RETRIES, num_returns="streaming", **resources)(_train_teacher)
    told: Any = train.remote(ray.put(images), settings.classifiers, settings.run.seed, device_with(resources))
    trained: dict[str, Any] = {}
    with progress("teacher", settings.classifiers.teacher_steps, "steps") as bar:
        for one in told:
            trained = ray.get(one)
            bar.update(trained["steps"] - bar.n)
    stage.store.write_bytes(TEACHER, trained["weights"])
    return StageResult(
        rows_in=images.n_images, rows_out=1, extra={"training_top_1": trained["training_top_1"]}
    )


def _train_teacher(
    images: LabelledSet, settings: Classifiers, seed: int, device: str
) -> Iterator[dict[str, Any]]:
    """How many `steps` are done, as they are; in the end with `weights` and their `training_top_1`."""
    from safetensors.torch import save

    from mmdd_ray.evaluation.tasks.teacher import train_teacher

    done = SimpleQueue[int | None]()
    own_seed = derive_seed(seed, TEACHER_SEED)
    with out_of_memory("classifiers.batch_images"), ThreadPoolExecutor(1) as beside:
        training = beside.submit(
            train_teacher, images, settings, seed=own_seed, device=device, on_steps=done.put
        )
        training.add_done_callback(lambda _: done.put(None))
        for steps in iter(done.get, None):
            yield {"steps": steps}
        weights, top_1 = training.result()
    yield {"steps": settings.teacher_steps, "weights": save(weights), "training_top_1": top_1}


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
    teacher: Store | None = None,
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
        run_store: The run directory, whose rejects.parquet takes the refused validation and test rows.
        teacher: Folder of the stage that trained one, if there is one.
        about: By the name of a set that was given, where it is from and how it was read, for the report.
        images: By the name of a given set, its images (N, px, px, 3) uint8, which are looked for among validation and
            test images.
    """
    settings, classes = draws[0], tuple(templates)
    listed = RejectList(stage.store, run_store)
    sources = settings.evaluation.sources(settings.data)
    read: dict[str, HeldOut] = {}
    if any(len(protocol.learning_rates) > 1 for protocol, _ in _label_trainings(settings)):
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
    weights = teacher.path(TEACHER) if teacher else settings.classifiers.teacher
    found = compare(
        sets, val, test, settings.classifiers, settings.evaluation, settings.run.seed, stage, weights
    )
    _name_teacher(found, teacher, settings)
    stage.store.write_json(EVALUATION, found | {"held_out": found_in, "given": dict(about or {})})
    return StageResult(
        rows_in=sum(one["images"] for one in found["sets"].values()) + val.n_images + test.n_images,
        rows_out=count_students(found),
        rejects=Counter(reason for *_, reason in listed.rows),
    )
