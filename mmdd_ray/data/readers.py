"""A shard -> its rows, one at a time. Plain Python on fsspec; no Ray.

Storage is configured by the standard variables of each library, on every node that reads:

- ``s3://``: the AWS variables and files, with ``AWS_ENDPOINT_URL`` for other stores and
  ``FSSPEC_S3_ANON=true`` for public buckets;
- ``gs://``: ``GOOGLE_APPLICATION_CREDENTIALS``, or ``FSSPEC_GCS_TOKEN=anon`` (extra ``mmdd-ray[gcs]``);
- ``hf://``: ``HF_TOKEN``, ``HF_ENDPOINT``.

Damaged data never raises: it comes out as a row with ``reject`` set. Storage that fails raises
``StorageError``, so that the caller can try again.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from hashlib import blake2b

from mmdd_ray.config import Data
from mmdd_ray.config.slices import Slice, sliced
from mmdd_ray.data.formats import FORMATS
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shard import Shard


def iter_shard(shard: Shard, data: Data, only: Collection[int] | None = None) -> Iterator[Row]:
    """The rows of ``shard`` that are in the slice of ``data.split``, in their stored order; with ``only``, just those
    with these row numbers.

    Holds one tar sample, image file or Parquet row group in memory. With ``only``, image files and row
    groups that hold none of the rows are not read.

    Raises:
        StorageError: when the storage fails.
    """
    split, part = sliced(data.split)
    last = max(only, default=-1) if only is not None else None
    if shard.rows is not None:
        last = min(shard.rows - 1, last) if last is not None else shard.rows - 1
    for row in FORMATS[shard.kind].read(shard, RowMaker(shard.name, replace(data, split=split)), only):
        if last is not None and row.index > last:
            return
        if (only is None or row.index in only) and is_in(row, part):
            yield row
        if row.index == last:
            return


def is_in(row: Row, part: Slice) -> bool:
    """Whether a row belongs to a slice, by its image file: equal ones are in the same slice of whatever source.

    A refused row has no image, and is in one of the slices of its source by its address.
    """
    if part.is_all:
        return True
    content = row.image if row.image is not None else f"{row.shard}/{row.index}".encode()
    found = blake2b(content, digest_size=6, person=b"slice").digest()
    # 48 bits are exact as a float
    return part.first <= 100 * int.from_bytes(found) / 2**48 < part.last
