"""The sets that `--set` names: the kind of each, and its name in tables. Imports neither Ray nor torch."""

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fsspec.core import url_to_fs

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.config.data import SCENES, SOURCES
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.formats.scenes import seed_of
from mmdd_ray.data.inventory import look_at
from mmdd_ray.data.listing import BRACES, reachable
from mmdd_ray.data.pair import safe_name
from mmdd_ray.data.shards import stem
from mmdd_ray.data.splits import may_overlap
from mmdd_ray.distilled.published import SUFFIXES
from mmdd_ray.distilled.read import read_manifest
from mmdd_ray.distilled.sample import CONTACT_SHEET, FOLDER, LEARNT, MANIFEST
from mmdd_ray.engine.run_dir import SETTINGS
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.report.words import BASELINES, CHANCE, REPORT_JSON, set_name
from mmdd_ray.storage.hub import SCHEME
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

SETTING = "set"
_AT_COMMIT = re.compile(r"@[^/]+")
Kind = Literal["distilled", "pairs", "vectors"]
"""A folder with our manifest; a source as `data.uri` names it; a file of pixels and sentence vectors."""


@dataclass(frozen=True)
class NamedSet:
    """A set that a user names."""

    uri: str
    kind: Kind
    name: str
    """In files and tables; no other set and no baseline has it."""
    label: str
    """As people write it."""

    @property
    def shown(self) -> str:
        """The setting with its value, for messages."""
        return f"{SETTING}={redact(self.uri)}"


def named_sets(uris: Sequence[str]) -> list[NamedSet]:
    """The sets that these name, in their order.

    Distilled sets are called by their method, all others by their file or folder.

    Raises:
        UserError: One is empty, named twice or not there, or it is unclear how to read it.
    """
    places = [_place(uri) for uri in uris]
    found: list[NamedSet] = []
    for number, uri in enumerate(uris):
        if not uri.strip():
            raise UserError(f"{SETTING} names nothing; give the folder, file or URI of a set")
        if places[number] in places[:number]:
            raise UserError(f"{SETTING} names {redact(uri)} twice; name each set once")
        kind = kind_of(uri)
        label = str(read_manifest(Store(uri))["method"]) if kind == "distilled" else _last_name(uri)
        base = set_name(label) if kind == "distilled" else _free_of_baselines(safe_name(label.lower()))
        name = _distinct(base, [one.name for one in found])
        if name != base:
            label += name.removeprefix(base)
        found.append(NamedSet(uri, kind, name, label))
    return found


def kind_of(uri: str) -> Kind:
    """How a set is read.

    Raises:
        UserError: That is unclear, or its storage cannot be reached.
    """
    if SOURCES in uri or uri.startswith(SCENES):
        return "pairs"
    with reachable(SETTING, redact(uri)):
        fs, path = url_to_fs(uri)
        fs.invalidate_cache()  # fsspec remembers listings for the life of the process
        is_file, is_folder = fs.isfile(path), fs.isdir(path)
    if is_folder:
        return _kind_of_folder(Store(uri))
    if path.rpartition("/")[2] == MANIFEST:
        raise UserError(
            f"{SETTING}={redact(uri)} is a file of a distilled set; name the folder that it is in"
        )
    if uri.lower().endswith(SUFFIXES) and not _has_signs(uri):
        if not is_file:
            raise UserError(
                f"{SETTING}={redact(uri)}: no such file; name a .pt file, a folder or a source of pairs"
            )
        return "vectors"
    return "pairs"  # files, braces and globs, of which the reader says what is wrong


def count_of(one: NamedSet, unit: Literal["pairs", "images"], source: Data) -> int:
    """How many a set has by its manifest, or about how many by a look at its files; it is none of sentence vectors.
    0 where a manifest does not say.

    Args:
        source: The set as a source, for one that is.

    Raises:
        UserError: It is damaged, or nothing can be read from it.
    """
    if one.kind == "distilled":
        count = read_manifest(Store(one.uri)).get(unit)  # anyone may have written it
        return count if isinstance(count, int) else 0
    found = look_at(source)
    return round(found.rows * found.captions_per_row) if unit == "pairs" else found.rows


def refuse_origin(one: NamedSet, data: Data, evaluation: Evaluation) -> None:
    """Refuses a distilled set that was made from the images that its students are validated or tested on, as far as its
    manifest tells: a source and a split in common, in slices that overlap.

    Raises:
        UserError: It was.
    """
    settings = read_manifest(Store(one.uri)).get("settings")  # anyone may have written it
    origin = settings.get("data") if isinstance(settings, Mapping) else None
    if not isinstance(origin, Mapping):
        return
    uri, split = origin.get("uri"), origin.get("split")
    if not isinstance(uri, str) or not isinstance(split, str | None):
        return
    try:
        name, own = sliced(split)
    except UserError:  # another way to write a split says nothing here
        return
    for part, source in evaluation.sources(data).items():
        their_name, theirs = sliced(source.split)
        may_share = may_overlap(name, their_name) and own.overlaps(theirs)
        if not may_share or _origins(uri).isdisjoint(_origins(redact(source.uri))):
            continue
        raise UserError(
            f"{one.shown} was distilled from {uri}{f', split {split}' if split else ''}, which has the images of "
            f"evaluation.{part}{f', split {source.split}' if source.split else ''}; validate and test on others, or "
            "rename one of the two, if that was another place of the same name"
        )


def _origins(uri: str) -> set[str]:
    """Names of the parts of a source: real paths, URIs without the commit, and the seeds of scenes."""
    found = set()
    for part in uri.split(SOURCES):
        if part.startswith(SCENES):
            found.add(f"seed {seed_of(part)}")
        else:
            found.add(_place(_AT_COMMIT.sub("", part) if part.startswith(SCHEME) else part))
    return found


def _kind_of_folder(store: Store) -> Kind:
    where = redact(store.uri)
    if store.exists(MANIFEST):
        read_manifest(store)  # which refuses those of others
        return "distilled"
    if store.exists(f"{FOLDER}/{MANIFEST}"):
        raise UserError(f"{SETTING}={where} is a run directory; name its set, {where}/{FOLDER}")
    if all(map(store.exists, (SETTINGS, REPORT_JSON))):
        raise UserError(
            f"{SETTING}={where} is the run directory of an evaluation, which has no set; name the set itself"
        )
    if left := [name for name in (LEARNT, CONTACT_SHEET) if store.exists(name)]:
        raise UserError(
            f"{SETTING}={where} has the {left[0]} of a distilled set, but no {MANIFEST}; copy the distilled set again"
        )
    return "pairs"


def _has_signs(uri: str) -> bool:
    return glob.has_magic(uri) or BRACES.search(uri) is not None


def _last_name(uri: str) -> str:
    """Name of the file or folder without its suffix; of a pattern, that of the folder; of several, of the first."""
    first = uri.split(SOURCES)[0]
    if first.startswith(SCENES):
        return SCENES.rstrip(":")
    if "://" not in first:
        first = str(Path(first).expanduser().absolute())
    parts = [part for part in first.rstrip("/").split("/") if part and not _has_signs(part)] or [first]
    name = stem(parts[-1])
    name = PurePosixPath(name).stem if name.lower().endswith(SUFFIXES) else name
    return name.partition("@")[0] if first.startswith(SCHEME) else name  # without the commit


def _free_of_baselines(name: str) -> str:
    return f"{name}-set" if name in (*BASELINES, CHANCE) else name


def _distinct(base: str, taken: Sequence[str]) -> str:
    """``edge``, or ``edge-2`` where another set has that name."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _place(uri: str) -> str:
    """What tells sets apart: of local paths the real one."""
    plain = "://" not in uri and not uri.startswith(SCENES) and SOURCES not in uri
    return str(Path(uri).expanduser().resolve()) if plain else uri.rstrip("/")
