"""A dataset's URI -> a Ray dataset of pairs: one read task per shard, damaged rows included."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from mmdd_ray.config import Data
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.pair import PAIR_SCHEMA, Row, pairs_table
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.engine.cluster import retry_faults
from mmdd_ray.errors import UserError

BLOCK_BYTES = 16 * 2**20  # 300 images of 50 kB; Ray's own 128 MiB would keep consumers waiting
TABLE_ROWS = 256  # Ray joins these tables into blocks of up to BLOCK_BYTES
READ_CPUS = 0.25  # a reader waits for storage most of the time


def read_pairs(data: Data) -> ray.data.Dataset:
    """The pairs of ``data`` as a lazy dataset with the columns of ``PAIR_SCHEMA``, in no particular order.

    Rows that are no usable pair are there too, with ``reject`` set: count them, then filter. Blocks hold
    about ``BLOCK_BYTES``. Failing storage is retried by Ray; a shard is then read again from its start, and
    each row still comes out once.

    Raises:
        UserError: as ``list_shards``, before anything is scheduled.
    """
    return _read([(shard, None) for shard in list_shards(data)], data)


def fetch_pairs(data: Data, addresses: Sequence[tuple[str, int]]) -> list[Row]:
    """The rows at the given ``(shard, index)`` addresses, in that order; reads only the shards they are in.

    Raises:
        UserError: for an address that the dataset does not have.
    """
    rows = rows_at(data, addresses)
    found: dict[tuple[str, int], Row] = {}
    if rows is not None:
        found = {(row.shard, row.index): row for row in (Row(**row) for row in rows.iter_rows())}
    for name, index in addresses:
        if (name, index) not in found:
            raise UserError(f"data.uri={data.uri} has no row {index} in a shard {name!r}; has it changed?")
    return [found[address] for address in addresses]


def rows_at(data: Data, addresses: Iterable[tuple[str, int]]) -> ray.data.Dataset | None:
    """The rows at the given ``(shard, index)`` addresses, as lazy as ``read_pairs``; reads only the shards they are in.

    Addresses that the dataset does not have are left out; None where it has none of their shards.

    Raises:
        UserError: as ``list_shards``.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for name, index in addresses:
        wanted[name].add(index)
    shards = [(shard, wanted[shard.name]) for shard in list_shards(data) if shard.name in wanted]
    return _read(shards, data) if shards else None


def training_pairs(
    data: Data,
    *,
    image_px: int,
    seed: int,
    excluded: Collection[tuple[str, int]] = (),
    texts: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> ray.data.Dataset:
    """The usable pairs of ``data``, decoded, for a training.

    Leaves out rejected rows, undecodable images and the ``(shard, index)`` in ``excluded``; the feature stage
    has counted and listed them. Columns: ``image``, uint8 (image_px, image_px, 3); ``captions``; ``first``, a
    random number that says with which caption the pair starts.

    Args:
        texts: gives the captions of a row of ``PAIR_SCHEMA``, in place of its own; a row without any is left out.

    Raises:
        ValueError: as ``read_pairs``.
    """
    left_out = frozenset(excluded)

    # A function in a function travels by value, so that the readers need not import this module and torch.
    def decode(rows: pa.Table) -> dict[str, Any]:
        images, captions, first = [], [], []
        for row in rows.to_pylist():
            address = (row["shard"], row["index"])
            if row["reject"] is not None or address in left_out:
                continue
            own = texts(row) if texts else row["captions"]
            if not own:
                continue
            try:
                pixels = decode_image(row["image"], max_pixels=data.max_image_pixels, image_px=image_px)
            except BadImage:
                continue
            images.append(pixels)
            captions.append(own)
            first.append(zlib.crc32(f"{seed}/{address}".encode()))
        return {
            "image": np.stack(images) if images else np.empty((0, image_px, image_px, 3), np.uint8),
            "captions": pa.array(captions, pa.list_(pa.string())),
            "first": np.array(first, np.int64),
        }

    # With the readers' share of a CPU, Ray Data makes reading and decoding one task.
    return read_pairs(data).map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=READ_CPUS)


def _read(wanted: Sequence[tuple[Shard, Collection[int] | None]], data: Data) -> ray.data.Dataset:
    # As many blocks as shards, or Ray would split each block again to occupy its CPUs.
    dataset = ray.data.read_datasource(
        _Shards(wanted, data), num_cpus=READ_CPUS, override_num_blocks=len(wanted)
    )
    retry_faults(dataset)
    dataset.context.target_max_block_size = BLOCK_BYTES
    return dataset


class _Shards(Datasource):
    """Reads each shard in a task of its own; with row numbers, only these rows of it."""

    def __init__(self, wanted: Sequence[tuple[Shard, Collection[int] | None]], data: Data) -> None:
        super().__init__()
        self._wanted = wanted
        self._data = data

    def estimate_inmemory_data_size(self) -> int | None:
        sizes = [shard.size_bytes for shard, _ in self._wanted]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """One task per shard whatever ``parallelism`` says: a shard is a stream."""
        return [
            ReadTask(
                partial(_tables, shard, self._data, only),
                BlockMetadata(
                    num_rows=None, size_bytes=shard.size_bytes, input_files=(shard.uri,), exec_stats=None
                ),
                schema=PAIR_SCHEMA,
                per_task_row_limit=per_task_row_limit,
            )
            for shard, only in self._wanted
        ]


def _tables(shard: Shard, data: Data, only: Collection[int] | None) -> Iterator[pa.Table]:
    """The shard's rows in tables of ``PAIR_SCHEMA``, bounded in rows and in bytes."""
    rows: list[Row] = []
    held_bytes = 0
    for row in iter_shard(shard, data, only):
        rows.append(row)
        held_bytes += len(row.image or b"")
        if len(rows) == TABLE_ROWS or held_bytes >= BLOCK_BYTES:
            yield pairs_table(rows)
            rows, held_bytes = [], 0
    if rows:
        yield pairs_table(rows)
