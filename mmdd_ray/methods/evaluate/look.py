"""A look at the given sets before a run: what each is, and whether the students can be trained on it. No Ray data."""

import io
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from mmdd_ray.config import Data, Evaluation, Students
from mmdd_ray.data.checks import check_given
from mmdd_ray.data.inventory import Source, look_at, require_as_many
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.published import read_published
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.named_sets import SETTING, NamedSet, count_of, named_sets, refuse_origin
from mmdd_ray.models import zoo
from mmdd_ray.models.published import BERT
from mmdd_ray.protocols import PairProtocol
from mmdd_ray.protocols.trainings import trainings
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store, folder_and_name

FITTING = {128: "tiny-bert", 768: BERT, 1024: "google-bert/bert-large-uncased"}
"""Text encoders by the width of their vectors, for advice."""
POOLINGS = {"mean": "the mean over all tokens", "cls": "the state of the [CLS] token"}


def look_at_sets(settings: Evaluate) -> list[NamedSet]:
    """Looks at each set, and prints what was found.

    Raises:
        UserError: One is missing, damaged or unclear, or students of these settings cannot be trained on it.
    """
    found = named_sets(settings.set)
    for one in found:
        for line in _says(one, settings):
            print(f"{SETTING:<15} {one.name}: {redact(line)}", flush=True)
    return found


def _says(one: NamedSet, settings: Evaluate) -> Sequence[str]:
    px = settings.students.image_px
    if one.kind == "pairs":
        lines = check_given(source_of(one, settings), SETTING, settings.data, settings.evaluation)
        return [f"source of pairs, read at {px} px: {line}" for line in lines]
    if one.kind == "vectors":
        learnt = vectors_of(one, settings)
        what = f"images and sentence vectors as LoRS saves them, {_sizes(learnt)}"
        return [f"{what}; {note}" for note in [_resized(learnt.image_px, px)] if note] or [what]
    from mmdd_ray.evaluation.sets import distilled_set

    refuse_origin(one, settings.data, settings.evaluation)
    store = Store(one.uri)
    pairs = distilled_set(store, px)  # small; finds what is missing or damaged
    own_px = own_side(store)
    note = _resized(own_px, px)
    what = f"distilled set of {one.label}, {_sizes(pairs, own_px)}"
    return [f"{what}; {note}" if note else what]


def own_side(store: Store) -> int:
    """Side of the images of a distilled set as they are stored."""
    learnt = read_learnt(store)
    if learnt is not None:
        return learnt.image_px
    with Image.open(io.BytesIO(read_distilled(store)[0].image)) as image:
        return max(image.size)


def source_of(one: NamedSet, settings: Evaluate) -> Data:
    """A set as a source: like the training data, with an address, split and image folder of its own."""
    return replace(
        settings.data,
        uri=one.uri,
        split=settings.set_split,
        image_root=settings.set_image_root,
        limit=None,
    )


def vectors_of(one: NamedSet, settings: Evaluate) -> LearntPairs:
    """The pairs of a file of sentence vectors, as they are stored.

    Raises:
        UserError: It is damaged or something else; its vectors are not of the width of ``students.text_model``; or
            some students read captions in another way than its vectors were made.
    """
    store, file = folder_and_name(one.uri)
    try:
        found = read_published(store.read_bytes(file))
    except UserError as error:
        raise UserError(f"{one.shown} {error}") from error
    assert found.vectors is not None
    _check_students(one, found, settings.students, settings.evaluation)
    students = settings.students
    width, own = text_width(students), found.vectors.shape[1]
    if width is not None and width != own:
        fits = f", such as {FITTING[own]}" if own in FITTING else ""
        raise UserError(
            f"{one.shown} has sentence vectors of {own} numbers, but students.text_model={students.text_model} gives "
            f"{width}; set students.text_model to the encoder that they are of: one of width {own}{fits}"
        )
    return found


def _check_students(one: NamedSet, found: LearntPairs, students: Students, evaluation: Evaluation) -> None:
    """Refuses students to which the vectors mean nothing, or that would be tested with other features than these."""
    for protocol, kind in trainings(students, evaluation):
        assert isinstance(protocol, PairProtocol)
        has = f"{one.shown} has sentence vectors and no captions, but"
        if kind.text_model != students.text_model:
            raise UserError(
                f"{has} evaluation.students names another text encoder than students.text_model, {kind.text_model}; "
                "leave that encoder or this set out"
            )
        if protocol.trained != "frozen-text":
            raise UserError(
                f"{has} the students of evaluation.protocols={protocol.name} train the text encoder; set "
                "evaluation.protocols=lors-frozen-text, or leave this set out"
            )
        if found.pooling != protocol.form.pooling:
            raise UserError(
                f"{one.shown} has sentence vectors that are {POOLINGS[found.pooling]}, as LoRS saves them, but the "
                f"students of evaluation.protocols={protocol.name} read captions as "
                f"{POOLINGS[protocol.form.pooling]}; set evaluation.protocols=lors-frozen-text, or leave this set out"
            )


def look_at_data(settings: Evaluate) -> Source:
    """A look at the real data, and at how many pairs the first set has; about as many, where it is a source of rows.

    Raises:
        UserError: They are known to have fewer rows than the first set has pairs, and baselines of as many are wanted.
    """
    source, first = look_at(settings.data), named_sets(settings.set[:1])[0]
    if first.kind == "vectors":
        pairs = vectors_of(first, settings).n_pairs
    else:
        pairs = count_of(first, "pairs", source_of(first, settings))
    is_known = source.exact and first.kind != "pairs"
    if is_known and {*settings.evaluation.baselines} - {"full"}:
        require_as_many(pairs, source.rows, settings.data.uri)
    return replace(source, given=pairs)


def text_width(students: Students) -> int | None:
    """Width of the vectors of ``students.text_model``, by its config; None where that does not say.

    Raises:
        UserError: The config cannot be loaded.
    """
    from transformers import AutoConfig

    with zoo.loading("text encoder", students.text_model, "students.text_model"):
        config = AutoConfig.from_pretrained(zoo.resolve(students.text_model), trust_remote_code=False)
    width = getattr(config, "hidden_size", None)
    return width if isinstance(width, int) else None


def _sizes(pairs: PairSet | LearntPairs, own_px: int | None = None) -> str:
    return f"{pairs.n_pairs:,} pairs on {pairs.n_images:,} images of {own_px or pairs.image_px} px"


def _resized(own_px: int, px: int) -> str:
    return f"resized to {px} px" if own_px != px else ""
