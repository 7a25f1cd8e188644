"""What pairs begin as before they are learnt, and the samples that are shown of them in the end. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mmdd_ray.config import Covmatch, Edge, Match, PairLearning
from mmdd_ray.data import distilled
from mmdd_ray.data.distilled import LEARNT, Sample
from mmdd_ray.data.images import encode_png
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.data.sources import READ_CPUS
from mmdd_ray.data.start_set import StartSet
from mmdd_ray.errors import UserError
from mmdd_ray.evaluate.pairs import PairSet
from mmdd_ray.evaluate.sets import synthetic_set
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.redact import redact
from mmdd_ray.run import Stage

START = "start.json"
LOSSES = "losses.parquet"
LOSS_COLUMNS = ("step", "covariance", "mean", "contrastive", "total")


@dataclass(frozen=True, eq=False)
class Start:
    """Pairs of one caption each, and where they are from."""

    pairs: PairSet | LearntPairs
    about: Mapping[str, Any]
    """What ``start.json`` says: ``source_keys``, the key of the real pair that each goes back to, and more."""


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


def start_of_set(given: StartSet, matching: Match) -> Start:
    """The pairs of a distilled set: learnt ones as they are, where their words are those of ``match.text_model``."""
    pairs: PairSet | LearntPairs
    if given.learnt is not None and given.learnt.vocabulary == _vocabulary(matching):
        pairs, began_as, reason = given.learnt, "learnt pairs", ""
    else:
        pairs, began_as = start_of_samples(given.samples, matching.image_px), "images and captions"
        reason = (
            ", as its learnt texts are not of the words of match.text_model"
            if given.learnt is not None
            else ""
        )
    print(f"{matching.section:<12} starts from the {began_as} of {given.about['uri']}{reason}", flush=True)
    keys = [sample.source_key for sample in given.samples]
    about = {"init": redact(matching.init), "set": {**given.about, "as": began_as}, "source_keys": keys}
    return Start(pairs, about)


def _vocabulary(matching: PairLearning) -> str:
    """The digest of the text encoder's words; in a task, as the machine of the driver may be a small one."""

    def digest(settings: PairLearning) -> str:
        from mmdd_ray.models.students import load_text_encoder

        return load_text_encoder(settings, "cpu").vocabulary_digest()

    return ray.get(ray.remote(digest).options(num_cpus=READ_CPUS).remote(matching))


def require_batch(features: FeatureStore, settings: Covmatch | Edge) -> None:
    """Finds before anything expensive that there are fewer real pairs than in a batch.

    Raises:
        UserError: names the setting to lower.
    """
    matching, uri = settings.matching, settings.data.uri
    if not matching.iterations:
        return
    batch, fraction = matching.real_batch, settings.features.clip_score_fraction
    features.require({f"{matching.section}.real_batch": batch}, uri)
    if fraction < 1 and batch > (images := features.agreeing().n_images):
        raise UserError(
            f"{matching.section}.real_batch={batch:,}, but features.clip_score_fraction={fraction:g} leaves {images:,} "
            f"images of {redact(uri)}; lower {matching.section}.real_batch or raise features.clip_score_fraction"
        )


def learnt_samples(matched: Stage, seed: int) -> tuple[list[Sample], LearntPairs]:
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
            extra={distilled.NEAREST: nearest},
        )
        for number, (image, captions, nearest, key, own_seed) in enumerate(rows)
    ], learnt
