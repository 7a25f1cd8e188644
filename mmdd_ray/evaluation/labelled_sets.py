"""The labelled sets that classifiers are trained on: a synthetic one, coresets of each class, and all the data."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import ray

from mmdd_ray.config import Data, LabelledSettings
from mmdd_ray.data.class_names import check_same_names, shared_captions
from mmdd_ray.data.pair import Row
from mmdd_ray.data.sources import fetch_pairs
from mmdd_ray.engine.cluster import actor_resources
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.bench import RETRIES
from mmdd_ray.evaluation.held_out import HeldOut, read_held_out
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.sets import CLIP_SCORE, judge_held_out
from mmdd_ray.features.coresets import clip_score, herding, k_center, kept_rows, random_subset
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore, image_features

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
    names = [name for name in (*CORESETS, CLIP_SCORE) if name in wanted]
    score_N = class_scores(features, settings, templates, captioned) if CLIP_SCORE in wanted else None
    fraction = settings.evaluation.clip_score_fraction
    chosen = class_coresets(features, classes, per_class, names, seed, score_N, fraction) if names else {}
    if "full" in wanted:
        chosen["full"] = full_rows(features, settings)
    return chosen


def full_rows(features: FeatureStore, settings: LabelledSettings) -> np.ndarray:
    """Sorted rows of all the data, or of `evaluation.full_pairs` images where there are more."""
    found = len(features.addresses)
    return np.sort(random_subset(found, min(settings.evaluation.full_pairs, found), settings.run.seed))


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
