"""A feature store of given rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mmdd_ray.features.store import FeatureStore, feature_table
from mmdd_ray.storage.store import Store


def features_in(
    folder: Path, labels: list[int | None], captions: list[list[str]], images: np.ndarray
) -> FeatureStore:
    store = Store(str(folder))
    pairs = pa.table(
        {
            "index": range(len(labels)),
            "key": [f"k{i}" for i in range(len(labels))],
            "captions": pa.array(captions, pa.list_(pa.string())),
            "label": pa.array(labels, pa.int64()),
        }
    )
    texts = np.ones((sum(map(len, captions)), 4))
    store.write_parquet("pairs/s/00000.parquet", feature_table(pairs, "s", images, texts))
    return FeatureStore(store)
