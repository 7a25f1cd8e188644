"""Pictures of an audit: images of the set beside the real ones that are nearest to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.images import decode_image
from mmdd_ray.data.sources import fetch_pairs
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.thumbnails import small_file
from mmdd_ray.evaluation.audited_set import MAX_PIXELS
from mmdd_ray.evaluation.copies import Closest
from mmdd_ray.evaluation.copies_sheet import BesideReal, copies_sheet
from mmdd_ray.features.store import FeatureStore

SHOWN = 10


def nearest_images(listed: Sequence[Mapping[str, Any]], data: Data) -> pa.Table:
    """A small picture of the nearest real image for each image of the set that has one: by pixels, where those were
    compared, otherwise by CLIP.

    Args:
        listed: Images of the set as `nearest.json` has them.

    Returns:
        A row for each: ``key`` of the image, ``real``, the shard and key of its neighbour, ``cosine``, ``rms`` (null,
        where only CLIP looked) and ``image``, a PNG or JPEG file.
    """
    nearest = {one["key"]: one.get("by_pixels") or one["by_clip"] for one in listed if "by_clip" in one}
    files = fetch_pairs(data, [tuple(near["address"]) for near in nearest.values()])
    decoded = (decode_image(file.image or b"", max_pixels=data.max_image_pixels) for file in files)
    pictures = [small_file(Image.fromarray(pixels)) for pixels in decoded]
    return pa.table(
        {
            "key": pa.array(list(nearest), pa.string()),
            "real": pa.array([file.name for file in files], pa.string()),
            "cosine": pa.array([near["cosine"] for near in nearest.values()], pa.float64()),
            "rms": pa.array([near.get("rms") for near in nearest.values()], pa.float64()),
            "image": pa.array(pictures, pa.binary()),
        }
    )


def picture_of_copies(
    samples: Sequence[Sample], found: Closest, features: FeatureStore, data: Data, names: Mapping[int, str]
) -> bytes:
    """The sheet of the samples that are nearest to real images by pixels.

    Args:
        found: The nearest real image of each sample.
        names: Shard and key of real images by their row.
    """
    first = [at for at in np.argsort(found.rms_N, kind="stable")[:SHOWN].tolist() if found.row_N[at] >= 0]
    rows = [int(found.row_N[at]) for at in first]
    files = fetch_pairs(data, [features.addresses[row] for row in rows])
    return copies_sheet(
        [
            BesideReal(
                key=samples[at].key,
                image=decode_image(samples[at].image, max_pixels=MAX_PIXELS),
                real=decode_image(file.image or b"", max_pixels=data.max_image_pixels),
                real_name=names[row],
                cosine=float(found.cosine_N[at]),
                rms=float(found.rms_N[at]),
                is_copy=bool(found.is_copy_N[at]),
            )
            for at, row, file in zip(first, rows, files, strict=True)
        ]
    )
