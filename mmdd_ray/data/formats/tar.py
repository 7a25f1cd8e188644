"""WebDataset tars."""

import io
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import IO, Any, Self, cast

from mmdd_ray.config import Data
from mmdd_ray.data.compression import CompressionError, codec_of, decompressed, open_decompressed
from mmdd_ray.data.formats.format import HEAD_ROWS, PROBE_ROWS, Head, Seen, lfs_complaint
from mmdd_ray.data.formats.samples import READ_SUFFIXES, TEXT_SUFFIXES, Judge, Sample, last_suffix, sample_row
from mmdd_ray.data.listing import is_hidden
from mmdd_ray.data.pair import IMAGE_SUFFIXES, LFS_POINTER, Row, RowMaker
from mmdd_ray.data.shard import Shard, Texts
from mmdd_ray.storage.remote import open_stored

LONG_RUN = 16  # members of one key, by which it shows whether they are one sample; people's have up to eight
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

    Keys with dots are no keys of WebDataset, but people have them: ``v1.0.jpg`` and ``v1.0.txt``, an image and what is
    said of it, are a sample of their own beside ``v1.1.jpg`` and ``v1.1.txt``. Others of the key are one sample, as
    ``v1.mask.png`` and ``v1.jpg``, or ``v1.image.jpg`` and ``v1.caption.txt``.

    Only regular files are ever read, and none above ``max_bytes``. A tar that breaks off or is damaged ends
    in one refused sample, with the key of the member that was hit if there is one.
    """
    run = _Run("")
    reading = False
    broken: str | None = None
    try:
        stream = cast("IO[bytes]", _Ended(file))  # tarfile calls read alone
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                # hidden files, such as macOS puts beside each file
                if member.isdir() or not stem or any(map(is_hidden, filter(_is_name, folder.split("/")))):
                    continue
                key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                if key != run.key or suffix in run.suffixes:
                    yield from run.samples()
                    run = _Run(key)
                added = _Member(suffix)
                yield from run.add(added)
                if not member.isreg():
                    added.reject = "link or device in tar"
                elif last_suffix(suffix) in READ_SUFFIXES and run.reads(suffix):
                    too_large = member.size > max_bytes
                    if too_large and "." not in suffix:
                        added.reject = "member too large"
                        continue
                    reading = True
                    # of one that may be left unread, a byte more than it may have, so that who wants it can tell
                    size = max_bytes + 1 if too_large else -1
                    added.content = archive.extractfile(member).read(size)  # type: ignore[union-attr]
                    reading = False
            _check_padding(archive.fileobj)  # type: ignore[arg-type]
    except tarfile.TarError as error:
        broken = "damaged tar" if isinstance(error, _DamagedTar) else "truncated tar"
    except CompressionError:
        broken = "damaged compression"
    if reading:
        added.reject = broken
    yield from run.samples()
    if broken is not None and not reading:
        yield Sample("", reject=broken)


def _is_name(part: str) -> bool:
    return part not in ("", ".", "..")


@dataclass(slots=True)
class _Member:
    """A member of a tar; its suffix from the first dot on."""

    suffix: str
    content: bytes = b""
    reject: str | None = None

    @property
    def rest(self) -> str:
        """The part of its suffix before the last dot, empty for a plain one."""
        return self.suffix.rpartition(".")[0]

    @property
    def kind(self) -> str:
        return last_suffix(self.suffix)

    @property
    def is_read(self) -> bool:
        return self.kind in READ_SUFFIXES


class _Run:
    """Neighbouring members of one key up to the first dot."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.suffixes: set[str] = set()
        self._members: list[_Member] = []
        self._is_one: bool | None = None  # sample; None while that is open

    def add(self, member: _Member) -> Iterator[Sample]:
        """Takes a member, and gives the samples that are whole by it where the run is long."""
        if self._is_one is None and len(self._members) == LONG_RUN:
            self._is_one = self._looks_like_one()
        if self._is_one is False and self._members[-1].rest != member.rest:
            yield from self._by_rest()
            self._members = []
        self._members.append(member)
        self.suffixes.add(member.suffix)

    def reads(self, suffix: str) -> bool:
        """Whether a member of this suffix may still count; of one sample with many, only plain ones do."""
        return not self._is_one or "." not in suffix

    def samples(self) -> Iterator[Sample]:
        """The samples of the members that are left."""
        is_one = self._looks_like_one() if self._is_one is None else self._is_one
        if self._members and is_one:
            yield self._sample(self.key, self._members)
        elif self._members:
            yield from self._by_rest()

    def _pairs(self) -> set[str]:
        """The rests, but for the empty one, that have both an image and what is said of it."""
        kinds: dict[str, set[str]] = defaultdict(set)
        for member in self._members:
            kinds[member.rest].add(member.kind)
        whole = (rest for rest, own in kinds.items() if own & {*IMAGE_SUFFIXES} and own & {*TEXT_SUFFIXES})
        return {rest for rest in whole if rest}

    def _looks_like_one(self) -> bool:
        """Whether no rest is a pair of its own, and a plain member or a text says that they belong together."""
        read = [member for member in self._members if member.is_read]
        told = any(not member.rest or member.kind in TEXT_SUFFIXES for member in read)
        return not self._pairs() and (told or not read)

    def _by_rest(self) -> Iterator[Sample]:
        """A sample of each rest; what belongs to the plain members, as a mask does, goes with them."""
        pairs, has_plain = self._pairs(), any(not member.rest for member in self._members)

        def name_of(member: _Member) -> str:
            return "" if has_plain and member.rest not in pairs else member.rest

        groups: dict[str, list[_Member]] = defaultdict(list)
        for member in self._members:
            groups[name_of(member)].append(member)
        for rest, members in groups.items():
            yield self._sample(
                f"{self.key}.{rest}" if rest else self.key, members, cut=len(rest) + 1 if rest else 0
            )

    @staticmethod
    def _sample(key: str, members: list[_Member], cut: int = 0) -> Sample:
        parts = {member.suffix[cut:]: member.content for member in members}
        return Sample(key, parts, next((member.reject for member in members if member.reject), None))


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
                if cut_off:
                    judging.skip()
                else:
                    judging.look(sample)
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
