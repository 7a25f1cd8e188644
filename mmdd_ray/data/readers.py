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

from mmdd_ray.config import Data
from mmdd_ray.data.formats import FORMATS
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shard import Shard


def iter_shard(shard: Shard, data: Data, only: Collection[int] | None = None) -> Iterator[Row]:
    """The rows of ``shard`` in their stored order; with ``only``, just those with these row numbers.

    Holds one tar sample, image file or Parquet row group in memory. With ``only``, image files and row
    groups that hold none of the rows are not read.

    Raises:
        StorageError: when the storage fails.
    """
    last = max(only, default=-1) if only is not None else None
    if shard.rows is not None:
        last = min(shard.rows - 1, last) if last is not None else shard.rows - 1
    for row in FORMATS[shard.kind].read(shard, RowMaker(shard.name, data), only):
        if last is not None and row.index > last:
            return
        if only is None or row.index in only:
            yield row
        if row.index == last:
            return
