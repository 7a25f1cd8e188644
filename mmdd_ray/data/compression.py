"""Compressed tars, told by their first bytes: gzip, bzip2, Zstandard and xz."""

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from mmdd_ray.errors import StorageError
from mmdd_ray.storage.remote import BUFFER_BYTES, open_stored

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst", ".tar.xz", ".txz")


class CompressionError(Exception):
    """A compressed stream that is damaged or cut off."""


class _Decompressed(io.RawIOBase):
    def __init__(self, file: IO[bytes], codec: str) -> None:
        # Arrow knows no xz, and the standard library no Zstandard
        self._stream = (
            lzma.LZMAFile(file)  # noqa: SIM115  # closed with this
            if codec == "xz"
            else pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except StorageError:
            raise
        except (OSError, EOFError, lzma.LZMAError) as error:  # the stream's own; storage raises the former
            raise CompressionError(str(error)) from error


def codec_of(head: bytes) -> str | None:
    """Name of the compression that these first bytes tell; None for a file that is not compressed."""
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)


def decompressed(file: IO[bytes], codec: str | None) -> IO[bytes]:
    """The content of a compressed file; reading it raises ``CompressionError`` where that is damaged."""
    return file if codec is None else io.BufferedReader(_Decompressed(file, codec), BUFFER_BYTES)


@contextmanager
def open_decompressed(uri: str) -> Iterator[IO[bytes]]:
    """Opens a stored file that may be compressed."""
    with open_stored(uri) as file:
        yield decompressed(file, codec_of(file.peek(4)))
