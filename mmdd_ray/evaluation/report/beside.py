"""Real pairs beside what was drawn for their captions: the report shows a person where drawing mends the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.sources import fetch_pairs
from mmdd_ray.distilled.thumbnails import open_rgb, small_file
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.agreement import Agreement
from mmdd_ray.evaluation.report.gallery import cut
from mmdd_ray.features.store import FeatureStore

SHOWN = 8


@dataclass(frozen=True)
class Beside:
    """A caption with two images, small PNG or JPEG files, and CLIP's cosine of the caption with each."""

    caption: str
    real: bytes | None
    """The image that the caption came with; None where the data do not have it any more."""
    drawn: bytes
    real_score: float
    drawn_score: float


def beside_real(
    drawn: Sequence[Mapping[str, Any]], features: FeatureStore, data: Data, shown: int = SHOWN
) -> tuple[dict[str, float], list[Beside]]:
    """The figures of `Agreement` over all of `drawn`, and the pairs whose real images agree least, the worst first.

    Reads keys and captions of the shards that prompts are from, the features of those that are wanted, and no image but
    those that are shown.

    Args:
        drawn: One at least, with the columns `prompt`, `source_key`, `image`, `image_feature` and `text_feature` of
            `DRAWN_SCHEMA`; the prompts are captions of real pairs.
        features: Of the real pairs, by the same CLIP model.
    """
    names = [(row["source_key"], row["prompt"]) for row in drawn]
    real = features.images_of(names)
    text_ND, drawn_ND = (np.stack([row[name] for row in drawn]) for name in ("text_feature", "image_feature"))
    real_ND = np.stack([real[name].feature for name in names])
    agreement = Agreement.of(text_ND, real_ND, drawn_ND)
    worst = agreement.worst_real(shown)
    images = _real_images({names[number]: real[names[number]].address for number in worst}, data)
    return agreement.figures(), [
        Beside(
            caption=cut(drawn[number]["prompt"]),
            real=images.get(names[number]),
            drawn=small_file(open_rgb(drawn[number]["image"])),
            real_score=float(agreement.real_N[number]),
            drawn_score=float(agreement.drawn_N[number]),
        )
        for number in worst
    ]


def _real_images(
    addresses: Mapping[tuple[str, str], tuple[str, int]], data: Data
) -> dict[tuple[str, str], bytes]:
    """Small PNG files by shard/key and caption, without those that the data do not have any more."""
    try:
        rows = fetch_pairs(data, list(addresses.values()))
    except UserError:  # the data have changed since; a finished run shall have its report all the same
        return {}
    found = {}
    for (name, caption), row in zip(addresses, rows, strict=True):
        if row.name != name or row.image is None:
            continue
        try:
            pixels = decode_image(row.image, max_pixels=data.max_image_pixels)
        except BadImage:
            continue
        found[name, caption] = small_file(Image.fromarray(pixels))
    return found
