"""Writing a distilled set."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import IO, Any

from PIL import Image

from mmdd_ray import __version__
from mmdd_ray.data.class_names import class_folder
from mmdd_ray.data.formats.tar import write_tar_samples
from mmdd_ray.distilled.card import dataset_card
from mmdd_ray.distilled.contact_sheet import COLUMNS, MAX_SAMPLES, contact_sheet, spread
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_distilled, read_manifest
from mmdd_ray.distilled.sample import (
    CARD,
    CONTACT_SHEET,
    FIELDS,
    FORMAT_VERSION,
    IMAGES,
    LEARNT,
    MANIFEST,
    MAX_ROWS_PER_SHARD,
    Sample,
    set_checksum,
)
from mmdd_ray.errors import UserError
from mmdd_ray.storage.store import Store


def write_distilled(
    samples: Sequence[Sample],
    store: Store,
    *,
    method: str,
    settings: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, Any],
    models: Mapping[str, Mapping[str, str | None]] | None = None,
    versions: Mapping[str, str] | None = None,
    protocols: Sequence[Mapping[str, Any]] = (),
    learnt: LearntPairs | None = None,
    class_names: Mapping[int, str] | None = None,
    rows_per_shard: int = 1000,
) -> dict[str, Any]:
    """Writes the set into the folder ``store`` in the order of ``samples``; gives its manifest.

    ``learnt`` are the pairs that the samples show, where they are more than their images and captions. With
    ``class_names`` by label, the images are written as an image folder, too, and the contact sheet is by class.

    A set that is there already is replaced. ``settings`` must have credentials redacted, as
    ``settings_changes.resolved`` does; ``inputs`` fingerprints what the set was made from, ``models`` gives "name" and
    "version" of the models that made it by their role, ``versions`` those of libraries, ``protocols`` "name", "version"
    and "source" of those that its run judges it under.

    Raises ``UserError`` when there are no samples, or two have the same key.
    """
    _check(samples)
    assert 1 <= rows_per_shard <= MAX_ROWS_PER_SHARD
    store.remove(MANIFEST)  # from here on the old set is not whole any more
    shards = _write_shards(samples, store, rows_per_shard)
    learnt_file = _write_learnt(learnt, store)
    files = [*shards, learnt_file] if learnt_file else shards
    pictures = _write_images(samples, class_names, store)
    per_image = [len(sample.captions) for sample in samples]
    manifest = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "images": len(samples),
        "pairs": sum(per_image),
        "captions_per_image": {"min": min(per_image), "max": max(per_image)},
        "bytes": sum(file["bytes"] for file in files),
        "checksum": set_checksum(files),
        "shards": shards,
        "learnt": learnt_file,
        "images_checksum": set_checksum(sorted(pictures, key=itemgetter("name"))) if pictures else None,
        "classes": {str(label): name for label, name in (class_names or {}).items()},
        "seed": seed,
        "models": dict(models or {}),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "versions": dict(versions or {}),
        "protocols": [dict(one) for one in protocols],
        "package_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    shown, columns = (samples, COLUMNS) if class_names is None else _by_class(samples)
    tiles = [(sample.image, _with_class(sample, class_names)) for sample in shown]
    store.write_bytes(CONTACT_SHEET, contact_sheet(tiles, columns))
    store.write_bytes(CARD, dataset_card(manifest, samples).encode())
    store.write_json(MANIFEST, manifest)
    return manifest


def note_protocols(store: Store, protocols: Sequence[Mapping[str, Any]]) -> None:
    """Names in manifest and card of a set the protocols that it was judged under since it was written."""
    manifest = read_manifest(store)
    if manifest.get("protocols") != (noted := [dict(one) for one in protocols]):
        manifest["protocols"] = noted
        store.write_bytes(CARD, dataset_card(manifest, read_distilled(store)).encode())
        store.write_json(MANIFEST, manifest)


def _check(samples: Sequence[Sample]) -> None:
    if not samples:
        raise UserError("a distilled set needs at least one sample, but there are none")
    if len({sample.key for sample in samples}) < len(samples):
        raise UserError("two samples of the distilled set have the same key; keys must be unique")


def _write_shards(samples: Sequence[Sample], store: Store, rows_per_shard: int) -> list[dict[str, Any]]:
    """Writes the shards and removes those of an earlier set; name, bytes and checksum of each."""
    shards = [
        _write_shard(samples[start : start + rows_per_shard], store, number)
        for number, start in enumerate(range(0, len(samples), rows_per_shard))
    ]
    for stale in {name for name in store.entries() if name.endswith(".tar")} - {s["name"] for s in shards}:
        store.remove(stale)
    return shards


def _write_learnt(learnt: LearntPairs | None, store: Store) -> dict[str, Any] | None:
    """Writes the learnt pairs, or removes those of an earlier set; name, bytes and checksum."""
    if learnt is None:
        store.remove(LEARNT)
        return None
    content = learnt.to_bytes()
    store.write_bytes(LEARNT, content)
    return {"name": LEARNT, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write_images(
    samples: Sequence[Sample], class_names: Mapping[int, str] | None, store: Store
) -> list[dict[str, str]]:
    """Writes the images of a labelled set as an image folder; name and checksum of each."""
    store.remove(IMAGES)
    pictures: list[dict[str, str]] = []
    for sample in samples if class_names is not None else ():
        assert sample.label is not None
        assert class_names is not None
        picture = f"{IMAGES}/{class_folder(sample.label, class_names)}/{sample.key}.png"
        store.write_bytes(picture, sample.image)
        pictures.append({"name": picture, "sha256": hashlib.sha256(sample.image).hexdigest()})
    return pictures


def _by_class(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """Samples for a contact sheet, class by class and equally many of each, and a width that keeps them together."""
    classes: dict[int | None, list[Sample]] = {}
    for sample in samples:
        classes.setdefault(sample.label, []).append(sample)
    each = min(COLUMNS, max(1, MAX_SAMPLES // len(classes)), *map(len, classes.values()))
    chosen = spread(list(classes.values()), MAX_SAMPLES // each)
    return [sample for own in chosen for sample in spread(own, each)], COLUMNS // each * each


def _with_class(sample: Sample, class_names: Mapping[int, str] | None) -> tuple[str, ...]:
    """The texts of a sample for a contact sheet, after the name of its class if it has one."""
    if class_names is None or sample.label is None:
        return sample.texts
    return (class_names[sample.label], *sample.texts)


class _Hashed:
    """Counts and hashes what is written through it, so that a shard need not be read back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.bytes = 0
        self.sha256 = hashlib.sha256()
        self._file = file

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)


def _write_shard(samples: Sequence[Sample], store: Store, number: int) -> dict[str, Any]:
    name = f"{number:05d}.tar"
    with store.create(name) as file:
        hashed = _Hashed(file)
        members = ((f"{number:05d}{row:04d}", _members(sample)) for row, sample in enumerate(samples))
        write_tar_samples(hashed, members)  # type: ignore[arg-type]  # of a file, it needs write alone
    return {
        "name": name,
        "rows": len(samples),
        "bytes": hashed.bytes,
        "sha256": hashed.sha256.hexdigest(),
    }


def _members(sample: Sample) -> dict[str, bytes]:
    """Content of the tar members of a sample by suffix, sorted."""
    assert not set(FIELDS) & set(sample.extra), "Sample.extra hides a field of the record"
    width, height = Image.open(io.BytesIO(sample.image), formats=["PNG"]).size
    record = {
        "key": sample.key,
        "caption": sample.captions[0],
        "captions": list(sample.captions),
        "prompt": sample.captions[0],
        "seed": sample.seed,
        "source_key": sample.source_key,
        "label": sample.label,
        "width": width,
        "height": height,
        **sample.extra,
    }
    return {
        "json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(),
        "png": sample.image,
        "txt": sample.captions[0].encode(),
    }
