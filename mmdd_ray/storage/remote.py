"""Storage that fails, told from data that are damaged: the former is worth another try.

Every storage library raises errors of its own; here they become ``StorageError``, except that something is not there.
The libraries have tried again by then, for about ten seconds.
"""

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import redact

TRANSPORT_ERROR = "storage failed"  # Ray retries errors by a pattern in their text
BUFFER_BYTES = 2**18  # tarfile asks for 10 KiB at a time
READ_AHEAD_BYTES = 8 * 2**20  # s3fs would hold 50 MiB per open file; 8 MiB still amortises a 30 ms request


@contextmanager
def transporting(uri: str, doing: str) -> Iterator[None]:
    """Raises ``StorageError`` for whatever the storage of ``uri`` raises in the block, except for what is missing."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, StorageError, UserError):
        raise
    except Exception as error:  # the libraries' errors share no base class
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise FileNotFoundError(str(error)) from error
        reason = redact(f"{type(error).__name__}: {error}")
        raise StorageError(f"{TRANSPORT_ERROR} while {doing} {redact(uri)}: {reason}") from error


class _Stored(io.RawIOBase):
    """A stored file that is read."""

    def __init__(self, uri: str, **options: Any) -> None:
        self._uri, self._options, self._at = uri, options, 0
        with transporting(uri, "reading"):
            self._file = self._open()

    def _open(self) -> Any:
        fs, path = url_to_fs(self._uri, **self._options)
        return fs.open(path, "rb", block_size=READ_AHEAD_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer: Any) -> int:
        with transporting(self._uri, "reading"):
            try:
                found = self._file.read(len(buffer))
            except Exception:
                if not self._at:  # nothing is lost when the whole file is read again
                    raise
                self._reopen()
                found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def _reopen(self) -> None:
        """Goes on at the same place with a new connection, once the library has given the old one up."""
        self._file.close()
        self._file = self._open()
        self._file.seek(self._at)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with transporting(self._uri, "reading"):
            self._at = self._file.seek(offset, whence)
            return self._at

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_stored(uri: str, **options: Any) -> io.BufferedReader:
    """Opens a stored file for buffered reading; ``options`` are those of its file system."""
    return io.BufferedReader(_Stored(uri, **options), BUFFER_BYTES)
