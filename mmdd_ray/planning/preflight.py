"""Checks of any run before anything expensive; imports neither torch nor Ray."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from mmdd_ray.config import Evaluation, LabelledSettings, PairLearning, PairSettings, Pool, RunSettings
from mmdd_ray.config.data import SCENES
from mmdd_ray.data.checks import check_data, check_source
from mmdd_ray.data.listing import split_sources
from mmdd_ray.errors import UserError
from mmdd_ray.protocols.soft_label import IMAGENET_TEACHER
from mmdd_ray.protocols.trainings import label_trainings, trainings
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import folder_and_name

PLACEHOLDER = "YOUR-"  # in what a preset, or an example of the docs, leaves to its user


def check_set(settings: RunSettings) -> None:
    """Looks whether everything is set that no preset can know.

    Raises:
        UserError: Something is not; names all of it, so that nobody is told of missing credentials for an example.
    """
    left = dict(_placeholders(settings))
    if left:
        verb = "is" if len(left) == 1 else "are"
        example = " ".join(f"--{name} {value}" for name, value in left.items())
        raise UserError(f"{', '.join(left)} {verb} not set; say where yours {verb}, as in {example}")


def _placeholders(settings: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Settings that were left at a preset's example, with it."""
    for part in fields(settings):
        value, name = getattr(settings, part.name), f"{path}{part.name}"
        if is_dataclass(value):
            yield from _placeholders(value, f"{name}.")
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and PLACEHOLDER in one:
                yield name, one


def check_values(settings: RunSettings) -> None:
    """Looks at each value, and at the sizes of pools.

    Raises:
        UserError: One or more are out of their range.
    """
    from pydantic import TypeAdapter, ValidationError

    dataclass: Any = settings
    try:
        TypeAdapter(type(settings)).validate_python(asdict(dataclass))
    except ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, found['loc']))}={found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
            for found in error.errors()
        ]
        raise UserError("; ".join(complaints)) from error
    for name, pool in vars(settings).items():
        if isinstance(pool, Pool) and pool.min_actors > pool.max_actors:
            raise UserError(
                f"{name}.min_actors={pool.min_actors} is above {name}.max_actors={pool.max_actors}"
            )


def check_sources(settings: RunSettings, labelled: bool) -> None:
    """Looks at all sources, and prints what was found.

    Raises:
        UserError: There are none, or they are not what they should be.
    """
    if not labelled and not settings.data.needs_captions:
        raise UserError("data.needs_captions=False, but this job needs captions; leave it at True")
    evaluation: Evaluation | None = getattr(settings, "evaluation", None)
    if evaluation is None:
        found = {"data": check_source(settings.data, labelled=False).says}
    else:
        found = check_data(settings.data, evaluation, labelled=labelled)
    for setting, lines in found.items():
        for line in lines:
            print(f"{setting:<15} {redact(line)}", flush=True)


def check_own_tests(settings: RunSettings, presets: Iterable[RunSettings]) -> None:
    """Refuses to test students of other data on the procedural scenes of a preset, which say nothing of them.

    Raises:
        UserError: `evaluation.val` or `evaluation.test` is that of a preset still; names both settings.
    """
    if all(uri.startswith(SCENES) for uri in split_sources(settings.data.uri)):
        return
    left = [
        name
        for name in ("val", "test")
        if (uri := getattr(getattr(settings, "evaluation", None), name, None))
        and uri.startswith(SCENES)
        and any(uri == getattr(getattr(preset, "evaluation", None), name, None) for preset in presets)
    ]
    if left:
        verb = "is" if len(left) == 1 else "are"
        raise UserError(
            f"{' and '.join(f'evaluation.{name}' for name in left)} {verb} still the procedural scenes of the preset, "
            f"but data.uri={redact(settings.data.uri)} is not: students would be tested on what their data never show; "
            f"say where yours {verb}, as in {' '.join(f'--evaluation.{name} URI' for name in left)}, or hold a share "
            f"of your data out, as in {' '.join(f'--evaluation.{name} 10%' for name in left)}"
        )


def check_all_match(settings: RunSettings) -> None:
    """Refuses a share of the pairs to match where nothing ever is.

    Raises:
        UserError: `features.clip_score_fraction` is below 1.
    """
    fraction = settings.features.clip_score_fraction
    if fraction < 1:
        raise UserError(
            f"features.clip_score_fraction={fraction:g}, but this job matches no moments; leave it at 1"
        )


def check_one_draw(evaluation: Evaluation) -> None:
    """Refuses several draws of a set that is given.

    Raises:
        UserError: `evaluation.draws` is above 1.
    """
    if evaluation.draws > 1:
        raise UserError(
            f"evaluation.draws={evaluation.draws}, but a set that is there already cannot be drawn again; "
            "leave it at 1, or give it to the job that distils"
        )


def check_classifiers(settings: LabelledSettings) -> None:
    """Looks at what classifiers and their evaluation have to agree about.

    Raises:
        UserError: Images are too small for the network, or there is nothing to choose a learning rate with.
    """
    _ = settings.classifiers.poolings  # raises where the images are too small
    protocols = [protocol for protocol, _ in label_trainings(settings.classifiers, settings.evaluation)]
    if (teacher := settings.classifiers.teacher) is not None:
        is_needed = any(one.needs_teacher for one in protocols)
        if not is_needed and teacher != IMAGENET_TEACHER:  # which a preset names
            raise UserError(
                f"classifiers.teacher={redact(teacher)} is for soft labels; add soft-label to evaluation.protocols, or "
                "say --classifiers.teacher None"
            )
        if is_needed:
            _require_file("classifiers.teacher", teacher)
    chooses = len(settings.classifiers.learning_rates) > 1 and not all(one.is_published for one in protocols)
    if chooses and settings.evaluation.val is None:
        raise UserError(
            f"classifiers.learning_rates={settings.classifiers.learning_rates} are several to choose from; name images "
            "to choose with as evaluation.val, or give one rate"
        )


def _require_file(setting: str, uri: str) -> None:
    store, name = folder_and_name(uri)
    try:
        store.checksum(name)  # which tells a missing file from a hub that cannot be reached
    except FileNotFoundError as error:
        raise UserError(f"{setting}={redact(uri)} does not exist; name a file of weights") from error


def check_template(setting: str, template: str) -> None:
    """Refuses a template that says the same of all classes.

    Raises:
        UserError: It does not have {class_name}.
    """
    if "{class_name}" not in template:
        raise UserError(
            f"{setting}={template!r} does not have {{class_name}}: it would say the same of all classes"
        )


def encoder_models(settings: RunSettings, *sections: str) -> dict[str, str]:
    """Names of the image and text models of these sections, and of further students, by setting.

    Raises:
        UserError: `evaluation.protocols` or `evaluation.students` cannot be.
    """
    found = {
        f"{section}.{model}": getattr(getattr(settings, section), model)
        for section in sections
        for model in ("image_model", "text_model")
    }
    if isinstance(settings, PairSettings):
        for _, kind in trainings(settings.students, settings.evaluation):
            if kind is not settings.students:
                where = f"evaluation.students {kind.image_model}+{kind.text_model}"
                found |= {f"{where}.{model}": getattr(kind, model) for model in ("image_model", "text_model")}
    return found


def encoder_sides(settings: RunSettings, models: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The setting of the images' side, and the side, of each image encoder among the settings of models."""
    found = {}
    for setting in models:
        section, _, part = setting.rpartition(".")
        if part == "image_model":
            # further students see the images of those of the run
            section = section if hasattr(settings, section) else "students"
            found[setting] = f"{section}.image_px", getattr(settings, section).image_px
    return found


def check_matching(matching: PairLearning, pairs_setting: str, pairs: int) -> None:
    """Looks at how batches and pairs are shared by workers.

    Raises:
        UserError: They cannot be.
    """
    _ = matching.real_pairs_per_worker  # raises where the batch cannot be shared
    section = matching.section
    if matching.workers > min(pairs, matching.synthetic_batch):
        raise UserError(
            f"{section}.workers={matching.workers} is above {pairs_setting}={pairs} or {section}.synthetic_batch="
            f"{matching.synthetic_batch}, which they share; lower {section}.workers"
        )


def batch_needs(matching: PairLearning) -> dict[str, int]:
    """Real pairs that a batch of them needs, by its setting; none where nothing is learnt."""
    return {f"{matching.section}.real_batch": matching.real_batch} if matching.iterations else {}
