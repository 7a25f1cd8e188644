"""The distilled set on disk: WebDataset shards as img2dataset lays them out, a manifest and a dataset card.

::

    00000.tar …          members 000000000.json, .png, .txt: shard (5 digits) and row in it (4 digits)
    README.md            Hugging Face dataset card
    contact_sheet.png    some of the images with their captions
    images/0003_red_circle/000123.png   the same images as an image folder, where the set has classes
    learnt_pairs.safetensors   where pixels and texts were learnt: what a student trains on. The shards show it
    manifest.json        written last: a folder with a manifest holds a whole set

The same samples give the same shards, byte for byte, on any machine. ``.txt`` holds the first caption, the
one that the image was drawn from; ``.json`` holds all, so that the set is a ``Data`` source like any other.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import jinja2
from PIL import Image

from mmdd_ray import __version__
from mmdd_ray.data.contact_sheet import COLUMNS, MAX_SAMPLES, contact_sheet, spread
from mmdd_ray.data.learnt import LearntPairs
from mmdd_ray.data.schema import tar_samples, write_tar_samples
from mmdd_ray.errors import UserError
from mmdd_ray.redact import redact
from mmdd_ray.store import Store

FOLDER = "distilled"  # of a run directory
MANIFEST = "manifest.json"
CARD = "README.md"
CONTACT_SHEET = "contact_sheet.png"
LEARNT = "learnt_pairs.safetensors"
IMAGES = "images"
NEAREST = "nearest_words"  # of Sample.extra
FORMAT_VERSION = 1
CARD_EXAMPLES = 5
MAX_ROWS_PER_SHARD = 10_000  # row numbers have 4 digits
_SHARD_NAME = re.compile(r"\d+\.tar")  # a manifest leads to no file outside its folder

# What a .json member holds besides Sample.extra.
_FIELDS = ("key", "caption", "captions", "prompt", "seed", "source_key", "label", "width", "height")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One synthetic image with its captions."""

    key: str
    """Unique in the set."""
    image: bytes
    """PNG file."""
    captions: tuple[str, ...]
    """At least one; the first is the prompt that the image was drawn from."""
    seed: int
    """Seed of the image, below 2**63, so that Arrow can hold it."""
    source_key: str
    """Key of the real pair whose caption was the prompt."""
    label: int | None = None
    """Class, for labelled sets."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further figures as JSON, e.g. a selection score; the same names and types in every sample of a set."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What people are shown: the captions, and the words nearest to a text that was learnt."""
        return (*self.captions, *([self.extra[NEAREST]] if NEAREST in self.extra else []))


def single_captions(samples: Iterable[Sample]) -> list[Sample]:
    """The samples as pairs: one with c captions stands there c times, with one of them each."""
    return [replace(sample, captions=(text,)) for sample in samples for text in sample.captions]


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
    learnt: LearntPairs | None = None,
    class_names: Mapping[int, str] | None = None,
    rows_per_shard: int = 1000,
) -> dict[str, Any]:
    """Writes the set into the folder ``store`` in the order of ``samples``; gives its manifest.

    ``learnt`` are the pairs that the samples show, where they are more than their images and captions. With
    ``class_names`` by label, the images are written as an image folder, too, and the contact sheet is by class.

    A set that is there already is replaced. ``settings`` must have credentials redacted (``run.resolved``);
    ``inputs`` fingerprints what the set was made from, ``models`` gives "name" and "version" of the models that made it
    by their role, ``versions`` those of libraries.

    Raises ``UserError`` when there are no samples, or two have the same key.
    """
    if not samples:
        raise UserError("a distilled set needs at least one sample, but there are none")
    if len({sample.key for sample in samples}) < len(samples):
        raise UserError("two samples of the distilled set have the same key; keys must be unique")
    assert 1 <= rows_per_shard <= MAX_ROWS_PER_SHARD

    store.remove(MANIFEST)  # from here on the old set is not whole any more
    starts = range(0, len(samples), rows_per_shard)
    shards = [
        _write_shard(samples[start : start + rows_per_shard], store, number)
        for number, start in enumerate(starts)
    ]
    for stale in {name for name in store.entries() if name.endswith(".tar")} - {s["name"] for s in shards}:
        store.remove(stale)

    files = list(shards)
    if learnt is not None:
        content = learnt.to_bytes()
        store.write_bytes(LEARNT, content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append({"name": LEARNT, "bytes": len(content), "sha256": sha256})
    else:
        store.remove(LEARNT)
    store.remove(IMAGES)
    pictures: list[dict[str, str]] = []
    if class_names is not None:
        for sample in samples:
            assert sample.label is not None
            picture = f"{_class_folder(sample.label, class_names)}/{sample.key}.png"
            store.write_bytes(picture, sample.image)
            pictures.append({"name": picture, "sha256": hashlib.sha256(sample.image).hexdigest()})
    per_image = [len(sample.captions) for sample in samples]
    manifest = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "images": len(samples),
        "pairs": sum(per_image),
        "captions_per_image": {"min": min(per_image), "max": max(per_image)},
        "bytes": sum(file["bytes"] for file in files),
        "checksum": _checksum(files),
        "shards": shards,
        "learnt": files[-1] if learnt is not None else None,
        "images_checksum": _checksum(sorted(pictures, key=itemgetter("name"))) if pictures else None,
        "classes": {str(label): name for label, name in (class_names or {}).items()},
        "seed": seed,
        "models": dict(models or {}),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "versions": dict(versions or {}),
        "package_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    shown, columns = (samples, COLUMNS) if class_names is None else _by_class(samples)
    tiles = [(sample.image, _with_class(sample, class_names)) for sample in shown]
    store.write_bytes(CONTACT_SHEET, contact_sheet(tiles, columns))
    store.write_bytes(CARD, dataset_card(manifest, samples).encode())
    store.write_json(MANIFEST, manifest)
    return manifest


def _class_folder(label: int, class_names: Mapping[int, str]) -> str:
    """Sorted as the labels are, and told apart by them."""
    digits = max(4, len(str(max(class_names))))
    return f"{IMAGES}/{label:0{digits}d}_{re.sub('[^A-Za-z0-9]+', '_', class_names[label])[:90]}"


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


def check_images(source: Store | str) -> None:
    """Checks the image folder of a set, if it has one; raises ``UserError`` where a file is missing or damaged."""
    store = source if isinstance(source, Store) else Store(source)
    expected = read_manifest(store).get("images_checksum")
    if expected is not None and expected != _checksum(_hashed(store, store.files(IMAGES))):
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
    if _checksum(files) != manifest["checksum"]:
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
                _SHARD_NAME.fullmatch(shard["name"]) and isinstance(shard["sha256"], str)
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


def _checksum(files: Sequence[Mapping[str, Any]]) -> str:
    """What ``sha256sum *.tar *.safetensors | sha256sum`` prints; of images, the same with ``images/*/*.png``."""
    lines = [f"{file['sha256']}  {file['name']}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    assert not set(_FIELDS) & set(sample.extra), "Sample.extra hides a field of the record"
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
        extra={name: value for name, value in record.items() if name not in _FIELDS},
    )


def dataset_card(manifest: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """README.md of the set: Markdown with the YAML front matter that the Hugging Face hub reads."""
    # the front matter is written as JSON values, which YAML reads; Markdown has its own escapes
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment.get_template("card.md.jinja").render(
        manifest=manifest,
        size_category=_size_category(manifest["images"]),
        examples=spread(samples, CARD_EXAMPLES),
        last_shard=manifest["shards"][-1]["name"].removesuffix(".tar"),
    )


def escape_markdown(text: object) -> str:
    """``text`` on one line, so that Markdown shows its characters and no markup or HTML."""
    line = re.sub(r"[\\`*_\[\]<>#|~&$]", r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", line)  # would start a list


def _size_category(images: int) -> str:
    """The hub's name for the order of magnitude."""
    limits = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6}
    return next((name for name, limit in limits.items() if images < limit), "1M<n<10M")
