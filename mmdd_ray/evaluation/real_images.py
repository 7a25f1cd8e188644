"""Real images that are looked at where they are read, to set a distilled set's beside them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmdd_ray.config import Data
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.sources import READ_CPUS, rows_at
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.copies import SMALL_PX, Smalls, saturated_share, small
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.storage.redact import redact


@dataclass(frozen=True)
class RealImages:
    """Some real images as they were seen, by their rows in the feature store."""

    smalls: Smalls
    saturated: dict[int, float]
    """Share of saturated levels, at the side of the set's images."""
    names: dict[int, str]
    """Shard/key."""


def read_real(data: Data, features: FeatureStore, rows: np.ndarray, side: int) -> RealImages:
    """Looks at the real images of these rows where they are read, in one pass; rows of -1 are none.

    Raises:
        UserError: The data have changed since their features were made.
    """
    numbers = np.unique(rows[rows >= 0]).tolist()
    by_address = {features.addresses[row]: row for row in numbers}
    most = data.max_image_pixels

    # a function in a function travels by value
    def look(found: pa.Table) -> pa.Table:
        smalls, saturated = [], []
        for image in found["image"].to_pylist():
            try:
                pixels = decode_image(image or b"", max_pixels=most, image_px=side)
            except BadImage:
                pixels = None
            smalls.append(None if pixels is None else small(pixels).tobytes())
            saturated.append(None if pixels is None else saturated_share(pixels))
        return (
            found.select(["shard", "index", "key"])
            .append_column("small", pa.array(smalls, pa.binary()))
            .append_column("saturated", pa.array(saturated, pa.float64()))
        )

    real = RealImages({}, {}, {})
    read = rows_at(data, by_address)
    looked = read and read.map_batches(look, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)
    for one in looked.iter_rows() if looked else ():
        if one["small"] is not None and (row := by_address.get((one["shard"], one["index"]))) is not None:
            real.smalls[row] = np.frombuffer(one["small"], np.uint8).reshape(SMALL_PX, SMALL_PX, 3)
            real.saturated[row] = one["saturated"]
            real.names[row] = f"{one['shard']}/{one['key']}"
    if lost := [row for row in numbers if row not in real.names]:
        shard, index = features.addresses[lost[0]]
        raise UserError(
            f"data.uri={redact(data.uri)} has changed since its features were made: {len(lost):,} images are missing "
            f"or cannot be decoded (the first, row {index} of the shard {shard}); restore the data, or set run.dir to "
            "a new folder"
        )
    return real
