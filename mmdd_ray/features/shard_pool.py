"""One pass over all shards: Ray Data tasks read and decode, an actor pool works off chunks, and shards are committed.

A shard is committed when all its chunks are written, so a pass that was killed reads only the others again, and works
off only those of their chunks that were not written. The driver sees counts and refused rows alone: what actors make
stays with them and in storage.
"""

import hashlib
import pickle
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from mmdd_ray.config import Data
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.shard import Shard
from mmdd_ray.engine.cluster import ActorPool, missing, retry_faults
from mmdd_ray.engine.memory import peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import StorageError
from mmdd_ray.features.chunks import read_chunks, read_ipc
from mmdd_ray.features.rejects import Reject
from mmdd_ray.features.store import chunk_file, shard_files, shard_of
from mmdd_ray.storage.store import Store

SHARDS = "shards"
READ_CPUS = 0.5  # a reading task decodes, too, but waits for storage and for the actors
MAX_COMMITS = 8  # at once; each holds one chunk, and of features 12 MB of moments at 512 + 512
COMMIT_RETRIES = 5  # where a node is lost, or the storage fails
# Ray Data fills blocks up to its target, and gives a block to an actor: a dozen chunks of a hundred seconds each would
# be one task, and the other actors idle. With a target that every chunk exceeds, a block is a chunk.
BLOCK_BYTES = 1
DIGEST = b"chunk"  # in the metadata of a chunk's file: of the pairs that it was made from


class ChunkActor(ABC):
    """Works off one chunk a call and writes a Parquet file; gives back counts and rejects.

    File name and content depend on the chunk alone, so a call that Ray repeats after a crash changes nothing, and a
    file that an earlier attempt wrote for the same pairs is kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @abstractmethod
    def work(self, shard: str, number: int, pairs: pa.Table, images_BHWC: np.ndarray) -> pa.Table:
        """A table with the results for the chunk.

        Args:
            pairs: Columns index, key, captions, label, image_digest (of the file) and pair_digest (of image, captions
                and label) of its B usable pairs, at least one.
            images_BHWC: Their images, uint8.
        """

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` has one row, made by `Chunk.to_row`."""
        chunk: dict[str, Any] = batch.to_pylist()[0]
        pairs, side, written = read_ipc(chunk.pop("pairs")), chunk.pop("image_px"), chunk.pop("is_written")
        file, digest = chunk_file(chunk["shard"], chunk["number"]), _digest(pairs)
        if len(pairs) and not (written and self._store.parquet_metadata(file).get(DIGEST) == digest):
            images = np.stack([np.frombuffer(image, np.uint8) for image in pairs["image"].to_pylist()])
            images = images.reshape(-1, side, side, 3)
            made = self.work(chunk["shard"], chunk["number"], pairs.drop_columns("image"), images)
            about = made.schema.metadata or {}
            self._store.write_parquet(file, made.replace_schema_metadata(about | {DIGEST: digest}))
        return pa.Table.from_pylist([{**chunk, "rows_out": len(pairs), "peak_bytes": peak_bytes()}])


def _digest(pairs: pa.Table) -> bytes:
    """A digest of pairs as they are stored and named."""
    found = hashlib.blake2b(digest_size=16)
    found.update(repr([pairs[column].to_pylist() for column in ("index", "key", "pair_digest")]).encode())
    return found.hexdigest().encode()


def map_shards(
    stage: StageDir,
    shards: Sequence[Shard],
    data: Data,
    actor: type[ChunkActor],
    *,
    image_px: int,
    chunk_pairs: int,
    pool: ActorPool,
    commit: Callable[[Store, str, list[str]], None] | None = None,
    **arguments: Any,
) -> Generator[tuple[int, list[Reject]]]:
    """Has every chunk of `shards` worked off into the folder of `stage`; yields rows and refused rows of each.

    Args:
        actor: Constructed with `store` and `arguments`.
        chunk_pairs: Rows of a chunk, part of the result.
        commit: Called in a task with the store, a shard and its files before the shard counts as done.

    Raises:
        StorageError: The storage failed.
    """
    committed = set(stage.store.files(SHARDS))
    expected = total_rows(shards)
    if expected is not None:
        expected = round(expected * sliced(data.split)[1].share)  # about so many are in a slice
    with progress(stage.name, total=expected, unit="pairs", missing=missing) as bar:
        todo = [shard for shard in shards if shard_file(shard.name) not in committed]
        saved = [
            counted(shard.name, stage.store.read_json(name))
            for shard in shards
            if (name := shard_file(shard.name)) in committed
        ]
        bar.resume(sum(rows_in for rows_in, _ in saved))
        yield from saved
        if not todo:
            return
        read = partial(_read_shard, data=data, image_px=image_px, chunk_pairs=chunk_pairs)
        # a folder's shards name all its files, so that each reader is given its own shard alone
        written = defaultdict(list)
        for file in shard_files(stage.store):
            written[shard_of(file)].append(file)
        items = [{"shard": pickle.dumps(shard), "written": written[shard.name]} for shard in todo]
        dataset = ray.data.from_items(items, override_num_blocks=len(todo))
        dataset.context.target_max_block_size = BLOCK_BYTES
        retry_faults(dataset)
        worked_off = dataset.flat_map(read, num_cpus=READ_CPUS).map_batches(
            actor,
            fn_constructor_kwargs={"store": stage.store, **arguments},
            batch_size=1,
            batch_format="pyarrow",
            **pool,
        )
        for rows_in, rejects in _commit_whole(worked_off.iter_rows(), stage.store, commit):
            bar.update(rows_in)
            yield rows_in, rejects


def _read_shard(row: dict[str, Any], data: Data, image_px: int, chunk_pairs: int) -> Iterator[dict[str, Any]]:
    written = set(row["written"])
    for chunk in read_chunks(pickle.loads(row["shard"]), data, image_px=image_px, chunk_pairs=chunk_pairs):
        chunk.is_written = chunk_file(chunk.shard, chunk.number) in written
        yield chunk.to_row()


def _commit_whole(
    chunks: Iterable[dict[str, Any]], store: Store, commit: Callable[[Store, str, list[str]], None] | None
) -> Iterator[tuple[int, list[Reject]]]:
    """Commits each shard when all its chunks were seen; yields the rows and the refused rows of each chunk."""
    open_shards: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    commits: list[ray.ObjectRef[Any]] = []
    for chunk in chunks:
        progress.note_memory(chunk["peak_bytes"])
        chunk["rejects"] = read_ipc(chunk["rejects"])["reject"].to_pylist()
        seen = open_shards[chunk["shard"]]
        seen[chunk["number"]] = chunk
        yield counted(chunk["shard"], chunk)
        last = next((number for number, one in seen.items() if one["is_last"]), None)
        if last is not None and len(seen) == last + 1:
            if len(commits) == MAX_COMMITS:
                done, commits = ray.wait(commits)
                ray.get(done)
            commits.append(_commit_shard.remote(store, [seen[number] for number in range(last + 1)], commit))
            del open_shards[chunk["shard"]]
    ray.get(commits)


# Without a CPU of their own: commits that wait for one, while the readers that hold them all wait for the driver,
# which waits for commits, would wait for ever. Spread, so that not all of them run beside the driver.
@ray.remote(  # type: ignore[call-overload, untyped-decorator]  # its annotations know no list of exceptions, its documentation does
    num_cpus=0,
    max_retries=COMMIT_RETRIES,
    retry_exceptions=[StorageError],
    scheduling_strategy="SPREAD",
)
def _commit_shard(
    store: Store, chunks: list[dict[str, Any]], commit: Callable[[Store, str, list[str]], None] | None
) -> None:
    """Writes the record that says the shard is done, after what else `commit` writes."""
    shard = chunks[0]["shard"]
    files = [chunk_file(shard, chunk["number"]) for chunk in chunks if chunk["rows_out"]]
    for stale in set(shard_files(store, shard)) - set(files):  # of a longer shard that was there before
        store.remove(stale)
    if commit:
        commit(store, shard, files)
    record = {
        "digest": chunks[-1]["digest"],
        "stored_rows": chunks[-1]["stored_rows"],
        "rows_in": sum(chunk["rows_in"] for chunk in chunks),
        "rows_out": sum(chunk["rows_out"] for chunk in chunks),
        "rejects": [reject for chunk in chunks for reject in chunk["rejects"]],
    }
    store.write_json(shard_file(shard), record)


def for_each_shard(shards: Iterable[str], work: Callable[..., None], store: Store, **arguments: Any) -> None:
    """Calls ``work(store, shard, **arguments)`` for each shard, in a task that runs again where the storage fails."""
    running: list[ray.ObjectRef[Any]] = []
    for shard in shards:
        if len(running) == MAX_COMMITS:
            done, running = ray.wait(running)
            ray.get(done)
        running.append(_work_on.remote(work, store, shard, arguments))
    ray.get(running)


@ray.remote(  # type: ignore[call-overload, untyped-decorator]  # as of _commit_shard
    num_cpus=READ_CPUS,
    max_retries=COMMIT_RETRIES,
    retry_exceptions=[StorageError],
    scheduling_strategy="SPREAD",
)
def _work_on(work: Callable[..., None], store: Store, shard: str, arguments: dict[str, Any]) -> None:
    work(store, shard, **arguments)


def counted(shard: str, counts: dict[str, Any]) -> tuple[int, list[Reject]]:
    """Rows and refused rows of a chunk or of a shard's record."""
    return counts["rows_in"], [(shard, key, reason) for key, reason in counts["rejects"]]


def shard_file(shard: str) -> str:
    """Record of a committed shard: its digest, stored_rows, rows_in, rows_out, and rejects as (key, reason)."""
    return f"{SHARDS}/{shard}.json"


def total_rows(shards: Sequence[Shard]) -> int | None:
    """Rows of all shards, or None where that of one is not known."""
    counts = [shard.rows for shard in shards]
    return None if None in counts else sum(count for count in counts if count is not None)
