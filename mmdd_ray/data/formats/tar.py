"""WebDataset tars."""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import IO, Any, Self, cast

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import HEAD_ROWS, PROBE_ROWS, Head, Seen
from mmdd_ray.data.pair import IMAGE_SUFFIXES, Row, RowMaker, is_label
from mmdd_ray.data.shard import Shard
from mmdd_ray.storage.remote import open_stored

MAX_READS_OF_NOTHING = 100  # at the end of a tar; a whole one needs one or two
MAX_TAR_PADDING = (
    2**20
)  # zeros after the end marker; tar fills up its last record, of 10 KiB unless told otherwise


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
        """The value under ``data.label_column`` in the JSON record, or else the .cls member if it is an integer."""
        if (found := record.get(data.label_column)) is not None or not data.label_column:
            return found
        text = self.parts.get("cls", b"").decode(errors="replace").strip()
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None

    def captions(self, record: dict[str, Any], data: Data) -> object:
        """The value that the JSON record has under ``data.caption_columns``, then the .txt member: the first not blank.

        If all are blank, the first there is; None if there is none.
        """
        candidates = [*(record.get(name) for name in data.caption_columns), self.parts.get("txt")]
        found = [candidate for candidate in candidates if candidate is not None]
        return next(
            (candidate for candidate in found if not _is_blank(candidate)), found[0] if found else None
        )


def _is_blank(found: object) -> bool:
    texts = found if isinstance(found, list) else [found]
    return not any(text.strip() if isinstance(text, str | bytes) else text is not None for text in texts)


# Errors that tarfile raises inside for the two zero blocks at the end of a tar, and for an end without them.
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


class TarFormat:
    """A ``Format``: as img2dataset and WebDataset write it."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        suffixes: set[str] = set()
        json_keys: set[str] = set()
        labels: list[object] = []  # that are none, of samples that are pairs otherwise
        rows = judged = 0
        with open_stored(shard.uri) as file:
            head = islice(tar_samples(file, data.max_member_mib * 2**20), PROBE_ROWS)
            for sample, following in pairwise(chain(head, [None])):
                assert sample is not None
                rows += 1
                record = sample.record()
                cut_off = (
                    following is not None and not following.key
                )  # where the tar breaks, members may lack
                if cut_off or sample.reject is not None:
                    continue
                judged += 1
                suffixes |= sample.parts.keys()
                json_keys |= record.keys()
                label = sample.label(record, data)
                says = sample.captions(record, data) is not None or not (label is None or data.needs_captions)
                if sample.image is not None and says:
                    if is_label(label):
                        return Seen(rows, fits=True)
                    labels.append(label)
        if not judged:
            return Seen(rows)
        if labels:
            return Seen(
                rows,
                complaint=f"data.label_column={data.label_column!r} holds {labels[0]!r:.50} in {shard.uri}, "
                f"not integers; name another key, or '' for none: found JSON keys {sorted(json_keys)}",
            )
        return Seen(
            rows,
            complaint=f"none of the first {judged} samples of {shard.uri} has both an image "
            f"({', '.join(IMAGE_SUFFIXES)}) and captions (txt, or json with {', '.join(data.caption_columns)}); "
            f"found members {', '.join('.' + suffix for suffix in sorted(suffixes))} "
            f"and JSON keys {sorted(json_keys)}",
        )

    def count(self, shard: Shard) -> None:
        return None

    def head(self, shard: Shard, data: Data) -> Head:
        rows, members, keys = 0, set[str](), set[str]()
        with open_stored(shard.uri) as file:
            counted = _Counted(file)
            for sample in islice(tar_samples(counted, data.max_member_mib * 2**20), HEAD_ROWS):  # type: ignore[arg-type]
                rows += 1
                members |= sample.parts.keys()
                keys |= sample.record().keys()
        found = ", ".join(f".{suffix}" for suffix in sorted(members))
        return Head(rows, counted.bytes, f"{found}; JSON keys {', '.join(sorted(keys))}" if keys else found)

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        with open_stored(shard.uri) as file:
            yield from tar_rows(file, maker)


def tar_rows(file: IO[bytes], maker: RowMaker) -> Iterator[Row]:
    """The rows of a WebDataset tar."""
    for sample in tar_samples(file, maker.max_bytes):
        record = sample.record()
        captions, label = sample.captions(record, maker.data), sample.label(record, maker.data)
        yield maker.make(sample.key, sample.image, captions, label, sample.reject)


class _Counted:
    """Counts what is read through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self.bytes += len(found)
        return found
