"""Reads the data of tests beyond retrieval from the sources that the settings name."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mmdd_ray.config import Data, PairSettings
from mmdd_ray.data.class_names import names_to_recognise, shared_captions
from mmdd_ray.data.contrasts import ContrastList, list_contrasts
from mmdd_ray.data.pair import Row
from mmdd_ray.data.shards import find_shards
from mmdd_ray.data.sources import read_pairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.held_out import HeldOut, join_rows
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.probes.sets import ClassSet, ContrastSet, Probes
from mmdd_ray.features.rejects import Reject, RejectBudget, RejectList

ZERO_SHOT, COMPOSITIONAL = "zero_shot", "compositional"


def read_probes(
    settings: PairSettings, listed: RejectList
) -> tuple[Probes, dict[str, HeldOut | ContrastList]]:
    """The questions that students are asked beyond retrieval, and counts of the data that were read for them.

    The counts are by "zero_shot" and "compositional".

    `listed` takes the refused rows, with zero_shot/ or compositional/ before their shards or kinds.

    Raises:
        UserError: A source cannot be read, more than `data.max_reject_ratio` of its rows were refused, its classes have
            no names, or they are too few for a linear probe.
    """
    classes, contrasts = None, None
    read: dict[str, HeldOut | ContrastList] = {}
    if (source := settings.evaluation.zero_shot_source(settings.data)) is not None:
        classes, read[ZERO_SHOT] = _read_classes(source, settings, listed)
    if settings.evaluation.compositional is not None:
        contrasts, read[COMPOSITIONAL] = _read_contrasts(settings, listed)
    return Probes(classes, contrasts), read


def _read_classes(source: Data, settings: PairSettings, listed: RejectList) -> tuple[ClassSet, HeldOut]:
    evaluation = settings.evaluation
    said: list[tuple[int | None, list[str]]] = []
    read = join_rows(
        _noting((Row(**row) for row in read_pairs(source).iter_rows()), said), evaluation.max_pairs
    )
    folders = find_shards(source).classes
    names = names_to_recognise(source.uri, evaluation.zero_shot_names, folders, shared_captions(said))
    try:
        images, used, lost = LabelledSet.with_rows(
            read.rows,
            tuple(names),
            image_px=settings.students.image_px,
            max_pixels=source.max_image_pixels,
        )
    except UserError as error:
        raise UserError(f"evaluation.zero_shot={source.uri}: {error}") from error
    _judge(ZERO_SHOT, source, read.rows_in, [*read.rejects, *lost], listed)
    found = ClassSet(images, tuple(names.values()), evaluation.templates, evaluation.linear_probe)
    if found.linear:
        found.check_halves()
    return found, read.decoded(used, images.images)


def _noting(rows: Iterable[Row], said: list[tuple[int | None, list[str]]]) -> Iterator[Row]:
    """The same rows; notes label and captions of the usable ones."""
    for row in rows:
        if row.reject is None:
            said.append((row.label, row.captions))
        yield row


def _read_contrasts(settings: PairSettings, listed: RejectList) -> tuple[ContrastSet, ContrastList]:
    evaluation, data = settings.evaluation, settings.data
    assert evaluation.compositional is not None
    source = replace(data, uri=evaluation.compositional)
    found = list_contrasts(source.uri, evaluation.compositional_image_root, evaluation.max_pairs)
    try:
        contrasts, lost = ContrastSet.read(
            found.images,
            image_px=settings.students.image_px,
            max_pixels=data.max_image_pixels,
            max_bytes=data.max_member_mib * 2**20,
        )
    except UserError as error:
        raise UserError(f"evaluation.compositional={source.uri}: {error}") from error
    _judge(COMPOSITIONAL, source, found.entries, [*found.rejects, *lost], listed)
    return contrasts, found


def _judge(part: str, source: Data, rows_in: int, rejects: list[Reject], listed: RejectList) -> None:
    """Counts the refused rows of a source.

    Raises:
        UserError: They are more than `data.max_reject_ratio` allows.
    """
    tally = RejectBudget(f"evaluation.{part}", source.max_reject_ratio, listed, total_rows=rows_in)
    tally.add(rows_in, [(f"{part}/{shard}", key, why) for shard, key, why in rejects])
