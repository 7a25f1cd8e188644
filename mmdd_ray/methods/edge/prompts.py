"""Which captions to draw from: a spread-out choice of the real ones."""

import numpy as np

from mmdd_ray.diffusion.synthesize import SampleRequest, sample_seeds
from mmdd_ray.errors import UserError
from mmdd_ray.features.coresets import k_means, random_subset
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.storage.redact import redact


def check_prompts(features: FeatureStore, settings: Edge) -> None:
    """Raises ``UserError`` where there are fewer captions than candidates."""
    synthesis = settings.synthesis
    count = settings.candidates
    if count <= len(features.addresses):  # each of which has a caption
        return
    n_captions = sum(map(len, features.caption_features()))
    if count > n_captions:
        raise UserError(
            f"synthesis.pairs={synthesis.pairs} needs {count:,} prompts, but {redact(settings.data.uri)} has "
            f"{n_captions:,} captions; lower synthesis.pairs or synthesis.candidates_per_image"
        )


def choose_prompts(features: FeatureStore, settings: Edge) -> list[SampleRequest]:
    """One real caption for each candidate image, with the candidate's seed.

    Raises:
        UserError: There are fewer captions than candidates.
    """
    check_prompts(features, settings)
    synthesis, seed = settings.synthesis, settings.run.seed
    count = settings.candidates
    blocks = features.caption_features()
    n_captions = sum(map(len, blocks))
    spread = synthesis.prompts == "k-means"
    rows = k_means(blocks, count, seed) if spread else random_subset(n_captions, count, seed)
    # In the order of the dataset, so that neighbours in the set are no neighbours in meaning.
    chosen = features.captions_at(np.sort(rows))
    return [
        SampleRequest(index, prompt, sample_seed, key)
        for index, ((prompt, key), sample_seed) in enumerate(
            zip(chosen, sample_seeds(seed, count), strict=True)
        )
    ]
