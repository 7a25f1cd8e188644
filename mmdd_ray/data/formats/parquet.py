"""Parquet files with encoded images."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import PROBE_ROWS, Head, Seen, lfs_complaint
from mmdd_ray.data.formats.samples import all_listed, is_blank, listed_texts
from mmdd_ray.data.pair import LFS_POINTER, UNSAID, Row, RowMaker
from mmdd_ray.data.shard import Shard, Texts
from mmdd_ray.data.splits import ALL, SPLIT_COLUMN, is_split
from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import open_stored

PARQUET_BATCH_ROWS = 64
FOOTER_THREADS = 16
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
DOWNLOADED_IMAGES = ("jpg", "png", "webp")  # img2dataset's image column, by the encoding that it was told
DOWNLOAD_COLUMNS = frozenset({"url", "status", "error_message"})  # that tell img2dataset's files
# pyarrow raises plain OSError for damaged pages, and cannot decode text that is no UTF-8.
_PARQUET_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


class ParquetLayout(NamedTuple):
    """The columns of one Parquet file to read; None where the file has none."""

    image: str
    captions: tuple[str, ...]
    """The first that is not blank is read."""
    key: str | None
    label: str | None
    status: str | None
    """Of a download: a row without an image is none, where this is not "success"."""
    split: str | None
    """Of train, test, …, which one file should not mix."""

    @property
    def columns(self) -> list[str]:
        """All of them, each once."""
        named = (self.image, *self.captions, self.key, self.label, self.status, self.split)
        return list(dict.fromkeys(name for name in named if name is not None))


def open_parquet(file: IO[bytes]) -> pq.ParquetFile | None:
    """The file with its footer read, or None if it is no whole Parquet file."""
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except _PARQUET_DAMAGE:
        return None


def parquet_rows(
    file: IO[bytes],
    maker: RowMaker,
    only: Collection[int] | None,
    texts: Texts = "whole",
    partition: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Row]:
    """The rows of a Parquet file; row groups without any row of ``only`` are not read.

    Args:
        partition: Columns that the folders name, and their value.
    """
    parquet = open_parquet(file)
    if parquet is None:
        yield maker.make("", None, None, reject="unreadable parquet")
        return
    try:
        layout = parquet_layout(parquet.schema_arrow, maker.data, partition)
    except UserError:  # one odd file among good ones; a whole dataset of them was stopped by the probe
        layout = None
    for group in range(parquet.num_row_groups):
        rows = range(maker.index, maker.index + parquet.metadata.row_group(group).num_rows)
        if only is not None and not any(row in rows for row in only):
            maker.skip(len(rows))
            continue
        if layout is not None:
            yield from _row_group(parquet, group, layout, maker, texts, partition)
        reason = "wrong columns" if layout is None else "unreadable row group"
        yield from (maker.make("", None, None, reject=reason) for _ in range(maker.index, rows.stop))


def _row_group(
    parquet: pq.ParquetFile,
    group: int,
    layout: ParquetLayout,
    maker: RowMaker,
    texts: Texts,
    partition: Mapping[str, str],
) -> Iterator[Row]:
    """Rows of one row group; ends early where it is damaged."""
    try:
        for batch in parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group], columns=layout.columns):
            yield from _made(batch.to_pylist(), layout, maker, texts, partition)
    except _PARQUET_DAMAGE:
        return


def _made(
    rows: Iterable[Mapping[str, Any]],
    layout: ParquetLayout,
    maker: RowMaker,
    texts: Texts,
    partition: Mapping[str, str],
) -> Iterator[Row]:
    """The rows that these records are."""
    label, wanted = _partition_label(maker.data, partition), maker.data.split
    for row in rows:
        if layout.split and wanted not in (None, ALL) and not is_split(row[layout.split], wanted):
            maker.skip(1)
            continue
        image, key = _image_bytes(row[layout.image]), row.get(str(layout.key))
        if layout.status and image is None and row[layout.status] != "success":
            maker.skip(1)  # a URL that img2dataset could not download
            continue
        yield maker.make(
            f"{maker.shard}-{maker.index:06d}" if key is None else str(key),
            image,
            _captions(row, layout, texts),
            row[layout.label] if layout.label else label,
        )


def _image_bytes(cell: Any) -> bytes | None:
    return cell["bytes"] if isinstance(cell, dict) else cell


def _captions(row: Mapping[str, Any], layout: ParquetLayout, texts: Texts) -> object:
    """The first caption column that is not blank; if all are, the first."""
    cells = [row[name] for name in layout.captions]
    found = next((cell for cell in cells if not is_blank(cell)), cells[0] if cells else None)
    if texts == "list" and isinstance(found, str) and (listed := listed_texts(found)) is not None:
        return listed
    return found


def column_splits(uris: Sequence[str]) -> set[str]:
    """The splits that a column of these files names; none where there is no such column."""

    def splits_of(uri: str) -> set[str]:
        with open_stored(uri) as file:
            parquet = open_parquet(file)
            if parquet is None or SPLIT_COLUMN not in parquet.schema_arrow.names:
                return set()
            try:
                column = parquet.read(columns=[SPLIT_COLUMN])[SPLIT_COLUMN]
            except _PARQUET_DAMAGE:
                return set()
            return {value for value in column.unique().to_pylist() if isinstance(value, str)}

    first, others = splits_of(uris[0]), uris[1:]
    if not first:  # nor have the others, as they are files of one table
        return first
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return first.union(*pool.map(splits_of, others))


def _partition_label(data: Data, partition: Mapping[str, str]) -> int | None:
    text = partition.get(data.label_column, "")
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def parquet_layout(
    schema: pa.Schema, data: Data, partition: Mapping[str, str] = MappingProxyType({})
) -> ParquetLayout:
    """Finds the columns named in ``data``; UserError, listing the columns there are, if one is wrong.

    Args:
        partition: Columns that the folders name, and their value.
    """
    names = schema.names
    there = f"the file has the columns {', '.join(names) or '(none)'}"
    image = data.image_column
    if image not in names and not data.names_image_column:
        image = next((name for name in DOWNLOADED_IMAGES if name in names), image)
    if image not in names:
        raise UserError(f"data.image_column={image!r} is not in {data.uri}: {there}")
    if not _is_image(schema.field(image).type):
        raise UserError(
            f"data.image_column={image!r} holds {schema.field(image).type}, "
            f"not encoded images (binary, or a struct with a field 'bytes'): {there}"
        )
    captions = tuple(name for name in data.caption_columns if name in names)
    has_label = data.label_column in names or _partition_label(data, partition) is not None
    if not captions and (data.needs_captions or not has_label):
        wanted = ", ".join(data.caption_columns) or "empty"
        raise UserError(f"none of data.caption_columns ({wanted}) is in {data.uri}: {there}")
    texts = tuple(name for name in captions if _is_text(schema.field(name).type))
    if captions and not texts:
        raise UserError(
            f"data.caption_columns: {captions[0]!r} holds {schema.field(captions[0]).type}, not text: {there}"
        )
    several = [name for name in DOWNLOADED_IMAGES if name in names]
    if len(several) > 1 and image in several and not data.names_image_column:
        raise UserError(
            f"{data.uri} has several columns of images: {', '.join(several)}; name one as data.image_column"
        )
    value = partition.get(data.label_column)
    if value is not None and value != NO_PARTITION and _partition_label(data, partition) is None:
        raise UserError(
            f"data.label_column={data.label_column!r} is the text {value!r} in the folders of {data.uri}, not an "
            "integer; name another column, or '' for none"
        )
    key, label = (_named(setting, schema, data, there) for setting in ("key_column", "label_column"))
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise UserError(
            f"data.label_column={label!r} holds {schema.field(label).type}, not integers; "
            f"name another column, or '' for none: {there}"
        )
    status = "status" if DOWNLOAD_COLUMNS.issubset(names) else None
    split = SPLIT_COLUMN if SPLIT_COLUMN in names else None
    return ParquetLayout(image, texts, key, label, status, split)


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
    if pa.types.is_null(kind):  # of a file whose rows have none; a look at them says so
        return True
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    if pa.types.is_dictionary(kind) or any(is_list(kind) for is_list in lists):
        return _is_text(kind.value_type)
    if pa.types.is_null(kind):
        return True
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


class ParquetFormat:
    """A ``Format``: a row is a pair, see ``ParquetLayout``."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        with open_stored(shard.uri) as file:
            if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                return Seen(1, complaint=lfs_complaint(shard.uri))
            parquet = open_parquet(file)
            if parquet is None:
                return Seen(1)  # its one refused row
            rows = parquet.metadata.num_rows
            try:
                layout = parquet_layout(parquet.schema_arrow, data, dict(shard.partition))
            except UserError as error:
                return Seen(rows, complaint=str(error) if rows else None)
            return _judged(rows, _head_rows(parquet, layout), layout, shard, data)

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
            yield from parquet_rows(file, maker, only, shard.texts, dict(shard.partition))


def _head_rows(parquet: pq.ParquetFile, layout: ParquetLayout) -> list[dict[str, Any]]:
    """The first rows; none where they are damaged."""
    try:
        batches = parquet.iter_batches(PROBE_ROWS, columns=layout.columns)
        return next((batch.to_pylist() for batch in batches if batch.num_rows), [])
    except _PARQUET_DAMAGE:
        return []


def _judged(rows: int, head: list[dict[str, Any]], layout: ParquetLayout, shard: Shard, data: Data) -> Seen:
    """The verdict on the first rows of a file that has these columns."""
    uri = shard.uri
    cells = [row[layout.image] for row in head]
    paths = [cell["path"] for cell in cells if isinstance(cell, dict) and cell.get("path")]
    if head and not layout.status and not any(map(_image_bytes, cells)):
        bare = f", but paths, e.g. {paths[0]}: embed the images" if paths else ""
        return Seen(
            rows,
            complaint=f"{layout.image!r} of the first {len(head)} rows of {uri} holds no image{bare}; see docs/data.md",
        )
    texts = [_captions(row, layout, "whole") for row in head]
    reading: Texts = "list" if all_listed(texts) else "whole"
    maker = RowMaker(shard.name, data)
    found = list(_made(head, layout, maker, reading, dict(shard.partition)))
    if found and all(row.reject for row in found):
        reasons = ", ".join(sorted({str(row.reject) for row in found}))
        hint = "; -1 stands for no label" if UNSAID in reasons else ""
        return Seen(
            rows, complaint=f"none of the first {len(found)} rows of {uri} can be used: {reasons}{hint}"
        )
    notes = [f"captions of {', '.join(layout.captions)} are texts of lists, whose items are read"] * (
        reading == "list"
    )
    return Seen(rows, fits=rows > 0, texts=reading, notes=tuple(notes))
