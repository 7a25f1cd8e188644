"""Parquet files with encoded images."""

from collections.abc import Collection, Iterator
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import Head, Seen
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shard import Shard
from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import open_stored

PARQUET_BATCH_ROWS = 64
# pyarrow raises plain OSError for damaged pages, and cannot decode text that is no UTF-8.
_PARQUET_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


class ParquetLayout(NamedTuple):
    """The columns of one Parquet file to read; None where the file has none."""

    image: str
    captions: str | None
    key: str | None
    label: str | None

    @property
    def columns(self) -> list[str]:
        return [name for name in self if name is not None]


def open_parquet(file: IO[bytes]) -> pq.ParquetFile | None:
    """The file with its footer read, or None if it is no whole Parquet file."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except _PARQUET_DAMAGE:
        return None


def parquet_rows(file: IO[bytes], maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
    """The rows of a Parquet file; row groups without any row of ``only`` are not read."""
    parquet = open_parquet(file)
    if parquet is None:
        yield maker.make("", None, None, reject="unreadable parquet")
        return
    try:
        layout = parquet_layout(parquet.schema_arrow, maker.data)
    except UserError:  # one odd file among good ones; a whole dataset of them was stopped by the probe
        layout = None
    for group in range(parquet.num_row_groups):
        rows = range(maker.index, maker.index + parquet.metadata.row_group(group).num_rows)
        if only is not None and not any(row in rows for row in only):
            maker.skip(len(rows))
            continue
        if layout is not None:
            yield from _row_group(parquet, group, layout, maker)
        reason = "wrong columns" if layout is None else "unreadable row group"
        yield from (maker.make("", None, None, reject=reason) for _ in range(maker.index, rows.stop))


def _row_group(parquet: pq.ParquetFile, group: int, layout: ParquetLayout, maker: RowMaker) -> Iterator[Row]:
    """Rows of one row group; ends early where it is damaged."""
    try:
        for batch in parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=layout.columns):
            column = {name: batch.column(name).to_pylist() for name in layout.columns}
            nothing = [None] * batch.num_rows
            for key, image, captions, label in zip(
                column[layout.key] if layout.key else nothing,
                column[layout.image],
                column[layout.captions] if layout.captions else nothing,
                column[layout.label] if layout.label else nothing,
                strict=True,
            ):
                yield maker.make(
                    f"{maker.shard}-{maker.index:06d}" if key is None else str(key),
                    image["bytes"] if isinstance(image, dict) else image,
                    captions,
                    label,
                )
    except _PARQUET_DAMAGE:
        return


def parquet_layout(schema: pa.Schema, data: Data) -> ParquetLayout:
    """Finds the columns named in ``data``; UserError, listing the columns there are, if one is wrong."""
    there = f"the file has the columns {', '.join(schema.names) or '(none)'}"
    if data.image_column not in schema.names:
        raise UserError(f"data.image_column={data.image_column!r} is not in {data.uri}: {there}")
    if not _is_image(schema.field(data.image_column).type):
        raise UserError(
            f"data.image_column={data.image_column!r} holds {schema.field(data.image_column).type}, "
            f"not encoded images (binary, or a struct with a field 'bytes'): {there}"
        )
    captions = next((name for name in data.caption_columns if name in schema.names), None)
    if captions is None and (data.needs_captions or data.label_column not in schema.names):
        wanted = ", ".join(data.caption_columns) or "empty"
        raise UserError(f"none of data.caption_columns ({wanted}) is in {data.uri}: {there}")
    if captions is not None and not _is_text(schema.field(captions).type):
        raise UserError(
            f"data.caption_columns: {captions!r} holds {schema.field(captions).type}, not text: {there}"
        )
    key, label = (_named(setting, schema, data, there) for setting in ("key_column", "label_column"))
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise UserError(
            f"data.label_column={label!r} holds {schema.field(label).type}, not integers; "
            f"name another column, or '' for none: {there}"
        )
    return ParquetLayout(data.image_column, captions, key, label)


def _named(setting: str, schema: pa.Schema, data: Data, there: str) -> str | None:
    """The column that ``setting`` names; it may be absent unless somebody asked for it by name."""
    name = getattr(data, setting)
    if name in schema.names:
        return name
    if name and name != getattr(Data, setting):
        raise UserError(
            f"data.{setting}={name!r} is not in {data.uri}; name another column, or '' for none: {there}"
        )
    return None


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


class ParquetFormat:
    """A ``Format``: a row is a pair, see ``ParquetLayout``."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        with open_stored(shard.uri) as file:
            parquet = open_parquet(file)
            if parquet is None:
                return Seen(1)  # its one refused row
            rows = parquet.metadata.num_rows
            try:
                parquet_layout(parquet.schema_arrow, data)
            except UserError as error:
                return Seen(rows, complaint=str(error) if rows else None)
            return Seen(rows, fits=rows > 0)

    def count(self, shard: Shard) -> int:
        with open_stored(shard.uri) as file:
            parquet = open_parquet(file)
            return 1 if parquet is None else parquet.metadata.num_rows  # 1: its one refused row

    def head(self, shard: Shard, data: Data) -> Head:
        with open_stored(shard.uri) as file:
            size, parquet = shard.size_bytes or 1, open_parquet(file)
            if parquet is None:
                return Head(1, size, "a damaged file")
            return Head(parquet.metadata.num_rows, size, f"columns {', '.join(parquet.schema_arrow.names)}")

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        with open_stored(shard.uri) as file:
            yield from parquet_rows(file, maker, only)
