"""Files of a run on local disk or an object store, written whole or not at all.

A ``Store`` is a folder named by a local path or an fsspec URI (``s3://bucket/prefix``). It pickles to a
string, so Ray workers, whose working folder is another one, read and write the same place as the driver.

- Local files are written under a temporary name in the same folder, flushed to disk and renamed.
- Objects are uploaded from a finished temporary file; object stores publish an upload when it is complete.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import open_stored, transporting

TEMPORARY = (
    ".mmdd-tmp-"  # prefix of files and folders that are not finished; a killed process leaves them behind
)

UNCACHED = {"use_listings_cache": False}  # other processes write where we read


class Store:
    """A folder of files; ``uri`` is an absolute local path or a URI with a scheme.

    ``name`` arguments are relative paths inside it, with forward slashes. Raises ``ValueError`` for a URI
    whose scheme is unknown or needs a package that is not installed; methods raise ``StorageError`` where an object
    store fails.
    """

    def __init__(self, uri: str) -> None:
        self.is_local = "://" not in uri or uri.startswith("file://")
        # absolute, because a Ray worker resolves a relative path somewhere else
        self.uri = (
            str(Path(uri.removeprefix("file://")).expanduser().absolute())
            if self.is_local
            else uri.rstrip("/")
        )
        try:
            self._remote()
        except ImportError as error:
            raise UserError(
                f"{uri.split('://')[0]}:// needs a package that is not installed: {error}"
            ) from error

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def _remote(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """File system (fsspec caches the instance) and the path of this folder on it."""
        return url_to_fs(self.uri, **({} if self.is_local else UNCACHED))

    def _path(self, name: str) -> Path:
        return Path(self.uri, name)

    def path(self, name: str = "") -> str:
        """Absolute local path or URI of ``name``, for libraries that open it themselves."""
        return f"{self.uri}/{name}" if name else self.uri

    def child(self, name: str) -> "Store":
        """The folder ``name`` inside this one."""
        return Store(self.path(name))

    def _doing(self, what: str, name: str = "") -> AbstractContextManager[None]:
        """Around whatever an object store does; errors of a local disk stay as they are."""
        return nullcontext() if self.is_local else transporting(self.path(name), what)

    def exists(self, name: str) -> bool:
        fs, root = self._remote()
        with self._doing("looking for", name):
            return fs.exists(f"{root}/{name}")

    def sizes(self, name: str = "") -> dict[str, int]:
        """Bytes of each finished file at or below ``name``, by path relative to this folder, sorted."""
        return {file: info["size"] for file, info in self._find(name).items()}

    def files(self, name: str = "") -> list[str]:
        """Finished files at or below ``name``, as paths relative to this folder, sorted."""
        return list(self._find(name))

    def entries(self) -> list[str]:
        """Names of the files and folders directly in this folder, sorted; none when it does not exist."""
        fs, root = self._remote()
        try:
            with self._doing("listing"):
                paths = fs.ls(root, detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != root)
        return [name for name in names if not name.startswith(TEMPORARY)]

    def _find(self, name: str) -> dict[str, dict[str, Any]]:
        fs, root = self._remote()
        with self._doing("listing", name):
            found = fs.find(f"{root}/{name}".rstrip("/"), detail=True)
        relative = {path.removeprefix(root).lstrip("/"): info for path, info in sorted(found.items())}
        # consoles and Ray Train leave empty objects named `folder/`
        files = (file for file in relative if file and not file.endswith("/"))
        return {file: relative[file] for file in files if TEMPORARY not in file}

    def remove(self, name: str = "") -> None:
        """Deletes the file or folder ``name`` (everything, by default); nothing there is fine."""
        fs, root = self._remote()
        with self._doing("deleting", name):
            if fs.exists(target := f"{root}/{name}".rstrip("/")):
                fs.rm(target, recursive=True)

    def remove_temporaries(self) -> None:
        """Deletes what killed processes left unfinished. Call it only while nobody else writes here."""
        if self.is_local:  # an unfinished upload is no object
            for stray in [*Path(self.uri).rglob(f"{TEMPORARY}*")]:
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink(missing_ok=True)

    def open(self, name: str) -> IO[bytes]:
        """Opens ``name`` for reading; raises ``FileNotFoundError``."""
        return self._path(name).open("rb") if self.is_local else open_stored(self.path(name), **UNCACHED)

    @contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A binary file that appears as ``name`` when the block ends; an error in it leaves nothing."""
        if self.is_local:
            target = self._path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f"{TEMPORARY}{uuid4().hex}"
            try:
                with temporary.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            fs, root = self._remote()
            with tempfile.NamedTemporaryFile(prefix=TEMPORARY) as file:
                yield file
                file.flush()
                with self._doing("writing", name):
                    fs.put_file(file.name, f"{root}/{name}")

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        with self.create(name) as file:
            file.write(content)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        """Writes indented JSON; NumPy scalars become numbers, paths strings."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain)
        self.write_bytes(name, text.encode() + b"\n")

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table; raises ``KeyError`` for a column that it has not."""
        with self.open(name) as file:
            table = pq.ParquetFile(file).read(columns)  # which leaves out what is missing without a word
        return table if columns is None else table.select(columns)

    def parquet_metadata(self, name: str) -> dict[bytes, bytes]:
        """The metadata of the file's schema; empty if there are none."""
        with self.open(name) as file:
            return pq.ParquetFile(file).schema_arrow.metadata or {}

    def write_parquet(self, name: str, table: pa.Table) -> None:
        with self.create(name) as file:
            pq.write_table(table, file)

    def checksum(self, name: str) -> str:
        """``etag:…`` of an object, which costs no download, or ``sha256:…`` of a file."""
        fs, root = self._remote()
        with self._doing("looking for", name):
            etag = fs.info(f"{root}/{name}").get("ETag")
        if etag:
            return f"etag:{etag.strip(chr(34))}"
        with self.open(name) as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]

    def fetch(self, name: str) -> Path:
        """Local path of the file or folder ``name``, e.g. of model weights.

        Remote ones are downloaded once per machine and version; processes may call this at the same time.
        Raises ``FileNotFoundError``.
        """
        if self.is_local:
            if not self._path(name).exists():
                raise FileNotFoundError(self.path(name))
            return self._path(name)
        found = self._find(name)
        if not found:
            raise FileNotFoundError(self.path(name))
        fs, root = self._remote()
        # S3 and GCS change the ETag with the content
        version = repr(
            [(file, info["size"], info.get("ETag"), info.get("etag")) for file, info in found.items()]
        )
        cached = _cache_folder() / hashlib.sha256(f"{self.uri}\n{version}".encode()).hexdigest()[:32]
        if not cached.exists():
            with tempfile.TemporaryDirectory(dir=cached.parent, prefix=TEMPORARY) as unfinished:
                for file in found:
                    target = Path(unfinished, "files", file)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with self._doing("reading", file):
                        fs.get_file(f"{root}/{file}", str(target))
                try:
                    Path(unfinished, "files").rename(cached)
                except OSError:
                    if not cached.exists():  # another process may have been first, and its copy is the same
                        raise
        return cached / name

    def upload_folder(self, folder: Path, name: str) -> None:
        """Makes the folder ``name`` equal to a local one; at once on disk, one by one on an object store."""
        if self.is_local:
            target = self._path(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f"{TEMPORARY}{uuid4().hex}"
            shutil.copytree(folder, temporary)
            self.remove(name)
            temporary.rename(target)
        else:
            fs, root = self._remote()
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            names = [f"{name}/{file.relative_to(folder).as_posix()}" for file in files]
            stale_names = set(self.files(name)) - set(names)
            with self._doing("writing", name):
                for stale in stale_names:
                    fs.rm_file(f"{root}/{stale}")
                for file, target_name in zip(files, names, strict=True):
                    fs.put_file(str(file), f"{root}/{target_name}")


def folder_and_name(uri: str) -> tuple[Store, str]:
    """The store of the folder that a file is in, and its name there; a local path is made absolute."""
    if "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    folder, _, name = uri.rpartition("/")
    return Store(folder or "/"), name


def _cache_folder() -> Path:
    """Folder for downloads that only this user can write to, so that nobody else can plant files in it."""
    folder = Path(tempfile.gettempdir(), f"mmdd-ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder


def _plain(value: Any) -> Any:
    """JSON's view of NumPy scalars and arrays and of paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON serialisable")
