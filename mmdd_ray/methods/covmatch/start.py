"""The pairs that CovMatch starts from: real ones, or a distilled set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from mmdd_ray.config import PairLearning
from mmdd_ray.data.sources import READ_CPUS
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.sets import coreset
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.start import start_of_samples
from mmdd_ray.methods.covmatch.settings import Covmatch, Match
from mmdd_ray.methods.covmatch.start_set import StartSet
from mmdd_ray.storage.redact import redact


@dataclass(frozen=True, eq=False)
class Start:
    """Pairs of one caption each, and where they are from."""

    pairs: PairSet | LearntPairs
    about: Mapping[str, Any]
    """Content of ``start.json``: ``source_keys``, the key of the real pair that each goes back to, and more."""


def start_of_set(given: StartSet, matching: Match) -> Start:
    """The pairs of a distilled set: learnt ones as they are, where their words are those of ``match.text_model``."""
    pairs: PairSet | LearntPairs
    learnt, reason = given.learnt, ""
    if learnt is not None and learnt.vectors is not None:
        learnt, reason = None, ", as its learnt texts are vectors, and no words"
    elif learnt is not None and learnt.vocabulary != _vocabulary(matching):
        learnt, reason = None, ", as its learnt texts are not of the words of match.text_model"
    if learnt is not None:
        pairs, began_as = learnt, "learnt pairs"
    else:
        pairs, began_as = start_of_samples(given.samples, matching.image_px), "images and captions"
    print(f"{matching.section:<12} starts from the {began_as} of {given.about['uri']}{reason}", flush=True)
    keys = [sample.source_key for sample in given.samples]
    about = {"init": redact(matching.init), "set": {**given.about, "as": began_as}, "source_keys": keys}
    return Start(pairs, about)


def start_of_real(features: FeatureStore, settings: Covmatch) -> Start:
    """The real pairs that ``match.init`` names."""
    matching = settings.match
    pairs, keys = coreset(
        features,
        matching.init,
        settings.data,
        matching.pairs,
        matching.image_px,
        settings.run.seed,
        settings.evaluation,
    )
    return Start(pairs, {"init": matching.init, "source_keys": keys})


def _vocabulary(matching: PairLearning) -> str:
    """The digest of the text encoder's words; in a task, as the machine of the driver may be a small one."""

    def digest(settings: PairLearning) -> str:
        from mmdd_ray.models.students import load_text_encoder

        return load_text_encoder(settings, "cpu").vocabulary_digest()

    return ray.get(ray.remote(digest).options(num_cpus=READ_CPUS).remote(matching))
