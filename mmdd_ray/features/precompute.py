"""The feature stage: shards -> CLIP features in Parquet, exact moments, and a list of everything refused.

Reading and decoding are Ray Data tasks, one stream per shard; encoding is an actor pool behind them. A shard is
committed when all its chunks are written, so a run that was killed reads only the others again. The driver sees
counts and refused rows alone: features and moments stay with the workers and in storage.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from pandas.util import hash_array

from mmdd_ray.cluster import actor_pool, connected
from mmdd_ray.config import Covmatch, Data, Edge, Evaluate, Features, Precompute
from mmdd_ray.data.readers import Shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.data.sources import retry_storage
from mmdd_ray.errors import UserError
from mmdd_ray.features.chunks import read_chunks, read_ipc
from mmdd_ray.features.encoder import ClipSource, EncoderSource, FeatureEncoder
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.rejects import Reject, RejectList, Tally
from mmdd_ray.features.store import DUPLICATES, MOMENTS, FeatureStore, chunk_file, table_moments
from mmdd_ray.progress import progress
from mmdd_ray.run import RunDir, Stage, StageResult
from mmdd_ray.store import Store

SHARDS = "shards"
READ_CPUS = 0.5  # a reading task decodes, too, but waits for storage and for the encoders
MAX_COMMITS = 8  # at once; each holds one chunk of features and 12 MB of moments at 512 + 512 features
COMMIT_RETRIES = 5  # where a node is lost


def precompute_run(settings: Precompute, preset: str) -> str:
    """A run with this stage alone; returns a summary of what it found.

    Call `mmdd_ray.check.check` first, which finds most mistakes before Ray starts.

    Raises:
        ValueError: The settings or the data are wrong.
    """
    with (
        RunDir.open(settings.run.dir, "precompute", preset, settings) as run,
        connected(settings.run, run.store) as devices,
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


def feature_stage(run: RunDir, settings: Precompute | Edge | Covmatch | Evaluate) -> Stage:
    """The stage `features` of a run, whose folder a `FeatureStore` reads."""
    return run.stage("features", lambda stage: precompute(stage, run.store, settings.data, settings.features))


def precompute(
    stage: Stage,
    run_store: Store | None,
    data: Data,
    features: Features,
    source: EncoderSource | None = None,
) -> StageResult:
    """Encodes every pair of `data`; writes the feature store, its moments and the run's rejects.parquet.

    Args:
        run_store: The run directory; None where another stage has listed what is refused.
        source: Default: the CLIP model of `features`.

    Raises:
        ValueError: More than `data.max_reject_ratio` of the rows were refused, or no pair is left.
    """
    source = source or ClipSource(features.clip)
    shards = list_shards(data)
    total_rows = _total_rows(shards)
    committed = set(stage.store.files(SHARDS))
    listed = RejectList(stage.store, run_store)
    tally = Tally("data.uri", data.max_reject_ratio, listed, total_rows)
    with progress(stage.name, total=total_rows, unit="pairs") as bar:
        todo = [shard for shard in shards if _shard_file(shard.name) not in committed]
        held = [
            _counted(shard.name, stage.store.read_json(name))
            for shard in shards
            if (name := _shard_file(shard.name)) in committed
        ]
        bar.update(sum(rows_in for rows_in, _ in held))  # at once: the rate counts what comes after the first
        for rows_in, rejects in held:
            tally.add(rows_in, rejects)
        for rows_in, rejects in _encode(todo, data, features, source, stage.store):
            bar.update(rows_in)
            tally.add(rows_in, rejects)
        tally.judge()
    return _commit(stage.store, run_store, shards, data, source)


def _encode(
    shards: list[Shard], data: Data, features: Features, source: EncoderSource, store: Store
) -> Iterator[tuple[int, list[Reject]]]:
    """Encodes `shards`, commits each when it is whole, and yields the rows and the refused rows of each chunk."""
    if not shards:
        return
    read = partial(_read_shard, shards=shards, data=data, features=features)
    numbers = [{"shard": number} for number in range(len(shards))]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(shards))
    retry_storage(dataset)
    encoded = dataset.flat_map(read, num_cpus=READ_CPUS).map_batches(
        FeatureEncoder,
        fn_constructor_kwargs={"source": source, "store": store},
        batch_size=1,
        batch_format="pyarrow",
        **actor_pool(features),
    )
    open_shards: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    commits: list[ray.ObjectRef] = []
    for chunk in encoded.iter_rows():
        chunk["rejects"] = read_ipc(chunk["rejects"])["reject"].to_pylist()
        chunks = open_shards[chunk["shard"]]
        chunks[chunk["number"]] = chunk
        yield _counted(chunk["shard"], chunk)
        last = next((number for number, seen in chunks.items() if seen["is_last"]), None)
        if last is not None and len(chunks) == last + 1:
            if len(commits) == MAX_COMMITS:
                done, commits = ray.wait(commits)
                ray.get(done)
            commits.append(_commit_shard.remote(store, [chunks[number] for number in range(last + 1)]))
            del open_shards[chunk["shard"]]
    ray.get(commits)


def _read_shard(
    row: dict[str, Any], shards: list[Shard], data: Data, features: Features
) -> Iterator[dict[str, Any]]:
    shard = shards[row["shard"]]
    chunks = read_chunks(shard, data, image_px=features.image_px, chunk_pairs=features.chunk_pairs)
    return (chunk.to_row() for chunk in chunks)


# Without a CPU of their own: commits that wait for one, while the readers that hold them all wait for the driver,
# which waits for commits, would wait for ever. Spread, so that not all of them run beside the driver.
@ray.remote(num_cpus=0, max_retries=COMMIT_RETRIES, scheduling_strategy="SPREAD")
def _commit_shard(store: Store, chunks: list[dict[str, Any]]) -> None:
    """Writes the sum of the moments of the stored chunks, then the record that says the shard is done."""
    shard = chunks[0]["shard"]
    files = [chunk_file(shard, chunk["number"]) for chunk in chunks if chunk["rows_out"]]
    if files:
        total = table_moments(store.read_parquet(files[0]))
        for file in files[1:]:
            total += table_moments(store.read_parquet(file))
        store.write_bytes(_shard_moments(shard), total.to_bytes("", "float16"))
    record = {
        "rows_in": sum(chunk["rows_in"] for chunk in chunks),
        "rows_out": sum(chunk["rows_out"] for chunk in chunks),
        "rejects": [reject for chunk in chunks for reject in chunk["rejects"]],
    }
    store.write_json(_shard_file(shard), record)


def _commit(
    store: Store, run_store: Store | None, shards: list[Shard], data: Data, source: EncoderSource
) -> StageResult:
    """Adds the shards up in their order, takes duplicates out again, and writes moments and rejects."""
    listed = RejectList(store, run_store)
    tally = Tally("data.uri", data.max_reject_ratio, listed, _total_rows(shards))
    moments: Moments | None = None
    for shard in shards:
        record = store.read_json(_shard_file(shard.name))
        tally.add(*_counted(shard.name, record))
        if record["rows_out"]:
            part = Moments.from_bytes(store.read_bytes(_shard_moments(shard.name)))
            moments = part if moments is None else moments + part
    if moments is None:
        listed.save()
        raise UserError(
            f"data.uri={data.uri} has no usable pair: all {tally.rows_in:,} rows were refused; "
            f"look at {listed.path}"
        )
    duplicates = _drop_duplicates(store)
    tally.add(0, [(shard, key, "duplicate key") for shard, key in zip(*_names(duplicates), strict=True)])
    tally.judge()
    if len(duplicates):
        moments -= table_moments(duplicates)
    store.write_bytes(MOMENTS, moments.to_bytes(source.name, "float16"))
    listed.save()
    return StageResult(
        rows_in=tally.rows_in,
        rows_out=tally.rows_in - tally.reasons.total(),
        rejects=tally.reasons,
        extra={"pairs": moments.count, "shards": len(shards), "encoder": source.name},
    )


def _counted(shard: str, counts: dict[str, Any]) -> tuple[int, list[Reject]]:
    """Rows and refused rows of a chunk or of a shard's record."""
    return counts["rows_in"], [(shard, key, reason) for key, reason in counts["rejects"]]


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
    return f"{SHARDS}/{shard}.json"


def _shard_moments(shard: str) -> str:
    return f"{SHARDS}/{shard}.safetensors"


def _total_rows(shards: list[Shard]) -> int | None:
    counts = [shard.rows for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)
