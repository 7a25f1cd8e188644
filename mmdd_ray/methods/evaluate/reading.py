"""Reads the given sets for a comparison, with what a report says of each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmdd_ray.config import StudentForm, Students
from mmdd_ray.config.data import SCENES
from mmdd_ray.data.images import encode_png
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.published import POOLING
from mmdd_ray.distilled.read import read_manifest
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.audited_set import MAX_PIXELS, AuditedSet
from mmdd_ray.evaluation.held_out import read_held_out
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.sets import distilled_set
from mmdd_ray.features.rejects import RejectBudget, RejectList
from mmdd_ray.methods.evaluate.look import POOLINGS, own_side, source_of, vectors_of
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.named_sets import NamedSet, named_sets
from mmdd_ray.models import zoo
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


@dataclass(frozen=True, eq=False)
class GivenSet:
    """A set in memory."""

    named: NamedSet
    pairs: PairSet | LearntPairs
    own_px: int | None
    """Side of its images as they are stored; None where they may differ."""
    identity: str
    """Another content has another one."""
    notes: tuple[str, ...] = ()
    """What people should know of how it was read, a sentence each."""
    rows_in: int = 0
    """Rows that were read, refused ones included."""

    @property
    def images(self) -> np.ndarray:
        """Its images (N, px, px, 3) uint8; learnt ones as people see them."""
        return self.pairs.images() if isinstance(self.pairs, LearntPairs) else self.pairs.images

    @property
    def about(self) -> dict[str, Any]:
        """What a report says of it, as JSON."""
        return {
            "label": self.named.label,
            "kind": self.named.kind,
            "uri": redact(self.named.uri),
            "pairs": self.pairs.n_pairs,
            "images": self.pairs.n_images,
            "own_px": self.own_px,
            "identity": self.identity,
            "notes": list(self.notes),
        }


def read_sets(settings: Evaluate, listed: RejectList | None = None) -> list[GivenSet]:
    """All sets of the settings, at the side of the students' images; needs Ray for sources of pairs.

    Args:
        listed: Takes the refused rows of sources, with set/NAME/ before their shards.

    Raises:
        UserError: One is missing, damaged or unfit, or more of its rows were refused than data.max_reject_ratio allows.
    """
    return [_noted(_read(one, settings, listed), settings) for one in named_sets(settings.set)]


def _noted(one: GivenSet, settings: Evaluate) -> GivenSet:
    """With a sentence where a set of other images is tested on the procedural scenes of the presets."""
    own = one.named.uri
    if one.named.kind == "distilled":
        own = str(read_manifest(Store(own))["inputs"].get("uri", ""))
    if own.startswith(SCENES) or not settings.evaluation.test.startswith(SCENES):
        return one
    told = (
        "its students are tested on procedural scenes, evaluation.test; for a set of photographs name photographs by "
        "--data.uri, --evaluation.val and --evaluation.test"
    )
    return replace(one, notes=(*one.notes, told))


def of_text_model(given: Sequence[GivenSet], students: Students) -> list[GivenSet]:
    """The same with sentence vectors that are taken to be those of ``students.text_model``, which is loaded for that.

    Raises:
        UserError: The encoder cannot be loaded, or is of another width.
    """
    if all(one.named.kind != "vectors" for one in given):
        return list(given)
    known = []
    width, digest = _encoder_of(students)
    for one in given:
        if one.named.kind == "vectors":
            assert isinstance(one.pairs, LearntPairs)
            known.append(replace(one, pairs=_known(one.named, one.pairs, width, digest)))
        else:
            known.append(one)
    return known


def _encoder_of(students: Students) -> tuple[int, str]:
    """Width and digest of ``students.text_model``."""
    from mmdd_ray.models.students import load_text_encoder

    encoder = load_text_encoder(students, "cpu", StudentForm(pooling=POOLING))
    return encoder.width, encoder.weights_digest()


def _known(one: NamedSet, pairs: LearntPairs, width: int, digest: str) -> LearntPairs:
    assert pairs.vectors is not None
    if pairs.vectors.shape[1] != width:
        raise UserError(
            f"{one.shown} has sentence vectors of {pairs.vectors.shape[1]} numbers, but students.text_model gives "
            f"{width}; set students.text_model to the encoder that they are of"
        )
    return replace(pairs, encoder=digest)


def audited_set(settings: Evaluate) -> AuditedSet:
    """The first set as an audit looks at it: its files as they are stored, of learnt pairs what people see of them."""
    one = named_sets(settings.set[:1])[0]
    if one.kind == "distilled":
        return AuditedSet.distilled(Store(one.uri))
    if one.kind == "vectors":
        learnt = _known(one, vectors_of(one, settings), *_encoder_of(settings.students))
        images = ((f"{number:06d}", encode_png(image), ()) for number, image in enumerate(learnt.images()))
        shown = AuditedSet.of_files(one.uri, images, MAX_PIXELS, learnt.image_px)
        return replace(shown, learnt=learnt)
    data = source_of(one, settings)
    files = ((row.name, row.image or b"", row.captions) for row in read_held_out(data, sys.maxsize).rows)
    return AuditedSet.of_files(one.uri, files, data.max_image_pixels, settings.students.image_px)


def _read(one: NamedSet, settings: Evaluate, listed: RejectList | None) -> GivenSet:
    if one.kind == "pairs":
        return _read_source(one, settings, listed)
    if one.kind == "vectors":
        return _read_vectors(one, settings)
    store = Store(one.uri)
    pairs = distilled_set(store, settings.students.image_px)
    own_px = own_side(store)
    notes = _resized(own_px, pairs.image_px)
    return GivenSet(one, pairs, own_px, read_manifest(store)["checksum"], notes, rows_in=pairs.n_pairs)


def _read_source(one: NamedSet, settings: Evaluate, listed: RejectList | None) -> GivenSet:
    """Rows of one image are joined, because another caption of the same image is no negative."""
    data = source_of(one, settings)
    read = read_held_out(data, sys.maxsize)
    px = settings.students.image_px
    try:
        pairs, lost = PairSet.from_rows(read.rows, image_px=px, max_pixels=data.max_image_pixels)
    except UserError as error:
        raise UserError(f"{one.shown}: {error}") from error
    refused = [(f"set/{one.name}/{shard}", key, why) for shard, key, why in (*read.rejects, *lost)]
    if listed is not None:
        tally = RejectBudget(one.shown, data.max_reject_ratio, listed, total_rows=read.rows_in)
        tally.add(read.rows_in, refused)
    notes: tuple[str, ...] = (
        (f"{len(refused):,} of its {read.rows_in:,} rows were refused",) if refused else ()
    )
    if read.repeated:
        notes += (f"{read.repeated:,} of its {read.rows_in:,} rows repeat another, and were left out",)
    return GivenSet(one, pairs, None, pairs.fingerprint(), notes, read.rows_in)


def _read_vectors(one: NamedSet, settings: Evaluate) -> GivenSet:
    students, stored = settings.students, vectors_of(one, settings)
    model = zoo.public_name(students.text_model)
    notes = [
        f"its sentence vectors are taken to be of students.text_model={model}, {POOLINGS[stored.pooling]}, as the "
        "file names no encoder",
        _levels(stored),
        *_resized(stored.image_px, students.image_px),
    ]
    if stored.similarity is not None:
        notes.append("its students learn the similarities of pairs in the file, as in LoRS")
    pairs = stored.resized(students.image_px)
    return GivenSet(one, pairs, stored.image_px, stored.fingerprint(), tuple(notes), rows_in=pairs.n_pairs)


def _resized(own_px: int, px: int) -> tuple[str, ...]:
    return (f"its images of {own_px} px were resized to {px} px",) if own_px != px else ()


def _levels(stored: LearntPairs) -> str:
    """How the pixels were read, which nothing in the file says."""
    levels, outside = stored.levels(), 1 - stored.share_in_range()
    told = (
        f"its pixels are taken to be normalised by CLIP's statistics: levels of {levels.min():.0f} to "
        f"{levels.max():.0f}, {outside:.1%} of them outside 0 to 255"
    )
    if np.abs(stored.pixels).max() <= 1:
        told += "; all values lie in -1 to 1, as those of images that were normalised otherwise do"
    return told
