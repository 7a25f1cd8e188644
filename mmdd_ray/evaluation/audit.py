"""Questions that reviewers ask of a set: copies, near-duplicate test images, spectrum, saturation, bytes.

Formulas are in `copies.py`, `spectrum.py` and `learnt_texts.py`, real images are read in `real_images.py`; here
features and pixels are brought together. CLIP features of the real images are read from the store; those of the set and
of the test images are encoded in one task.
"""

# N images of the set, M test images, R real images that are the scale

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from mmdd_ray.config import LabelledSettings, PairSettings
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.pair import Row, digest64
from mmdd_ray.distilled.contact_sheet import spread
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.engine.cluster import actor_resources
from mmdd_ray.engine.devices import device_with
from mmdd_ray.engine.memory import out_of_memory, peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation import learnt_texts
from mmdd_ray.evaluation.audit_pictures import SHOWN, nearest_images, picture_of_copies
from mmdd_ray.evaluation.audited_set import AuditedSet
from mmdd_ray.evaluation.bench import RETRIES
from mmdd_ray.evaluation.copies import (
    COPY_RMS,
    NEIGHBOURS,
    SMALL_PX,
    Closest,
    Nearest,
    beyond,
    closest_by_pixels,
    nearest_rows,
    saturated_share,
    small,
    spread_of,
)
from mmdd_ray.evaluation.feature_map import feature_map
from mmdd_ray.evaluation.held_out import read_held_out
from mmdd_ray.evaluation.real_images import RealImages, read_real
from mmdd_ray.evaluation.report.words import AUDIT, COPIES, MOST_SHOWN, NEAREST_IMAGES
from mmdd_ray.evaluation.spectrum import about_spectrum
from mmdd_ray.features.coresets import random_subset
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

NEAREST = "nearest.json"
REFERENCE = 500  # real images that give the scale, drawn by seed
MOST_CHECKED = (
    1000  # images of the set, drawn at random, whose pixels are compared; and as many, nearest by CLIP
)
TEST_NEIGHBOURS = 4  # of a test image, whose copies are its nearest ones: all but a few have none
TEXTS_SHOWN, CAPTIONS_ASKED = 20, 5000
STREAM = 17  # of seeds: other than those of coresets and of draws


@dataclass(frozen=True)
class _Encoded:
    """CLIP features, float32 of unit norm; images that cannot be decoded have none."""

    image: list[np.ndarray]
    """For each group of images (N, D)."""
    usable: list[np.ndarray]
    """For each group the numbers of those that have a feature."""
    text_PD: np.ndarray


def audit_set(
    stage: StageDir, audited: AuditedSet, features: FeatureStore, settings: PairSettings | LabelledSettings
) -> StageResult:
    """Writes `audit.json`, which the report repeats; `nearest.json` with the nearest real image of every image;
    `nearest_images.parquet` with small pictures of those that the report shows; and the picture `copies.png`.

    Raises:
        UserError: The set has no image that can be decoded, the test data cannot be read, or the data have changed
            since their features were made.
    """
    samples, learnt, most = list(audited.samples), audited.learnt, audited.max_pixels
    seed = derive_seed(settings.run.seed, STREAM)
    test = read_held_out(settings.evaluation.sources(settings.data)["test"], settings.evaluation.max_pairs)
    encoding = _start_encoding(audited, test.rows, settings)
    texts = _start_texts(learnt, features, settings, seed)
    # while both tasks start
    scale_rows = _sample(len(features.addresses), REFERENCE, seed)
    scale_RD, digest_R = _features_of_rows(features, scale_rows)
    scale_nearest = nearest_rows(scale_RD, features.image_blocks(), NEIGHBOURS, digest_R)
    encoded, progress.peak_bytes = ray.get(encoding)
    if not len(encoded.usable[0]):
        raise UserError(f"{redact(audited.uri)} has no image that can be decoded; write the set again")
    clip = settings.features.clip
    about: dict[str, Any] = {"clip": clip, "spectrum": _about_spectrum(samples, encoded, features, clip)}
    about["map"] = feature_map(np.stack(spread(list(encoded.image[0]), REFERENCE)), scale_RD)
    samples = [samples[at] for at in encoded.usable[0]]
    tested = [test.rows[at] for at in encoded.usable[1]]
    nearest, test_nearest = _nearest_of_both(features, encoded)

    side = audited.image_px or min(decode_image(samples[0].image, max_pixels=most).shape[:2])
    drawn = _sample(len(samples), MOST_CHECKED, seed)
    checked = np.union1d(drawn, np.argsort(-nearest.cosine_NK[:, 0], kind="stable")[:MOST_CHECKED])
    wanted = (scale_rows, scale_nearest.row_NK, nearest.row_NK[checked], test_nearest.row_NK)
    real = read_real(settings.data, features, np.concatenate([rows.ravel() for rows in wanted]), side)

    own = [_small(samples[at].image, most, side) for at in checked]
    found = closest_by_pixels(own, nearest.of(checked), real.smalls)
    scale = closest_by_pixels([real.smalls[row] for row in scale_rows.tolist()], scale_nearest, real.smalls)
    own = [_small(row.image or b"", settings.data.max_image_pixels, side) for row in tested]
    test_found = closest_by_pixels(own, test_nearest, real.smalls)

    keys = [samples[at].key for at in checked]
    about["copies"] = _about_copies(len(samples), keys, found, np.isin(checked, drawn), scale, real)
    about["copies"] |= {
        "beyond_real": 100 * beyond(nearest.cosine_NK[:, 0], scale_nearest.cosine_NK[:, 0]),
        "cosine": spread_of(nearest.cosine_NK[:, 0]),
        "real_cosine": spread_of(scale_nearest.cosine_NK[:, 0]),
    }
    about["leakage"] = _about_leakage(tested, test_found, features, real)
    about["saturation"] = {
        "set": 100 * float(np.mean([_saturated(samples[at].image, most, side) for at in drawn])),
        "real": 100 * float(np.mean([real.saturated[row] for row in scale_rows.tolist()])),
        "image_px": side,
    }
    about["learnt"] = _about_learnt(learnt, texts)
    stage.store.write_bytes(
        COPIES, picture_of_copies([samples[at] for at in checked], found, features, settings.data, real.names)
    )
    listed = _listed(samples, nearest, checked, found, features)
    stage.store.write_json(NEAREST, listed)
    stage.store.write_parquet(NEAREST_IMAGES, nearest_images(spread(listed, MOST_SHOWN), settings.data))
    stage.store.write_json(AUDIT, about)
    return StageResult(rows_in=len(samples) + len(tested), rows_out=len(samples))


def is_current_audit(folder: Store) -> bool:
    """Whether the audit that a folder holds, if any, is as this version makes it: its rate is over a random sample."""
    return not folder.exists(AUDIT) or "all_checked" in folder.read_json(AUDIT)["copies"]


def _sample(count: int, at_most: int, seed: int) -> np.ndarray:
    return np.sort(random_subset(count, min(count, at_most), seed))


# ---- encoding, the part that Ray places


def _start_encoding(
    audited: AuditedSet, tested: Sequence[Row], settings: PairSettings | LabelledSettings
) -> "ray.ObjectRef[Any]":
    resources = actor_resources(settings.features.gpus_per_actor)
    encode = ray.remote(max_retries=RETRIES, **resources)(_encode)
    most = settings.data.max_image_pixels
    return encode.remote(
        settings.features.clip,
        [
            ([one.image for one in audited.samples], audited.max_pixels),
            ([row.image or b"" for row in tested], most),
        ],
        [text for sample in audited.samples for text in sample.captions],
        settings.features.image_px,
        settings.features.chunk_pairs,
        device_with(resources),
    )


def _encode(
    clip: str,
    groups: Sequence[tuple[Sequence[bytes], int]],
    texts: Sequence[str],
    image_px: int,
    batch: int,
    device: str,
) -> tuple[_Encoded, int]:
    """Features of groups of image files, each with the most pixels that one may have; and the memory that it took."""
    from mmdd_ray.models.clip import load_clip

    encoder = load_clip(clip, device)
    feature_lists: list[np.ndarray] = []
    usable_lists = []
    with out_of_memory("features.chunk_pairs"):
        for images, most in groups:
            parts, usable = [np.empty((0, encoder.dim), np.float32)], []
            for at in range(0, len(images), batch):
                pixels, numbers = _decoded(images[at : at + batch], most, image_px)
                usable += [at + number for number in numbers]
                if numbers:
                    parts.append(encoder.encode_images(np.stack(pixels)).cpu().numpy())
            feature_lists.append(np.concatenate(parts))
            usable_lists.append(np.array(usable, np.int64))
        text_parts = [np.empty((0, encoder.dim), np.float32)]
        text_parts += [
            encoder.encode_texts(texts[at : at + batch]).cpu().numpy() for at in range(0, len(texts), batch)
        ]
    return _Encoded(feature_lists, usable_lists, np.concatenate(text_parts)), peak_bytes()


def _decoded(images: Sequence[bytes], most: int, image_px: int) -> tuple[list[np.ndarray], list[int]]:
    pixels, numbers = [], []
    for number, image in enumerate(images):
        try:
            pixels.append(decode_image(image, max_pixels=most, image_px=image_px))
        except BadImage:  # the comparison counts and lists it
            continue
        numbers.append(number)
    return pixels, numbers


def _start_texts(
    learnt: LearntPairs | None,
    features: FeatureStore,
    settings: PairSettings | LabelledSettings,
    seed: int,
) -> "tuple[list[tuple[str, str]], ray.ObjectRef[Any]] | None":
    """Captions, each with the name of its image, and the features that are being made of them and of learnt texts."""
    if learnt is None or isinstance(settings, LabelledSettings):
        return None
    captions = features.captions_at(_sample(features.n_captions, CAPTIONS_ASKED, seed))
    resources = actor_resources(settings.evaluation.gpus_per_student)
    encode = ray.remote(max_retries=RETRIES, **resources)(learnt_texts.encode_learnt)
    texts = learnt_texts.first_texts(learnt, TEXTS_SHOWN)
    device = device_with(resources)
    return captions, encode.remote(settings.students, texts, [text for text, _ in captions], device)


def _saturated(image: bytes, most: int, side: int) -> float:
    return saturated_share(decode_image(image, max_pixels=most, image_px=side))


def _small(image: bytes, most: int, side: int) -> np.ndarray:
    """A file as a small image by the same way as a real one, through the side of the set's images."""
    return small(decode_image(image, max_pixels=most, image_px=side))


# ---- neighbours by CLIP


def _features_of_rows(features: FeatureStore, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (R, D) of these rows, and digests (R,) of their image files, by which each is told from its copies."""
    start, feature_parts, digest_parts = 0, [], []
    for feature_RD, digest_R in features.image_blocks():
        own = rows[(rows >= start) & (rows < start + len(digest_R))] - start
        feature_parts.append(feature_RD[own])
        digest_parts.append(digest_R[own])
        start += len(digest_R)
    return np.concatenate(feature_parts), np.concatenate(digest_parts)


def _nearest_of_both(features: FeatureStore, encoded: _Encoded) -> tuple[Nearest, Nearest]:
    """The nearest real images of the set's and of the test images, by one pass over all real ones."""
    both = nearest_rows(np.concatenate(encoded.image), features.image_blocks(), NEIGHBOURS)
    count = len(encoded.image[0])
    tested = both.of(slice(count, None))
    return both.of(slice(0, count)), Nearest(*(array[:, :TEST_NEIGHBOURS] for array in tested))


# ---- what is said


def _about_copies(
    images: int, keys: Sequence[str], found: Closest, drawn_N: np.ndarray, scale: Closest, real: RealImages
) -> dict[str, Any]:
    """What is said of copies: rate and quantiles of the images that were drawn at random, as those of real ones are."""
    first = np.argsort(found.rms_N, kind="stable")[:SHOWN].tolist()
    return {
        "images": images,
        "checked": int(drawn_N.sum()),
        "copies": int(found.is_copy_N[drawn_N].sum()),
        "rate": 100 * float(found.is_copy_N[drawn_N].mean()),
        "all_checked": len(keys),
        "all_copies": int(found.is_copy_N.sum()),
        "real_images": len(scale.row_N),
        "real_rate": 100 * float(scale.is_copy_N.mean()),
        "neighbours": NEIGHBOURS,
        "small_px": SMALL_PX,
        "copy_rms": COPY_RMS,
        "rms": spread_of(found.rms_N[drawn_N]),
        "real_rms": spread_of(scale.rms_N),
        "closest": [{"key": keys[at], **_pair(found, at, real)} for at in first if found.row_N[at] >= 0],
    }


def _pair(found: Closest, at: int, real: RealImages) -> dict[str, Any]:
    return {
        "real": real.names[int(found.row_N[at])],
        "cosine": float(found.cosine_N[at]),
        "rms": float(found.rms_N[at]),
    }


def _about_leakage(
    tested: Sequence[Row], found: Closest, features: FeatureStore, real: RealImages
) -> dict[str, Any]:
    """Test images that are nearly training images; those of the very same bytes are counted apart."""
    if not tested:
        return {"images": 0, "same_bytes": 0, "near": 0, "first": []}
    digests = np.array([digest64(row.image or b"") for row in tested], np.int64)
    same_M = np.isin(digests, features.image_digests())
    near = np.flatnonzero(found.is_copy_N & ~same_M)
    nearest_first = near[np.argsort(found.rms_N[near], kind="stable")][:SHOWN].tolist()
    return {
        "images": len(tested),
        "same_bytes": int(same_M.sum()),
        "near": len(near),
        "first": [{"test": tested[at].name, **_pair(found, at, real)} for at in nearest_first],
    }


def _about_spectrum(
    samples: Sequence[Sample], encoded: _Encoded, features: FeatureStore, clip: str
) -> dict[str, Any] | None:
    """The cross-covariance of images and captions by CLIP; an image with c captions is c pairs. None where the set has
    no captions, but vectors of another encoder.
    """
    if not len(encoded.text_PD):
        return None
    owner_P = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    usable = encoded.usable[0]
    has_image_P = np.isin(owner_P, usable)
    image_PD = encoded.image[0][np.searchsorted(usable, owner_P[has_image_P])]
    moments = {"set": Moments.of(image_PD, encoded.text_PD[has_image_P]), "real": features.moments(clip)}
    return {
        name: {"pairs": one.count, **about_spectrum(one.cross_covariance)} for name, one in moments.items()
    }


def _about_learnt(
    learnt: LearntPairs | None, texts: "tuple[list[tuple[str, str]], ray.ObjectRef[Any]] | None"
) -> dict[str, Any] | None:
    """Bytes of learnt pairs, and the first of their texts beside the nearest real captions."""
    if learnt is None:
        return None
    about: dict[str, Any] = {
        "pairs": learnt.n_pairs,
        "bytes": learnt.n_bytes,
        "shown_bytes": learnt_texts.shown_bytes(learnt),
        "captions": 0,
        "texts": [],
    }
    encoded = ray.get(texts[1]) if texts else None
    if texts is None or encoded is None:
        return about
    captions = texts[0]
    row_N, cosine_N = learnt_texts.nearest_captions(*encoded)
    about["captions"] = len(captions)
    about["texts"] = [
        {
            "began_as": learnt.captions[at][0],
            "nearest_words": learnt.nearest[at],
            "nearest_caption": captions[row][0],
            "real": captions[row][1],
            "cosine": float(cosine),
        }
        for at, (row, cosine) in enumerate(zip(row_N.tolist(), cosine_N.tolist(), strict=True))
    ]
    return about


def _listed(
    samples: Sequence[Sample], nearest: Nearest, checked: np.ndarray, found: Closest, features: FeatureStore
) -> list[dict[str, Any]]:
    """For each image of the set the nearest real one by CLIP, and, where that was looked for, by pixels."""
    place = {number: at for at, number in enumerate(checked.tolist())}
    listed = []
    for number, sample in enumerate(samples):
        row, cosine = int(nearest.row_NK[number, 0]), float(nearest.cosine_NK[number, 0])
        one: dict[str, Any] = {"key": sample.key}
        if row >= 0:
            one["by_clip"] = {"address": features.addresses[row], "cosine": cosine}
        if (at := place.get(number)) is not None and (row := int(found.row_N[at])) >= 0:
            one["by_pixels"] = {
                "address": features.addresses[row],
                "cosine": float(found.cosine_N[at]),
                "rms": float(found.rms_N[at]),
            }
        listed.append(one)
    return listed
