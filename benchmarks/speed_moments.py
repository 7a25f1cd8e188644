"""Moments over a feature store: how near one pass comes to its matrix products and one read.

    python benchmarks/speed_moments.py --folder FOLDER

Arms, all on one core:

- ours: what the feature stage does at the commit of each shard, and the sum of the shards.
- bare: the loop that one would write for one process: the features of a file as float32, shifted by the mean of the
  first file, and three products in float32 that are added up in float64.
- textbook: each file in float64, its mean and centred products, merged by the update of Chan et al.
- limit: the same files read, and the three products of as many float32 rows that lie ready, 1,024 at a time.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro
from feature_stores import DIM, write_features
from speed import Speed, faster, in_turns, record

from mmdd_ray.features.moments import Moments, MomentsSum
from mmdd_ray.features.store import (
    FEATURES,
    FeatureStore,
    add_table,
    image_features,
    shard_files,
    shard_of,
    text_features,
)
from mmdd_ray.storage.store import Store

ROWS = {"tiny": 2_000, "cpu": 1_000_000, "gpu": 1_000_000}
PRODUCT_ROWS = 1024


@dataclass(kw_only=True)
class MomentsSpeed(Speed):
    """Times moments over a feature store."""

    folder: Path | None = None
    """Where the store is written, 2 KB a row, and deleted again; default: the temporary folder."""


def ours(store: Store) -> Moments:
    shards = sorted({shard_of(file) for file in shard_files(store)})
    total = None
    for shard in shards:
        own = MomentsSum()
        for file in shard_files(store, shard):
            add_table(own, store.read_parquet(file, FEATURES))
        total = own.moments() if total is None else total + own.moments()
    assert total is not None
    return total


def bare(store: Store) -> np.ndarray:
    shift, (image, text, cross) = None, np.zeros((3, DIM, DIM))
    for table in FeatureStore(store).tables(FEATURES):
        rows = np.concatenate([image_features(table), text_features(table)], axis=1).astype(np.float32)
        shift = rows.mean(axis=0) if shift is None else shift
        rows -= shift
        left, right = np.split(rows, 2, axis=1)
        image += left.T @ left
        text += right.T @ right
        cross += left.T @ right
    return cross


def textbook(store: Store) -> Moments:
    total = None
    for table in FeatureStore(store).tables(FEATURES):
        image, text = image_features(table).astype(np.float64), text_features(table).astype(np.float64)
        v, t = image - image.mean(axis=0), text - text.mean(axis=0)
        part = Moments(len(image), image.mean(axis=0), text.mean(axis=0), v.T @ v, t.T @ t, v.T @ t)
        total = part if total is None else total + part
    assert total is not None
    return total


def limit(store: Store, rows: int) -> None:
    for file in shard_files(store):
        pq.ParquetFile(store.path(file)).read(FEATURES)
    left, right = np.random.default_rng(0).standard_normal((2, PRODUCT_ROWS, DIM), np.float32)
    for _ in range(-(-rows // PRODUCT_ROWS)):
        left.T @ left
        right.T @ right
        left.T @ right


def main() -> None:
    asked = tyro.cli(MomentsSpeed)
    folder, rows = Path(tempfile.mkdtemp(dir=asked.folder)), ROWS[asked.size]
    try:
        store = Store(str(folder))
        write_features(store, rows)
        known, found = textbook(store), ours(store)
        scale = np.sqrt(np.outer(known.vv.diagonal(), known.ll.diagonal()))
        error = float((np.abs(found.vl - known.vl) / scale).max())
        assert error < 1e-6, error
        arms = {
            "ours": lambda: ours(store),
            "bare": lambda: bare(store),
            "textbook": lambda: textbook(store),
            "limit": lambda: limit(store, rows),
        }
        seconds = in_turns(arms, asked.repetitions, warm_up=False)  # all have read the files
    finally:
        shutil.rmtree(folder)
    ratios = [
        faster(
            "moments: share of the limit, products at their peak and one read", seconds, "ours", "limit", 0.8
        ),
        faster("moments: over the bare loop", seconds, "ours", "bare"),
        faster("moments: over the textbook, float64", seconds, "ours", "textbook"),
    ]
    micros = {name: [1e6 * one / rows for one in own] for name, own in seconds.items()}
    record("moments", asked, ratios, rows=rows, microseconds_a_row=micros, largest_error=error)


if __name__ == "__main__":
    main()
