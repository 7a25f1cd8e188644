"""WebDataset tars."""

import io
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice, pairwise
from typing import IO, Any, Self, cast

from mmdd_ray.config import Data
from mmdd_ray.data.compression import CompressionError, codec_of, decompressed, open_decompressed
from mmdd_ray.data.formats.format import HEAD_ROWS, PROBE_ROWS, Head, Seen, lfs_complaint
from mmdd_ray.data.formats.samples import READ_SUFFIXES, TEXT_SUFFIXES, Judge, Sample, last_suffix, sample_row
from mmdd_ray.data.pair import IMAGE_SUFFIXES, LFS_POINTER, Row, RowMaker
from mmdd_ray.data.shard import Shard, Texts
from mmdd_ray.storage.remote import open_stored

MAX_MEMBERS = 100  # of a sample
MAX_READS_OF_NOTHING = 100  # at the end of a tar; a whole one needs one or two
MAX_TAR_PADDING = (
    2**20
)  # zeros after the end marker; tar fills up its last record, of 10 KiB unless told otherwise


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


def tar_samples(file: IO[bytes], max_bytes: int) -> Iterator[Sample]:
    """Groups the members of a tar by key: as in WebDataset, the path up to the first dot of the file name.

    Where nothing but a longer key tells samples apart, ``photo_v1.0.jpg`` and ``photo_v1.0.txt`` are the sample
    ``photo_v1.0``: members that share the name up to the last dot, an image and what is said of it.

    Only regular files are ever read, and none above ``max_bytes``. A tar that breaks off or is damaged ends
    in one refused sample, with the key of the member that was hit if there is one.
    """
    sample: Sample | None = None
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
                if sample is None or key != sample.key or _begins_another(sample, suffix):
                    if sample is not None:
                        yield _with_whole_key(sample)
                    sample = Sample(key)
                sample.parts[suffix] = b""
                if not member.isreg():
                    sample.reject = "link or device in tar"
                elif last_suffix(suffix) in READ_SUFFIXES:
                    too_large = member.size > max_bytes
                    if too_large and "." not in suffix:
                        sample.reject = "member too large"
                        continue
                    reading = True
                    # of one that may be left unread, a byte more than it may have, so that who wants it can tell
                    size = max_bytes + 1 if too_large else -1
                    sample.parts[suffix] = archive.extractfile(member).read(size)  # type: ignore[union-attr]
                    reading = False
            _check_padding(archive.fileobj)  # type: ignore[arg-type]
    except tarfile.TarError as error:
        broken = "damaged tar" if isinstance(error, _DamagedTar) else "truncated tar"
    except CompressionError:
        broken = "damaged compression"
    if sample is not None:
        sample.reject = broken if reading else sample.reject
        yield _with_whole_key(sample)
    if broken is not None and not reading:
        yield Sample("", reject=broken)


def _begins_another(sample: Sample, suffix: str) -> bool:
    """Whether a member of the same key up to the first dot belongs to the next sample."""
    if suffix in sample.parts or len(sample.parts) == MAX_MEMBERS:
        return True
    shared = _rest_of_key(sample)
    return bool(shared) and suffix.rpartition(".")[0] != shared


def _with_whole_key(sample: Sample) -> Sample:
    """The sample under its name up to the last dot, if its image and what is said of it share that."""
    if rest := _rest_of_key(sample):
        parts = {last_suffix(suffix): content for suffix, content in sample.parts.items()}
        return Sample(f"{sample.key}.{rest}", parts, sample.reject)
    return sample


def _rest_of_key(sample: Sample) -> str:
    """The part of a key behind its first dot that an image and what is said of it share; empty if there is none."""
    rests = {suffix.rpartition(".")[0] for suffix in sample.parts}
    kinds = {last_suffix(suffix) for suffix in sample.parts}
    if len(rests) > 1 or kinds.isdisjoint(IMAGE_SUFFIXES) or kinds.isdisjoint(TEXT_SUFFIXES):
        return ""
    return next(iter(rests))


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
        judging = Judge(shard.uri, data)
        with open_stored(shard.uri) as stored:
            start = stored.peek(len(LFS_POINTER))
            if start.startswith(LFS_POINTER):
                return Seen(1, complaint=lfs_complaint(shard.uri))
            file = decompressed(stored, codec_of(start))
            head = islice(tar_samples(file, data.max_member_mib * 2**20), PROBE_ROWS)
            for sample, following in pairwise(chain(head, [None])):
                assert sample is not None
                # where the tar breaks, members may lack
                cut_off = following is not None and not following.key
                judging.skip() if cut_off else judging.look(sample)
        return judging.seen()

    def count(self, shard: Shard) -> None:
        return None

    def head(self, shard: Shard, data: Data) -> Head:
        rows, members, keys = 0, set[str](), set[str]()
        with open_stored(shard.uri) as stored:
            codec, counted = codec_of(stored.peek(4)), _Counted(stored)
            file = decompressed(io.BufferedReader(counted), codec)
            for sample in islice(tar_samples(file, data.max_member_mib * 2**20), HEAD_ROWS):
                rows += 1
                members |= sample.parts.keys()
                keys |= sample.record().keys()
        found = ", ".join(f".{suffix}" for suffix in sorted(members))
        return Head(rows, counted.bytes, f"{found}; JSON keys {', '.join(sorted(keys))}" if keys else found)

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        with open_decompressed(shard.uri) as file:
            yield from tar_rows(file, maker, shard.texts)


def tar_rows(file: IO[bytes], maker: RowMaker, texts: Texts = "whole") -> Iterator[Row]:
    """The rows of a WebDataset tar."""
    for sample in tar_samples(file, maker.max_bytes):
        yield sample_row(sample, maker, texts)


class _Counted(io.RawIOBase):
    """Counts what is read through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = 0
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        self.bytes += len(found)
        return len(found)
