"""A look at all sources of a run before it: whether they fit, are labelled, and are not the same. No Ray."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.config.data import SCENES
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.class_names import check_same_names, names_to_recognise, shared_captions
from mmdd_ray.data.contrasts import ImageContrasts, list_contrasts
from mmdd_ray.data.formats.format import PROBE_ROWS
from mmdd_ray.data.formats.scenes import seed_of
from mmdd_ray.data.listing import reachable
from mmdd_ray.data.pair import UNSAID, Row
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import PROBE_SHARDS, Listing, find_shards
from mmdd_ray.errors import UserError

NAMED_BY = 8  # images of a label whose only caption in common is its name; two might agree by chance


def check_data(data: Data, evaluation: Evaluation, *, labelled: bool = False) -> dict[str, list[str]]:
    """Looks at all three sources of a run.

    Args:
        labelled: Whether their rows must be labelled.

    Returns:
        Sentences for people that say what was found, by the setting that names the source.

    Raises:
        UserError: as ``find_shards``; for validation and test data it names the setting in ``evaluation``. They also
            may not have files in common with the training data, but in slices that lie apart.
    """
    evaluation.check_probes(labelled=labelled)
    training, rows = probed(data, labelled)
    listings = {"data": training}
    names = _names(rows) if data.needs_captions else {}
    for name, source in evaluation.sources(data).items():
        setting = f"evaluation.{name}"
        try:
            listings[setting], rows = probed(source, labelled)
            if missing := listings[setting].missing:
                raise UserError(f"data.uri={source.uri}: {missing[0]} is not there; correct the range")
        except UserError as error:
            sentence = said_of(setting, error).replace(f"{name}_split=train,", f"{name}_split={name},")
            raise UserError(sentence if sentence.startswith(setting) else f"{setting}: {sentence}") from error
        advice = _apart(setting, source, data)
        _refuse_common(setting, source, listings[setting].shards, data, training.shards, advice=advice)
        if labelled:
            _refuse_other_classes(setting, listings["data"].classes, listings[setting].classes)
            check_same_names(f"{setting}={source.uri}", _names(rows), data.uri, names)
    says = {setting: listing.says for setting, listing in listings.items()}
    for check in (_check_zero_shot, _check_compositional):
        says |= check(data, evaluation, training.shards)
    sources = evaluation.sources(data)
    if "val" in sources:
        val, test = (listings[f"evaluation.{name}"].shards for name in ("val", "test"))
        if common := _in_common(sources["val"], val, sources["test"], test):
            says["evaluation.test"].append(
                f"{len(common):,} files are those of evaluation.val, e.g. {min(common)}: learning rates are chosen on "
                "what is tested"
            )
    return says


def _check_zero_shot(data: Data, evaluation: Evaluation, training: Sequence[Shard]) -> dict[str, list[str]]:
    """Looks at the images of zero-shot classification, if there are any, and at the names of their classes."""
    setting = "evaluation.zero_shot"
    if (source := evaluation.zero_shot_source(data)) is None:
        return {}
    try:
        listing, rows = probed(source, labelled=True)
        shared = shared_captions((row.label, row.captions) for row in rows if row.reject is None)
        names = names_to_recognise(
            source.uri, evaluation.zero_shot_names, listing.classes, shared, is_whole=False
        )
    except UserError as error:
        raise UserError(said_of(setting, error)) from error
    _refuse_common(setting, source, listing.shards, data, training)
    examples = ", ".join(list(names.values())[:3])
    return {setting: [*listing.says, f"classes are called {examples}, …"]}


def _check_compositional(
    data: Data, evaluation: Evaluation, training: Sequence[Shard]
) -> dict[str, list[str]]:
    """Looks at the captions with negatives, if there are any, and whether their images are there."""
    setting, image_root = "evaluation.compositional", evaluation.compositional_image_root
    if (uri := evaluation.compositional) is None:
        return {}
    found = list_contrasts(uri, image_root, evaluation.max_pairs)
    if uri.startswith(SCENES):
        scenes = replace(data, uri=uri, split=None)
        _refuse_common(setting, scenes, find_shards(scenes).shards, data, training)
    elif not any(_is_there(image, image_root or uri) for image in found.images[:PROBE_ROWS]):
        raise UserError(
            f"{setting}={uri}: the image {found.images[0].name} is not there, nor are others, in {image_root or uri}; "
            f"name the folder of the images as {setting}_image_root"
        )
    kinds = sorted({one.kind for image in found.images for one in image.contrasts})
    says = [f"{found.entries:,} captions with negatives: {', '.join(kinds)}"]
    if len(found.images) < found.of_images:
        says.append(f"{len(found.images):,} of {found.of_images:,} images, {found.drawn}")
    return {setting: says}


def _is_there(image: ImageContrasts, folder: str) -> bool:
    try:
        with reachable("evaluation.compositional_image_root", folder):
            image.read()
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return False
        raise
    return True


def check_given(given: Data, setting: str, data: Data, evaluation: Evaluation) -> list[str]:
    """Looks at a source of pairs to train on that is compared with the training data of a run.

    Args:
        given: The source, which may share files with the training data, and with validation or test data only in slices
            that lie apart.
        setting: The one that names it, for messages; those for its split and images begin with it.

    Returns:
        Sentences for people that say what was found.

    Raises:
        UserError: as ``find_shards``, naming the setting; or it has files in common with validation or test data.
    """
    try:
        listing = find_shards(given)
        _require_slice(given, listing.shards)
        if listing.missing:
            raise UserError(f"data.uri={given.uri}: {listing.missing[0]} is not there; correct the range")
    except UserError as error:
        sentence = said_of(setting, error)
        if sentence.startswith("none of data.caption_columns"):
            columns = " ".join([*data.caption_columns, "NAME"])
            sentence += (
                f"; add the name of the set's column to those of the data: --data.caption_columns {columns}"
            )
        raise UserError(sentence) from error
    for part, source in evaluation.sources(data).items():
        try:
            held_out = find_shards(source).shards
        except UserError:  # which check_data puts into words
            continue
        is_cut = not sliced(data.split)[1].is_all
        advice = f"; or read what is trained on alone, {setting}_split={data.split}" if is_cut else ""
        named = f"{setting}={given.uri}"
        _refuse_common(named, given, listing.shards, source, held_out, f"evaluation.{part}", advice)
    return listing.says


def said_of(setting: str, error: UserError) -> str:
    """The sentence of an error, with the settings of the data renamed to those of ``setting``.

    A source has its own settings for its split and its images; all others are those of the data.
    """
    sentence = str(error).replace("data.uri", setting)
    for own in ("split", "image_root"):
        sentence = sentence.replace(f"data.{own}", f"{setting}_{own}")
    return sentence


def check_source(data: Data, labelled: bool) -> Listing:
    """Looks at one source.

    Raises:
        UserError: as ``find_shards``; rows must be labelled, and none is; or its slice has no row.
    """
    return probed(data, labelled)[0]


def probed(data: Data, labelled: bool) -> tuple[Listing, list[Row]]:
    """The listing of a source, and the first rows of its first shards if they must be labelled."""
    listing = find_shards(data)
    _require_slice(data, listing.shards)
    if not labelled:
        return listing, []
    whole = replace(data, split=sliced(data.split)[0])
    with reachable("data.uri", data.uri):
        shards = listing.shards[:PROBE_SHARDS]
        rows = list(chain.from_iterable(islice(iter_shard(shard, whole), PROBE_ROWS) for shard in shards))
    labels = [row.label for row in rows if row.reject in (None, UNSAID)]
    if labels and labels.count(None) == len(labels):
        raise UserError(
            f"none of the first {len(labels)} images of {data.uri} has a label (-1 stands for none); name the column "
            "that has it as data.label_column, or use an image folder with one sub-folder per class"
        )
    return listing, rows


def _names(rows: Sequence[Row]) -> dict[int | None, set[str]]:
    """Captions that all of a label's images among these have, where there are enough of them for a name."""
    labelled = ((row.label, row.captions) for row in rows if row.reject is None)
    return shared_captions(labelled, at_least=NAMED_BY)


def _require_slice(data: Data, shards: Sequence[Shard]) -> None:
    """Refuses a slice without a usable row, which a source of few images may have."""
    if sliced(data.split)[1].is_all:
        return
    with reachable("data.uri", data.uri):
        if not any(row.reject is None for shard in shards for row in iter_shard(shard, data)):
            raise UserError(
                f"data.split={data.split} holds no usable image of {data.uri}; take a larger share"
            )


def _in_common(one: Data, shards: Sequence[Shard], other: Data, others: Sequence[Shard]) -> set[str]:
    """Files of both sources; none where their slices lie apart, since no image is then in both."""
    ours, theirs = (sliced(data.split)[1] for data in (one, other))
    return _addresses(shards) & _addresses(others) if ours.overlaps(theirs) else set()


def _refuse_common(
    setting: str,
    source: Data,
    shards: Sequence[Shard],
    other: Data,
    others: Sequence[Shard],
    named: str = "data.uri",
    advice: str = "",
) -> None:
    """Refuses to test on what is trained on, by the files: those of a setting that are among those of another."""
    if common := _in_common(source, shards, other, others):
        raise UserError(
            f"{setting}: {len(common):,} of its {len(_addresses(shards)):,} files are among those of {named}, too, "
            f"e.g. {min(common)}; name others, or leave them out of {named}{advice}"
        )


def _apart(setting: str, source: Data, data: Data) -> str:
    """How validation or test data may be of the same files as the training data."""
    if sliced(source.split)[1].is_all:
        return f"; or hold a share of its images out: {setting}=10%"
    return f"; or take slices that lie apart, other than {setting}_split={source.split} and data.split={data.split}"


def _refuse_other_classes(setting: str, training: Sequence[str], held_out: Sequence[str]) -> None:
    """Refuses folders of other classes: a label is a place among them, so one more or less moves all that follow."""
    if training and held_out and training != held_out:
        lacking, more = sorted(set(training) - set(held_out)), sorted(set(held_out) - set(training))
        told = [f"it lacks {', '.join(lacking[:3])}"] * bool(lacking) + [
            f"it has {', '.join(more[:3])}"
        ] * bool(more)
        raise UserError(
            f"{setting}: its folders of classes are not those of data.uri: {' and '.join(told)}; use sources with the "
            "same classes"
        )


def _addresses(shards: Sequence[Shard]) -> set[str]:
    """Names of the files of rows, or of the seed of scenes."""
    found: set[str] = set()
    for shard in shards:
        if shard.kind == "files":
            folders: dict[str, str] = {}  # a class may be a link to that of another folder
            for path in (f"{shard.uri}/{entry.path}" for entry in shard.entries if entry.path):
                folder, _, name = path.rpartition("/")
                if folder not in folders:
                    folders[folder] = folder if "://" in folder else os.path.realpath(folder)
                found.add(f"{folders[folder]}/{name}")
        elif shard.kind == "scenes":
            found.add(f"the scenes of seed {seed_of(shard.uri)}")
        else:
            # one file may be linked to under two names
            found.add(shard.uri if "://" in shard.uri else os.path.realpath(shard.uri))
    return found
