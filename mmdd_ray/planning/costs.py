"""Costs of the stages that methods share, counted from settings and source. Imports neither torch nor Ray."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mmdd_ray.config import Classifiers, Evaluation, Features, Finetune, Students, Synthesis
from mmdd_ray.data.inventory import Source
from mmdd_ray.engine.draws import count_sets
from mmdd_ray.engine.run_dir import DRAWS
from mmdd_ray.models import zoo
from mmdd_ray.models.contents import Folder, weight_files
from mmdd_ray.planning.memory import drawing_bytes, features_bytes, finetune_bytes, student_bytes
from mmdd_ray.protocols import PairProtocol
from mmdd_ray.protocols.trainings import trainings

FEATURE_BYTES = 2  # float16
OTHER_DRAWS = f"{DRAWS}/*/"
FALLBACK_DIM = 512  # of CLIP, where its name does not say
ASSUMED_PAIRS = 500  # of a set that is only read when its run begins
GREEDY = ("herding", "k-center")  # coresets that choose one row after the other, looking at all


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The work of a stage."""

    stage: str = ""
    """Its name, which `Method.costs` fills in."""
    units: float
    """How many units of work there are, each of which takes equally long."""
    unit: str
    uses: str
    """Models and settings that decide how long a unit takes."""
    actors: int | None = None
    """Most that work at once; None: as many as fit."""
    gpus_each: float = 0.0
    section: str
    """Section of the settings that messages name."""
    batches: str = ""
    """Settings that decide the memory of a process; empty where none is noted."""
    leaves_cpu: bool = True
    """Whether a CPU stays free beside its actors."""
    passes: float = 0
    """How often it reads all of the source."""
    writes_bytes: float | None = 0
    """Bytes that it leaves in the run directory; None where that is not known."""
    shared: bool = False
    """Whether all draws of a run use what the first of them made."""
    times: int = 1
    """How often a run does this, one time after the other, each in a folder of its own."""
    memory: Callable[[], int | None] = lambda: None
    """Counts the bytes that a process holds on a GPU, which takes seconds; None where they cannot be counted."""

    @property
    def like(self) -> str:
        """The stage that does the same in a run of one draw."""
        return self.stage.removeprefix(OTHER_DRAWS)


def counted_bytes(cost: StageCost) -> int | None:
    """The memory of a stage's process on a GPU, counted; None if it cannot be.

    A model that does not take what it is given is for its stage to tell: an estimate ends no run.
    """
    try:
        return cost.memory()
    except Exception:
        return None


def planned_as(stage: str) -> str:
    """The name that a plan has for a stage of a run: one for those of all draws but the first."""
    return re.sub(rf"^{DRAWS}/\d+/", OTHER_DRAWS, stage)


def features_cost(features: Features, source: Source) -> StageCost:
    """The cost of encoding all pairs with CLIP."""
    each = clip_dim(features.clip) * FEATURE_BYTES * (1 + source.captions_per_row) + source.text_bytes_per_row
    return StageCost(
        units=source.rows,
        unit="pairs",
        uses=f"{features.clip} at {features.image_px} px",
        actors=features.max_actors,
        gpus_each=features.gpus_per_actor,
        section="features",
        batches=f"{features.chunk_pairs} pairs",
        passes=1,
        writes_bytes=source.rows * each,
        memory=partial(features_bytes, features),
    )


def finetune_cost(tuning: Finetune, source: Source, losses: str = "", clip: str | None = None) -> StageCost:
    """The cost of fine-tuning a generator.

    Args:
        losses: What else decides how long a step takes.
        clip: The CLIP model that the losses look through, if they do.
    """
    pairs = tuning.steps * tuning.accumulate * tuning.batch_pairs
    uses = f"{tuning.generator} at {tuning.image_px} px, {tuning.parameters}"
    if tuning.parameters == "lora":
        uses += f" of rank {tuning.lora_rank}"
    if losses:
        uses += f", {losses}"
    own = tuning.batch_pairs // tuning.workers
    return StageCost(
        units=pairs,
        unit="pairs",
        uses=uses,
        actors=tuning.workers,
        gpus_each=tuning.gpus_per_worker,
        section="finetune",
        batches=f"{own} pairs, {tuning.optimizer}, averaged: {tuning.ema_decay > 0}, {tuning.cache_mib} MiB kept"
        + (", compiled" if tuning.compile else ""),
        passes=pairs / source.rows,
        writes_bytes=_weight_bytes(tuning.generator),
        memory=partial(finetune_bytes, tuning, clip),
    )


def _weight_bytes(name: str) -> float | None:
    """Bytes of a model's weights when they are saved as float32; None for a model on a hub."""
    if not (folder := zoo.local_folder(name)):
        return None
    from safetensors import safe_open

    total = 0
    for file in weight_files(Folder(folder)) or ():
        with safe_open(folder / file, "numpy") as weights:
            total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return 4 * total


def drawing_cost(
    synthesis: Synthesis, tuning: Finetune, images: float, strength: float = 1.0, clip: str | None = None
) -> StageCost:
    """The cost of drawing images.

    Args:
        clip: The CLIP model that looks at them, if one does.
        strength: Share of the denoising steps that are taken.
    """
    passes = synthesis.inference_steps * strength * (2 if synthesis.guidance > 1 else 1)
    return StageCost(
        units=images * passes,
        unit="passes of the U-Net",
        uses=f"{tuning.generator} at {tuning.image_px} px",
        actors=synthesis.max_actors,
        gpus_each=synthesis.gpus_per_actor,
        section="synthesis",
        batches=f"{synthesis.batch_images} images, guided: {synthesis.guidance > 1}"
        + (", compiled" if synthesis.compile else ""),
        writes_bytes=images * 3 * tuning.image_px**2,
        memory=partial(drawing_bytes, synthesis, tuning.generator, tuning.image_px, clip),
    )


def coresets_cost(clip: str, evaluation: Evaluation, pairs: int, source: Source) -> StageCost | None:
    """The cost of choosing the coresets that look at the features of all pairs."""
    greedy = [name for name in GREEDY if name in evaluation.baselines]
    passes = pairs * len(greedy) + ("clip-score" in evaluation.baselines)  # over all rows
    if not passes:
        return None
    # the one pass of clip-score does not change how long a distance takes
    uses = f"{clip}, {'distances' if greedy else 'clip-score'}"
    return StageCost(units=source.rows * passes, unit="distances", uses=uses, actors=1, section="evaluation")


def audit_cost(features: Features, evaluation: Evaluation, images: float, source: Source) -> StageCost:
    """The cost of looking for copies: the images of the set and of the test data beside all real ones.

    Args:
        images: Of the distilled set.
    """
    return StageCost(
        units=source.rows * (images + evaluation.max_pairs),
        unit="similarities",
        uses=f"{features.clip} at {features.image_px} px",
        actors=1,
        gpus_each=features.gpus_per_actor,
        section="features",
        batches=f"{features.chunk_pairs} pairs",
        passes=1,  # neighbours lie in almost every shard
        writes_bytes=None,
        memory=partial(features_bytes, features),
    )


def evaluation_cost(
    judged: Students | Classifiers, evaluation: Evaluation, items: int, classes: int = 1, given: int = 1
) -> StageCost:
    """The cost of training students or classifiers on all sets, under all protocols.

    Args:
        items: Pairs or images of the distilled set and of each coreset; 0 where that is not known before.
        classes: Of labelled sets.
        given: Sets that are no baselines.
    """
    units, students, uses, counted = 0.0, 0, [], []
    for protocol, kind in trainings(judged, evaluation):
        if isinstance(protocol, PairProtocol):
            training = protocol.training(items or ASSUMED_PAIRS)
            uses.append(f"{kind.image_model} and {kind.text_model} at {kind.image_px} px, {protocol.trained}")
        else:
            training = protocol.training(items or ASSUMED_PAIRS, classes)
            taught = " with a teacher" if protocol.needs_teacher else ""
            uses.append(f"{kind.model} of {kind.width} channels at {kind.image_px} px{taught}")
        # where steps are counted, a student of all the data has whole batches
        batch = training.batch if protocol.is_published else _batch_of(kind)
        if isinstance(protocol, PairProtocol):
            counted.append(replace(kind, batch_pairs=batch, trained=protocol.trained))
        rates = len(protocol.learning_rates)
        each = (protocol.students or evaluation.seeds) + (rates if rates > 1 else 0)
        sets = count_sets(evaluation, without=["full"] if protocol.is_published else []) + given - 1
        if (
            protocol.name == evaluation.protocols[0] and kind is judged
        ):  # parts of the given sets and of random pairs
            sets += len(evaluation.curve_pairs) * (given + ("random" in evaluation.baselines))
        units += each * sets * training.steps * batch
        students += each * sets
    return StageCost(
        units=units,
        unit="pairs",
        uses="; ".join(dict.fromkeys(uses)),
        actors=students,
        gpus_each=evaluation.gpus_per_student,
        section="evaluation",
        batches=f"{_batch_of(judged)} pairs",
        leaves_cpu=False,
        memory=partial(_most_bytes, counted),
    )


def teacher_cost(classifiers: Classifiers, evaluation: Evaluation) -> StageCost | None:
    """The cost of training a teacher on the real images; None where one is given."""
    if classifiers.teacher is not None:
        return None
    return StageCost(
        units=classifiers.teacher_steps * classifiers.batch_images,
        unit="images",
        uses=f"{classifiers.model} with batch norm at {classifiers.image_px} px",
        actors=1,
        gpus_each=evaluation.gpus_per_student,
        section="classifiers",
        writes_bytes=None,
    )


def _batch_of(judged: Students | Classifiers) -> int:
    return judged.batch_pairs if isinstance(judged, Students) else judged.batch_images


def _most_bytes(counted: Sequence[Students]) -> int | None:
    """Bytes of the largest of these students; None where one of them cannot be counted."""
    found = [student_bytes(one) for one in counted]
    known = [count for count in found if count is not None]
    return max(known) if known and len(known) == len(found) else None


def clip_dim(name: str) -> int:
    """Width of the features of a CLIP model."""
    if folder := zoo.local_folder(name):
        return json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    return FALLBACK_DIM
