"""Pairs before they are learnt, and the samples that are shown of them in the end. Imports no torch."""

from collections.abc import Sequence

from mmdd_ray.config import MatchingSettings
from mmdd_ray.data.images import encode_png
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import LEARNT, NEAREST, Sample
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.sets import synthetic_set
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.planning.preflight import batch_needs
from mmdd_ray.storage.redact import redact

START = "start.json"
LOSS_COLUMNS = ("step", "covariance", "mean", "contrastive", "total")


def start_of_samples(samples: Sequence[Sample], image_px: int) -> PairSet:
    """The samples, of one caption each, as pairs to start from.

    Raises:
        UserError: an image cannot be decoded.
    """
    pairs = synthetic_set(samples, image_px)
    if pairs.n_images < len(samples):
        raise UserError(
            f"{len(samples) - pairs.n_images} of the {len(samples)} images to start from cannot be decoded; start from "
            "another set"
        )
    return pairs


def require_batch(features: FeatureStore, settings: MatchingSettings) -> None:
    """Finds before anything expensive that fewer pairs agree well enough than are in a real batch.

    Raises:
        UserError: names the setting to lower.
    """
    fraction = settings.features.clip_score_fraction
    for setting, batch in batch_needs(settings.matching).items():
        if fraction < 1 and batch > (images := features.agreeing().n_images):
            raise UserError(
                f"{setting}={batch:,}, but features.clip_score_fraction={fraction:g} leaves {images:,} images of "
                f"{redact(settings.data.uri)}; lower {setting} or raise features.clip_score_fraction"
            )


def learnt_samples(matched: StageDir, seed: int) -> tuple[list[Sample], LearntPairs]:
    """The learnt pairs, and what people see of them: images rounded to 8 bits and the captions that they began as.

    Args:
        seed: of samples that were not drawn.
    """
    learnt = LearntPairs.from_bytes(matched.store.read_bytes(LEARNT))
    start = matched.store.read_json(START)
    keys = start["source_keys"]
    seeds = start.get("seeds", [seed] * len(keys))
    rows = zip(learnt.images(), learnt.captions, learnt.nearest, keys, seeds, strict=True)
    return [
        Sample(
            key=f"{number:06d}",
            image=encode_png(image),
            captions=tuple(captions),
            seed=own_seed,
            source_key=key,
            extra={NEAREST: nearest},
        )
        for number, (image, captions, nearest, key, own_seed) in enumerate(rows)
    ], learnt
