"""Reading a distilled set, and checking that it is whole."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mmdd_ray import __version__
from mmdd_ray.data.formats.tar import tar_samples
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import (
    FIELDS,
    FOLDER,
    FORMAT_VERSION,
    IMAGES,
    LEARNT,
    MANIFEST,
    SHARD_NAME,
    Sample,
    set_checksum,
)
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def check_images(source: Store | str) -> None:
    """Checks the image folder of a set, if it has one; raises ``UserError`` where a file is missing or damaged."""
    store = source if isinstance(source, Store) else Store(source)
    expected = read_manifest(store).get("images_checksum")
    if expected is not None and expected != set_checksum(_hashed(store, store.files(IMAGES))):
        raise UserError(
            f"{redact(store.path(IMAGES))} is damaged: its files are not those of {MANIFEST}; copy the distilled set "
            "again"
        )


def read_distilled(source: Store | str) -> list[Sample]:
    """The samples of a distilled set, in order; ``source`` is its folder, a local path or a URI.

    Raises ``UserError`` when there is no set, it has a newer format, or a shard is missing or damaged.
    """
    store = source if isinstance(source, Store) else Store(source)
    return [sample for shard in read_manifest(store)["shards"] for sample in _read_shard(store, shard)]


def read_learnt(source: Store | str) -> LearntPairs | None:
    """The learnt pairs of a distilled set, or None where it has images and captions alone.

    Raises ``UserError`` as ``read_distilled``.
    """
    store = source if isinstance(source, Store) else Store(source)
    file = read_manifest(store).get("learnt")
    return LearntPairs.from_bytes(_read_file(store, file)) if file else None


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest with the fields that reading needs, checked: anyone may have written it."""
    where = redact(store.uri)
    if not store.exists(MANIFEST):
        if store.exists(f"{FOLDER}/{MANIFEST}"):
            raise UserError(f"{where} is a run directory; name its set, {where}/{FOLDER}")
        raise UserError(f"{where} holds no distilled set: it has no {MANIFEST}")
    try:
        manifest = store.read_json(MANIFEST)
    except (ValueError, RecursionError):
        manifest = None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {version}, but this mmdd-ray {__version__} reads "
            f"up to {FORMAT_VERSION}; update mmdd-ray"
        )
    if not _describes_set(manifest):
        raise UserError(f"{where} holds a {MANIFEST} that is no distilled set's; name the folder of a set")
    method = manifest.get("method")
    if not isinstance(method, str) or not method.strip():
        raise UserError(f"{where}/{MANIFEST}: its method must be the name of one, not {method!r}")
    files = [*manifest["shards"], *([manifest["learnt"]] if manifest.get("learnt") else [])]
    if set_checksum(files) != manifest["checksum"]:
        raise UserError(
            f"{where}/{MANIFEST} was changed: its files do not have the checksum of the set; write it again"
        )
    return manifest


def _describes_set(manifest: Any) -> bool:
    """Whether a JSON document has what reading needs: a version, and names and checksums of shards."""
    try:
        return (
            isinstance(manifest["format_version"], int)
            and isinstance(manifest["checksum"], str)
            and len(manifest["shards"]) > 0
            and all(
                SHARD_NAME.fullmatch(shard["name"]) and isinstance(shard["sha256"], str)
                for shard in manifest["shards"]
            )
            and (not (learnt := manifest.get("learnt")) or _describes_learnt(learnt))
        )
    except (KeyError, TypeError):
        return False


def _describes_learnt(file: Any) -> bool:
    return file["name"] == LEARNT and isinstance(file["sha256"], str)


def _hashed(store: Store, names: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": name, "sha256": hashlib.sha256(store.read_bytes(name)).hexdigest()} for name in names]


def _read_shard(store: Store, shard: Mapping[str, Any]) -> list[Sample]:
    path, content = redact(store.path(shard["name"])), _read_file(store, shard)
    try:
        return [
            _sample(member.record(), member.parts["png"])
            for member in tar_samples(io.BytesIO(content), max_bytes=len(content))
        ]
    except KeyError as error:
        raise UserError(
            f"{path} is no shard of a distilled set: it holds a sample without {error}"
        ) from error


def _read_file(store: Store, file: Mapping[str, Any]) -> bytes:
    path = redact(store.path(file["name"]))
    try:
        content = store.read_bytes(file["name"])
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy the distilled set again") from None
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not that of {MANIFEST}; copy the distilled set again"
        )
    return content


def _sample(record: Mapping[str, Any], image: bytes) -> Sample:
    return Sample(
        key=record["key"],
        image=image,
        captions=tuple(record["captions"]),
        seed=record["seed"],
        source_key=record["source_key"],
        label=record["label"],
        extra={name: value for name, value in record.items() if name not in FIELDS},
    )
