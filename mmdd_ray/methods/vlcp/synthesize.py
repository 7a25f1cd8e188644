"""VLCP's requests for images, one for each pair of an image and a text prototype (arXiv 2506.23580, section 3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdd_ray.diffusion.synthesize import Guided, SampleRequest, sample_seeds
from mmdd_ray.engine.actor_pool import Rows
from mmdd_ray.methods.vlcp.describe import Descriptions, ImageClass
from mmdd_ray.methods.vlcp.latents import read_centres
from mmdd_ray.methods.vlcp.settings import VlcpSynthesis
from mmdd_ray.storage.store import Store


@dataclass(frozen=True)
class ImagePrototypes:
    """Image prototypes as latents to begin with; see `find_prototypes`."""

    store: Store

    def of(self, rows: Rows) -> np.ndarray:
        """Those that the rows name by `label` and `slot`, (B, D)."""
        centres = {label: read_centres(self.store, label) for label in {row["label"] for row in rows}}
        return np.stack([centres[row["label"]][row["slot"]] for row in rows])


def guided(synthesis: VlcpSynthesis, prototypes: Store | None) -> Guided:
    """How images are drawn: from the prototypes in that store, or from noise alone."""
    begin = ImagePrototypes(prototypes) if prototypes is not None and synthesis.use_image else None
    return Guided(synthesis.negative_prompt, synthesis.strength, begin)


def sample_requests(
    prototypes: Iterable[dict[str, Any]], descriptions: Descriptions, synthesis: VlcpSynthesis, seed: int
) -> list[SampleRequest]:
    """An image for each prototype, in their order."""
    rows = list(prototypes)
    return [
        SampleRequest(
            index,
            (row["text"] if synthesis.use_text else "") or descriptions.template(row["label"]),
            own_seed,
            label=row["label"],
            slot=row["slot"],
        )
        for index, (row, own_seed) in enumerate(zip(rows, sample_seeds(seed, len(rows)), strict=True))
    ]


def prompted(
    classes: Iterable[ImageClass], per_class: int, descriptions: Descriptions, seed: int
) -> list[SampleRequest]:
    """The requests of the baseline: the template with the name of each class."""
    places = [(one.label, slot) for one in classes for slot in range(per_class)]
    return [
        SampleRequest(index, descriptions.template(label), own_seed, label=label, slot=slot)
        for index, ((label, slot), own_seed) in enumerate(
            zip(places, sample_seeds(seed, len(places)), strict=True)
        )
    ]
