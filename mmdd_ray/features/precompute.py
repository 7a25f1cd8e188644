"""The feature stage: shards -> CLIP features in Parquet, exact moments, and a list of everything refused.

Reading and decoding are Ray Data tasks, one stream per shard; encoding is an actor pool behind them. A shard is
committed when all its chunks are written, so a run that was killed reads only the others again.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from pandas.util import hash_array

from mmdd_ray.cluster import actor_pool, connected
from mmdd_ray.config import Data, Edge, Evaluate, Features, Precompute
from mmdd_ray.data.schema import REJECT_SCHEMA
from mmdd_ray.data.shards import TRANSPORT_ERROR, Shard, list_shards
from mmdd_ray.errors import UserError
from mmdd_ray.features.chunks import read_chunks, read_ipc
from mmdd_ray.features.encoder import ClipEncoder
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.store import DUPLICATES, MOMENTS, FeatureStore, table_moments
from mmdd_ray.progress import progress
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.store import Store

REJECTS = "rejects.parquet"
READ_CPUS = 0.5  # a reading task decodes, too, but waits for storage and for the encoders
# A source is judged by its rejects from here on, and at its end; a handful of rows says nothing.
ROWS_TO_JUDGE = 1000


def precompute_run(settings: Precompute, preset: str) -> str:
    """A run with this stage alone; returns a summary of what it found.

    Raises:
        ValueError: The settings or the data are wrong.
    """
    list_shards(settings.data)
    with (
        RunDir.open(settings.run.dir, "precompute", preset, settings) as run,
        connected(settings.run) as devices,
    ):
        run.devices = devices.as_json()
        stage = feature_stage(run, settings)
        manifest, store = stage.manifest, stage.store
    rejects = "".join(f"\n  {count:>12,} {reason}" for reason, count in manifest["rejects"].items())
    return (
        f"{manifest['rows_in']:,} rows, {manifest['rows_out']:,} usable images, "
        f"{manifest['extra']['pairs']:,} pairs{rejects}\nfeatures  {store.path('pairs')}\n"
        f"moments   {store.path(MOMENTS)}"
    )


def feature_stage(run: RunDir, settings: Precompute | Edge | Evaluate) -> Stage:
    """The stage `features` of a run, whose folder a `FeatureStore` reads."""
    return run.stage("features", lambda stage: precompute(stage, run.store, settings.data, settings.features))


def precompute(stage: Stage, run_store: Store, data: Data, features: Features) -> StageResult:
    """Encodes every pair of `data`; writes the feature store, its moments and the run's rejects.parquet.

    Raises:
        ValueError: More than `data.max_reject_ratio` of the rows were refused, or no pair is left.
    """
    shards = list_shards(data)
    committed = {name for shard in shards if stage.store.exists(name := _shard_file(shard.name))}
    todo = [shard for shard in shards if _shard_file(shard.name) not in committed]
    with progress("features", total=_total_rows(shards), unit="pairs") as bar:
        tally = _Tally(data.max_reject_ratio)
        for shard in shards:
            if shard not in todo:
                record = stage.store.read_json(_shard_file(shard.name))
                tally.add(record["rows_in"], len(record["rejects"]))
                bar.update(record["rows_in"])
        for rows_in, rejected in _encode(todo, data, features, stage.store):
            tally.add(rows_in, rejected)
            bar.update(rows_in)
        tally.judge()
    return _commit(stage.store, run_store, shards, data, features)


class _Tally:
    """Counts rows, and stops a source that is mostly broken."""

    def __init__(self, max_ratio: float) -> None:
        self.max_ratio = max_ratio
        self.rows_in = self.rejected = 0

    def add(self, rows_in: int, rejected: int) -> None:
        self.rows_in += rows_in
        self.rejected += rejected
        if self.rows_in >= ROWS_TO_JUDGE:
            self.judge()

    def judge(self) -> None:
        if self.rejected > self.max_ratio * self.rows_in:
            raise UserError(
                f"{self.rejected:,} of the first {self.rows_in:,} rows were refused, more than "
                f"data.max_reject_ratio={self.max_ratio:g} allows; look at the data or raise that setting"
            )


def _encode(shards: list[Shard], data: Data, features: Features, store: Store) -> Iterator[tuple[int, int]]:
    """Encodes `shards`, commits each when it is whole, and yields (rows, rejected rows) of each chunk."""
    if not shards:
        return
    read = partial(_read_shard, shards=shards, data=data, features=features)
    numbers = [{"shard": number} for number in range(len(shards))]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(shards))
    context = dataset.context
    context.retried_map_errors, context.max_map_retries = [TRANSPORT_ERROR], 4
    encoded = dataset.flat_map(read, num_cpus=READ_CPUS).map_batches(
        ClipEncoder,
        fn_constructor_kwargs={"clip": features.clip, "store": store},
        batch_size=1,
        batch_format="pyarrow",
        **actor_pool(features.min_actors, features.max_actors, features.gpus_per_actor),
    )
    open_shards: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for chunk in encoded.iter_rows():
        chunks = open_shards[chunk["shard"]]
        chunks[chunk["number"]] = chunk
        yield chunk["rows_in"], len(read_ipc(chunk["rejects"]))
        last = next((number for number, seen in chunks.items() if seen["is_last"]), None)
        if last is not None and len(chunks) == last + 1:
            _commit_shard(store, [chunks[number] for number in range(last + 1)])
            del open_shards[chunk["shard"]]


def _read_shard(
    row: dict[str, Any], shards: list[Shard], data: Data, features: Features
) -> Iterator[dict[str, Any]]:
    shard = shards[row["shard"]]
    chunks = read_chunks(shard, data, image_px=features.image_px, chunk_pairs=features.chunk_pairs)
    return (chunk.to_row() for chunk in chunks)


def _commit_shard(store: Store, chunks: list[dict[str, Any]]) -> None:
    """Writes the sum of the chunks' moments, then the record that says the shard is done."""
    shard = chunks[0]["shard"]
    parts = [Moments.from_bytes(chunk["moments"]) for chunk in chunks if chunk["moments"]]
    if parts:
        total = sum(parts[1:], start=parts[0])
        store.write_bytes(_shard_moments(shard), total.to_bytes("", "float16"))
    rejects = [reject for chunk in chunks for reject in read_ipc(chunk["rejects"])["reject"].to_pylist()]
    record = {
        "rows_in": sum(chunk["rows_in"] for chunk in chunks),
        "rows_out": sum(chunk["rows_out"] for chunk in chunks),
        "rejects": rejects,
    }
    store.write_json(_shard_file(shard), record)


def _commit(
    store: Store, run_store: Store, shards: list[Shard], data: Data, features: Features
) -> StageResult:
    """Adds the shards up in their order, takes duplicates out again, and writes moments and rejects."""
    records = {shard.name: store.read_json(_shard_file(shard.name)) for shard in shards}
    rejects = [(name, key, reason) for name, r in records.items() for key, reason in r["rejects"]]
    rows_in = sum(record["rows_in"] for record in records.values())
    moments: Moments | None = None
    for name, record in records.items():
        if record["rows_out"]:
            part = Moments.from_bytes(store.read_bytes(_shard_moments(name)))
            moments = part if moments is None else moments + part
    if moments is None:
        raise UserError(f"data.uri={data.uri} has no usable pair: all {rows_in:,} rows were refused")
    duplicates = _drop_duplicates(store)
    rejects += [(shard, key, "duplicate key") for shard, key in zip(*_names(duplicates), strict=True)]
    if len(duplicates):
        moments -= table_moments(duplicates)
    rows_out = rows_in - len(rejects)
    store.write_bytes(MOMENTS, moments.to_bytes(features.clip, "float16"))
    columns = [pa.array(column, pa.string()) for column in zip(*rejects, strict=True)] if rejects else None
    table = pa.table(columns, schema=REJECT_SCHEMA) if columns else REJECT_SCHEMA.empty_table()
    run_store.write_parquet(REJECTS, table)
    return StageResult(
        rows_in=rows_in,
        rows_out=rows_out,
        rejects=Counter(reason for _, _, reason in rejects),
        extra={"pairs": moments.count, "shards": len(shards), "clip": features.clip},
    )


def _drop_duplicates(store: Store) -> pa.Table:
    """Takes rows whose key an earlier shard has out of the feature files, and returns them.

    (Reading refuses duplicates within a shard.) The rows are saved before any file is rewritten, so a run that
    is killed in between still knows them all. Keys are compared by 64-bit hash: among 3.3 million, two
    different ones collide with a chance of 3e-7.
    """
    files = FeatureStore(store).files
    if not store.exists(DUPLICATES):
        hashes = [hash_array(store.read_parquet(f, ["key"])["key"].to_numpy()) for f in files]
        _, first = np.unique(np.concatenate(hashes), return_index=True)
        repeated = np.setdiff1d(np.arange(sum(map(len, hashes))), first)
        starts = np.cumsum([0, *map(len, hashes)])
        found = [store.read_parquet(files[0]).slice(0, 0)]
        for file, start, stop in zip(files, starts, starts[1:], strict=False):
            rows = repeated[(repeated >= start) & (repeated < stop)] - start
            if len(rows):
                found.append(store.read_parquet(file).take(rows))
        store.write_parquet(DUPLICATES, pa.concat_tables(found))
    duplicates = store.read_parquet(DUPLICATES)
    unwanted: dict[str, set[int]] = defaultdict(set)
    for shard, index in zip(duplicates["shard"].to_pylist(), duplicates["index"].to_pylist(), strict=True):
        unwanted[shard].add(index)
    for file in files:
        if indices := unwanted.get(file.split("/")[1]):
            table = store.read_parquet(file)
            kept = [index not in indices for index in table["index"].to_pylist()]
            if not all(kept):
                store.write_parquet(file, table.filter(pa.array(kept)))
    return duplicates


def _names(table: pa.Table) -> tuple[list[str], list[str]]:
    return table["shard"].to_pylist(), table["key"].to_pylist()


def _shard_file(shard: str) -> str:
    return f"shards/{shard}.json"


def _shard_moments(shard: str) -> str:
    return f"shards/{shard}.safetensors"


def _total_rows(shards: list[Shard]) -> int | None:
    counts = [shard.rows for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)
