"""What a pair is, when one is refused, and how tars and Parquet files hold image, captions and label.

Works on open files; knows neither storage nor Ray.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple, Self, TypeGuard, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mmdd_ray.config import Data
from mmdd_ray.errors import UserError

PAIR_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("reject", pa.string()),
    ]
)

REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("shard", "key", "reason")])

PARQUET_BATCH_ROWS = 64
MAX_READS_OF_NOTHING = 100  # at the end of a tar; a whole one needs one or two
MAX_TAR_PADDING = (
    2**20
)  # zeros after the end marker; tar fills up its last record, of 10 KiB unless told otherwise

# pyarrow raises plain OSError for damaged pages, and cannot decode text that is no UTF-8.
_PARQUET_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True, slots=True)
class Row:
    """One image-caption pair, or the reason why it is none.

    ``(shard, index)`` is a stable address: ``index`` counts every row of the shard from 0, refused ones
    included. ``image`` holds the encoded file, not yet decoded. A row with ``reject`` set has neither image
    nor captions; its key is empty where the damage hid it.
    """

    shard: str
    index: int
    key: str
    image: bytes | None
    captions: list[str]
    label: int | None
    reject: str | None


class ParquetLayout(NamedTuple):
    """The columns of one Parquet file to read; None where the file has none."""

    image: str
    captions: str | None
    key: str | None
    label: str | None

    @property
    def columns(self) -> list[str]:
        return [name for name in self if name is not None]


def pairs_table(rows: Sequence[Row]) -> pa.Table:
    """``rows`` as an Arrow table of ``PAIR_SCHEMA``."""
    columns = {name: [getattr(row, name) for row in rows] for name in PAIR_SCHEMA.names}
    return pa.table(columns, schema=PAIR_SCHEMA)


def safe_name(text: str) -> str:
    """``text`` as a file name without dots: [A-Za-z0-9_-] only, at most 100 characters.

    A text that had to be changed ends in a hash of the original, so two texts never become one name.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:90].lstrip("-") or "_"
    if name == text:
        return name
    return f"{name}-{hashlib.blake2s(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


class _Reject(Exception):
    """Why a row is refused."""


class RowMaker:
    """Numbers the rows of one shard and refuses, with the reason, those that are no usable pair."""

    def __init__(self, shard: str, data: Data) -> None:
        self.shard = shard
        self.data = data
        self.max_bytes = data.max_member_mib * 2**20
        self.index = 0  # of the next row
        self._keys: set[str] = set()

    def skip(self, rows: int) -> None:
        """Leaves out ``rows`` rows that nobody asked for; the addresses of later rows stay the same."""
        self.index += rows

    def make(
        self, key: str, image: bytes | None, captions: object, label: object = None, reject: str | None = None
    ) -> Row:
        """The next row. ``captions`` and ``label`` are as found in the file: of any type, or None."""
        key = safe_name(key) if key else ""
        index, self.index = self.index, self.index + 1
        try:
            if reject is not None:
                raise _Reject(reject)
            row = Row(
                shard=self.shard,
                index=index,
                key=key,
                image=self._image(image),
                captions=self._captions(captions, label),
                label=_label(label),
                reject=None,
            )
            if key in self._keys:
                raise _Reject("duplicate key")
        except _Reject as reason:
            return Row(self.shard, index, key, None, [], None, str(reason))
        self._keys.add(key)
        return row

    def _image(self, image: bytes | None) -> bytes:
        if image is None:
            raise _Reject("missing image")
        if not image:
            raise _Reject("zero-byte image")
        if len(image) > self.max_bytes:
            raise _Reject("member too large")
        return image

    def _captions(self, found: object, label: object) -> list[str]:
        """Captions with white space collapsed; blank ones beside good ones say nothing and are left out.

        Where none is needed, the label stands in for one that is not there.
        """
        texts = [found] if isinstance(found, str | bytes) else found or []
        if not isinstance(texts, list | tuple):
            raise _Reject("caption is not text")
        captions = [caption for text in texts if (caption := " ".join(_text(text).split()))]
        if not captions and label is not None and not self.data.needs_captions:
            return [str(label)]
        if not captions:
            raise _Reject("blank caption" if texts else "missing caption")
        if max(map(len, captions)) > self.data.max_caption_chars:
            raise _Reject("caption too long")
        return captions


def _is_blank(found: object) -> bool:
    texts = found if isinstance(found, list) else [found]
    return not any(text.strip() if isinstance(text, str | bytes) else text is not None for text in texts)


def _text(found: object) -> str:
    try:
        if isinstance(found, bytes):
            return found.decode("utf-8-sig")
        if isinstance(found, str):
            found.encode()  # JSON can smuggle in lone surrogates, which Arrow cannot store
            return found
    except UnicodeError:
        raise _Reject("caption is not UTF-8") from None
    raise _Reject("missing caption" if found is None else "caption is not text")


def _label(found: object) -> int | None:
    if not is_label(found):
        raise _Reject("label is not an integer")
    return found


def is_label(found: object) -> TypeGuard[int | None]:
    """Whether ``found`` is a class, an integer of 64 bits, or None for no class."""
    if found is None:
        return True
    return isinstance(found, int) and not isinstance(found, bool) and -(2**63) <= found < 2**63


# ---- WebDataset tars


@dataclass(slots=True)
class TarSample:
    """Neighbouring tar members of one key. ``parts`` by lower-case suffix; b"" for those not read."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    reject: str | None = None

    @property
    def image(self) -> bytes | None:
        return next((self.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in self.parts), None)

    def record(self) -> dict[str, Any]:
        """The fields of its .json member, none if there is none; sets ``reject`` if it is unreadable."""
        if "json" not in self.parts or self.reject is not None:
            return {}
        try:
            record = json.loads(self.parts["json"])
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self.reject = "unreadable json"
            return {}
        return record

    def label(self, record: dict[str, Any], data: Data) -> object:
        """What the JSON record has under ``data.label_column``, or else the .cls member if it is an integer."""
        if (found := record.get(data.label_column)) is not None or not data.label_column:
            return found
        text = self.parts.get("cls", b"").decode(errors="replace").strip()
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None

    def captions(self, record: dict[str, Any], data: Data) -> object:
        """What the JSON record has under ``data.caption_columns``, then the .txt member: the first not blank.

        If all are blank, the first there is; None if there is none.
        """
        candidates = [*(record.get(name) for name in data.caption_columns), self.parts.get("txt")]
        found = [candidate for candidate in candidates if candidate is not None]
        return next(
            (candidate for candidate in found if not _is_blank(candidate)), found[0] if found else None
        )


# What tarfile raises inside for the two zero blocks at the end of a tar, and for an end without them.
_END_MARKER = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_CUT_OFF = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class _DamagedTar(tarfile.ReadError):
    """A member header that is none."""


class _Ended:
    """A file that ends once: tarfile skips a member of a claimed terabyte in a hundred million reads of nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._reads_of_nothing = 0

    def read(self, size: int) -> bytes:
        found = self._file.read(size)
        if not found:
            self._reads_of_nothing += 1
            if self._reads_of_nothing > MAX_READS_OF_NOTHING:
                raise tarfile.ReadError("unexpected end of data")
        return found


class _StrictTarInfo(tarfile.TarInfo):
    """Raises where tarfile would quietly stop: at a bad header, or where the end marker is cut off."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise _DamagedTar("negative size")
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _END_MARKER:
            raise
        except _CUT_OFF as error:
            raise tarfile.ReadError(str(error)) from error
        except (tarfile.HeaderError, ValueError) as error:
            raise _DamagedTar(str(error)) from error


def _check_padding(file: IO[bytes]) -> None:
    """Raises unless a tar ends at its end marker: a zeroed block in its midst reads like one, and would hide samples.

    So would a download that never filled its file, which is why there may not be zeros without end.
    """
    padding = file.read(MAX_TAR_PADDING + 1)
    if len(padding) > MAX_TAR_PADDING or padding.strip(b"\0"):
        raise _DamagedTar("something after the end marker")


def tar_samples(file: IO[bytes], max_bytes: int) -> Iterator[TarSample]:
    """Groups the members of a tar by key: as in WebDataset, the path up to the first dot of the file name.

    Only regular files are ever read, and none above ``max_bytes``. A tar that breaks off or is damaged ends
    in one refused sample, with the key of the member that was hit if there is one.
    """
    sample: TarSample | None = None
    reading = False
    broken: str | None = None
    try:
        stream = cast("IO[bytes]", _Ended(file))  # tarfile calls read alone
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isdir() or not stem:  # hidden files, such as macOS puts beside each file
                    continue
                key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                if sample is None or key != sample.key or suffix in sample.parts:
                    if sample is not None:
                        yield sample
                    sample = TarSample(key)
                sample.parts[suffix] = b""
                if not member.isreg():
                    sample.reject = "link or device in tar"
                elif suffix in (*IMAGE_SUFFIXES, "txt", "json", "cls"):
                    if member.size > max_bytes:
                        sample.reject = "member too large"
                        continue
                    reading = True
                    sample.parts[suffix] = archive.extractfile(member).read()  # type: ignore[union-attr]
                    reading = False
            _check_padding(archive.fileobj)  # type: ignore[arg-type]
    except tarfile.TarError as error:
        broken = "damaged tar" if isinstance(error, _DamagedTar) else "truncated tar"
    if sample is not None:
        sample.reject = broken if reading else sample.reject
        yield sample
    if broken is not None and not reading:
        yield TarSample("", reject=broken)


def tar_rows(file: IO[bytes], maker: RowMaker) -> Iterator[Row]:
    """The rows of a WebDataset tar."""
    for sample in tar_samples(file, maker.max_bytes):
        record = sample.record()
        captions, label = sample.captions(record, maker.data), sample.label(record, maker.data)
        yield maker.make(sample.key, sample.image, captions, label, sample.reject)


def write_tar_samples(file: IO[bytes], samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Writes a tar that ``tar_samples`` reads: of each sample its key, and the content of members by suffix.

    The same samples give the same bytes.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples:
            for suffix, content in members.items():
                # TarInfo starts with time 0 and no owner: nothing in it depends on machine or moment
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


# ---- Parquet


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
