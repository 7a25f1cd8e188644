"""Feature stores of random features, laid out as the feature stage does it."""

import numpy as np
import pyarrow as pa

from mmdd_ray.features.store import chunk_file, feature_table
from mmdd_ray.storage.store import Store

DIM = 512  # of ViT-B/32's image and text features
CHUNK_ROWS, SHARD_ROWS = 512, 10_000


def shards_of(rows: int) -> list[tuple[str, int]]:
    """Names and rows of the shards."""
    starts = range(0, rows, SHARD_ROWS)
    return [(f"{number:05d}", min(SHARD_ROWS, rows - start)) for number, start in enumerate(starts)]


def write_features(store: Store, rows: int) -> None:
    """One caption an image, whose feature is a little like that of its image."""
    for shard, own in shards_of(rows):
        rng = np.random.default_rng(int(shard))
        for number, start in enumerate(range(0, own, CHUNK_ROWS)):
            n = min(CHUNK_ROWS, own - start)
            image, noise = rng.standard_normal((2, n, DIM), np.float32)
            keys = [f"{shard}{row:06d}" for row in range(start, start + n)]
            pairs = pa.table(
                {
                    "index": np.arange(start, start + n),
                    "key": keys,
                    "captions": [[f"a caption of the image {key}"] for key in keys],
                    "label": pa.nulls(n, pa.int64()),
                }
            )
            store.write_parquet(
                chunk_file(shard, number), feature_table(pairs, shard, image, 0.3 * image + noise)
            )
