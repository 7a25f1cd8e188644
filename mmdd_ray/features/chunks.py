"""Chunks of decoded pairs: what travels from the reading tasks to the encoder actors, and back.

A chunk is cut by row number within its shard, and it is one row of a Ray dataset, which Ray neither splits nor
merges. So its output file is the same whatever the number of tasks and actors. A resumed run skips whole shards; a
shard that was not committed is read from its start, and those of its chunks that were written are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd_ray.config import Data
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.pair import Row, digest64
from mmdd_ray.data.readers import is_in, iter_shard
from mmdd_ray.data.shard import Shard


@dataclass
class Chunk:
    """Rows of one shard: decoded pairs, and what had to be refused."""

    shard: str
    number: int
    rows_in: int = 0
    is_last: bool = False
    pairs: list[Row] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    """(image_px, image_px, 3) uint8, one for each of `pairs`."""
    rejects: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason)."""
    is_written: bool = False
    """Whether an earlier attempt has left a file of it."""
    digest: str = ""
    """Digest of the shard's rows as they are stored, of those in the slice that is read; in its last chunk."""
    stored_rows: int = 0
    """Rows of the shard, those outside of the slice that is read included; in its last chunk."""

    def add(self, row: Row, data: Data, image_px: int) -> None:
        """Count a row, and decode its image if there is one."""
        self.rows_in += 1
        if row.reject is None and row.image is not None:
            try:
                image = decode_image(row.image, max_pixels=data.max_image_pixels, image_px=image_px)
            except BadImage as damage:
                self.rejects.append((row.key, str(damage)))
            else:
                self.pairs.append(row)
                self.images.append(image)
        else:
            self.rejects.append((row.key, row.reject or "missing image"))

    def to_row(self) -> dict[str, Any]:
        """As scalars and bytes, which Ray Data carries as they are."""
        digests = [digest64(row.image or b"") for row in self.pairs]
        pairs = pa.table(
            {
                "index": pa.array([row.index for row in self.pairs], pa.int64()),
                "key": pa.array([row.key for row in self.pairs], pa.string()),
                "captions": pa.array([row.captions for row in self.pairs], pa.list_(pa.string())),
                "label": pa.array([row.label for row in self.pairs], pa.int64()),
                "image_digest": pa.array(digests, pa.int64()),
                "pair_digest": pa.array(
                    [_pair_digest(row, digest) for row, digest in zip(self.pairs, digests, strict=True)],
                    pa.int64(),
                ),
                "image": pa.array([image.tobytes() for image in self.images], pa.binary()),
            }
        )
        return {
            "shard": self.shard,
            "number": self.number,
            "rows_in": self.rows_in,
            "is_last": self.is_last,
            "digest": self.digest,
            "stored_rows": self.stored_rows,
            "is_written": self.is_written,
            "image_px": self.images[0].shape[0] if self.images else 0,
            "pairs": _ipc(pairs),
            "rejects": _ipc(pa.table({"reject": [list(reject) for reject in self.rejects]})),
        }


def read_chunks(shard: Shard, data: Data, *, image_px: int, chunk_pairs: int) -> Iterator[Chunk]:
    """The shard in chunks of `chunk_pairs` rows, rejects included; the last one may be empty.

    Raises:
        StorageError: The storage failed.
    """
    split, part = sliced(data.split)
    chunk, seen, stored_rows = Chunk(shard.name, 0), blake2b(digest_size=16), 0
    for row in iter_shard(shard, replace(data, split=split)):
        stored_rows += 1
        if not is_in(row, part):
            continue
        facts = (row.key, row.captions, row.label, row.reject, len(row.image or b""))
        seen.update(repr(facts).encode())
        seen.update(row.image or b"")
        if chunk.rows_in == chunk_pairs:
            yield chunk
            chunk = Chunk(shard.name, chunk.number + 1)
        chunk.add(row, data, image_px)
    chunk.is_last, chunk.digest, chunk.stored_rows = True, seen.hexdigest(), stored_rows
    yield chunk


def _pair_digest(row: Row, image_digest: int) -> int:
    return digest64(repr((image_digest, row.label, row.captions)).encode())


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def read_ipc(data: bytes) -> pa.Table:
    """A table that a chunk's row carries."""
    return pa.ipc.open_stream(data).read_all()
