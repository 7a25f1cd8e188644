"""How shards hold pairs, one format a file. Plain Python on fsspec; no Ray.

To add a format, write a class with the methods of `Format`, name it below, and have `layouts.py` find its files.
"""

from mmdd_ray.data.formats.files import FilesFormat
from mmdd_ray.data.formats.format import Format
from mmdd_ray.data.formats.parquet import ParquetFormat
from mmdd_ray.data.formats.scenes import ScenesFormat
from mmdd_ray.data.formats.tar import TarFormat

FORMATS: dict[str, Format] = {
    "tar": TarFormat(),
    "parquet": ParquetFormat(),
    "files": FilesFormat(),
    "scenes": ScenesFormat(),
}
"""Formats by the kind of a shard."""
