"""The work of each stage of a run, counted from its settings and its source. Imports neither torch nor Ray."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmdd_ray.config import Classifiers, Covmatch, Edge, Evaluate, Precompute, Students, Vlcp
from mmdd_ray.data.inventory import Source
from mmdd_ray.draws import count_sets, own_baselines
from mmdd_ray.models import zoo
from mmdd_ray.run import DRAWS

Settings = Edge | Covmatch | Vlcp | Precompute | Evaluate
FEATURE_BYTES = 2  # float16
OTHER_DRAWS = f"{DRAWS}/*/"
FALLBACK_DIM = 512  # of CLIP, where its name does not say


@dataclass(frozen=True)
class Work:
    """What a stage has to do."""

    stage: str
    units: float
    """Of work that takes equally long each."""
    unit: str
    uses: str
    """Models and settings that decide how long a unit takes."""
    actors: int | None
    """Most that work at once; None: as many as fit."""
    gpus_each: float
    section: str
    """Of the settings, which messages name."""
    batches: str = ""
    """What else decides the memory of a process; empty where none is noted."""
    leaves_cpu: bool = True
    """Whether a CPU stays free beside its actors."""
    passes: float = 0
    """How often it reads all of the source."""
    writes_bytes: float | None = 0
    """What it leaves in the run directory; None where that is not known."""
    shared: bool = False
    """Whether all draws of a run use what the first of them made."""
    times: int = 1
    """How often a run does this, one time after the other, each in a folder of its own."""

    @property
    def like(self) -> str:
        """The stage that does the same in a run of one draw."""
        return self.stage.removeprefix(OTHER_DRAWS)


def works(settings: Settings, source: Source) -> Iterator[Work]:
    """The work of each stage of a run, in order."""
    features, rows = settings.features, source.rows
    dim = clip_dim(features.clip)
    yield Work(
        "features",
        rows,
        "pairs",
        f"{features.clip} at {features.image_px} px",
        features.max_actors,
        features.gpus_per_actor,
        "features",
        batches=f"{features.chunk_pairs} pairs",
        passes=1,
        writes_bytes=rows * (dim * FEATURE_BYTES * (1 + source.captions_per_row) + source.text_bytes_per_row),
    )
    if isinstance(settings, Edge | Covmatch | Vlcp):
        yield from _draw_works(settings, source, 0)
        if (others := settings.evaluation.draws - 1) > 0:
            for work in _draw_works(settings, source, 1):
                if not work.shared:
                    yield replace(work, stage=f"{OTHER_DRAWS}{work.stage}", times=others)
    if not isinstance(settings, Precompute):
        yield _evaluate_work(settings)


def planned_as(stage: str) -> str:
    """The name that a plan has for a stage of a run: one for those of all draws but the first."""
    return re.sub(rf"^{DRAWS}/\d+/", OTHER_DRAWS, stage)


def _draw_works(settings: Edge | Covmatch | Vlcp, source: Source, number: int) -> Iterator[Work]:
    """The work of one draw, that of shared stages, too."""
    if isinstance(settings, Edge):
        yield from _edge_works(settings, source)
    elif isinstance(settings, Covmatch):
        yield from _matching_works(settings, source, settings.match.pairs)
    else:
        yield from _vlcp_works(settings, source)
    if isinstance(settings, Edge | Covmatch):
        yield from _coreset_work(settings, source, own_baselines(settings.evaluation, number))


def _edge_works(settings: Edge, source: Source) -> Iterator[Work]:
    yield _finetune_work(settings, source)
    captions = settings.captions
    yield _draw_work(settings, "synthesize", settings.candidates)
    if captions.per_image > 1:
        yield Work(
            "recaption",
            settings.images * (captions.per_image - 1),
            "captions",
            f"{captions.model}, {captions.max_new_tokens} tokens",
            captions.max_actors,
            captions.gpus_per_actor,
            "captions",
            batches=f"{captions.batch_images} images",
        )
    if settings.refine.iterations:
        yield from _matching_works(settings, source, settings.synthesis.pairs)


def _matching_works(settings: Covmatch | Edge, source: Source, pairs: int) -> Iterator[Work]:
    """Of learning pairs by `match` or `refine`, the stage of that name."""
    match = settings.matching
    encoders = f"{match.image_model} and {match.text_model} at {match.image_px} px, {match.max_tokens} tokens"
    if match.real_moments == "whole":
        features = settings.features
        yield Work(
            "moments",
            source.rows,
            "pairs",
            encoders,
            features.max_actors,
            features.gpus_per_actor,
            "features",
            batches=f"{features.chunk_pairs} pairs",
            passes=1,
            shared=True,
        )
    synthetic = min(match.synthetic_batch, pairs)
    real = match.real_batch if match.encoder_updates or match.real_moments == "batches" else 0
    updates = "encoders updated" if match.encoder_updates else "encoders still"
    # at most: an image stays with one of its captions
    rows = source.rows * min(settings.features.clip_score_fraction * source.captions_per_row, 1)
    held = rows * 3 * match.image_px**2 <= match.cache_mib * 2**20
    yield Work(
        match.section,
        match.iterations * (synthetic + real),
        "pairs",
        f"{encoders}, {updates}",
        match.workers,
        match.gpus_per_worker,
        match.section,
        batches=f"{match.micro_batch} pairs, {match.encoder_optimizer}",
        passes=1 if held else match.iterations * real / rows,
    )


def _vlcp_works(settings: Vlcp, source: Source) -> Iterator[Work]:
    describe, prototypes, px = settings.describe, settings.prototypes, settings.finetune.image_px
    if describe.source == "vlm":
        yield Work(
            "describe",
            source.rows,
            "images",
            f"{describe.model} at {describe.image_px} px, {describe.max_new_tokens} tokens",
            describe.max_actors,
            describe.gpus_per_actor,
            "describe",
            batches=f"{describe.chunk_images} images",
            passes=1,
            writes_bytes=source.rows * describe.max_new_tokens * 4,
            shared=True,
        )
    yield _finetune_work(settings, source)
    latent_bytes = 4 * (px // 8) ** 2 * FEATURE_BYTES  # of Stable Diffusion's VAEs
    yield Work(
        "latents",
        source.rows,
        "images",
        f"{settings.finetune.generator} at {px} px",
        prototypes.max_actors,
        prototypes.gpus_per_actor,
        "prototypes",
        batches=f"{prototypes.chunk_images} images",
        passes=1,
        writes_bytes=source.rows * latent_bytes,
        shared=True,
    )
    _, drawn = set_size(settings, source)
    yield Work(
        "prototypes",
        source.rows,
        "images",
        f"{px} px, {prototypes.images_per_class} each",
        None,
        0.0,
        "prototypes",
    )
    yield _draw_work(settings, "synthesize", drawn)
    if "prompts" in settings.evaluation.baselines:
        yield _draw_work(settings, "prompts", drawn)


def _finetune_work(settings: Edge | Vlcp, source: Source) -> Work:
    tuning = settings.finetune
    pairs = tuning.steps * tuning.accumulate * tuning.batch_pairs
    batches = (
        f"{tuning.batch_pairs // tuning.workers} pairs, {tuning.optimizer}, averaged: {tuning.ema_decay > 0}"
    )
    uses = f"{tuning.generator} at {tuning.image_px} px, {tuning.parameters}"
    if tuning.parameters == "lora":
        uses += f" of rank {tuning.lora_rank}"
    if isinstance(settings, Edge):
        uses += f", losses on {settings.finetune.space}"
    return Work(
        "finetune",
        pairs,
        "pairs",
        uses,
        tuning.workers,
        tuning.gpus_per_worker,
        "finetune",
        batches=batches,
        passes=pairs / source.rows,
        writes_bytes=_weight_bytes(tuning.generator),
    )


def _weight_bytes(name: str) -> float | None:
    """Bytes of a model's weights when they are saved as float32; None for a model on a hub."""
    if not (folder := zoo.local_folder(name)):
        return None
    from safetensors import safe_open

    total = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return 4 * total


def _draw_work(settings: Edge | Vlcp, stage: str, images: float) -> Work:
    synthesis, tuning = settings.synthesis, settings.finetune
    share = settings.synthesis.strength if isinstance(settings, Vlcp) and stage == "synthesize" else 1.0
    passes = synthesis.inference_steps * share * (2 if synthesis.guidance > 1 else 1)
    return Work(
        stage,
        images * passes,
        "passes of the U-Net",
        f"{tuning.generator} at {tuning.image_px} px",
        synthesis.max_actors,
        synthesis.gpus_per_actor,
        "synthesis",
        batches=f"{synthesis.batch_images} images, guided: {synthesis.guidance > 1}",
        writes_bytes=images * 3 * tuning.image_px**2,
    )


def set_size(settings: Edge | Covmatch | Vlcp | Evaluate, source: Source) -> tuple[str, int]:
    """The setting that says how large the distilled set and its coresets become, and how many images or pairs it is."""
    if isinstance(settings, Vlcp):
        return "prototypes.images_per_class", source.classes * settings.prototypes.images_per_class
    if isinstance(settings, Covmatch):
        return "match.pairs", settings.match.pairs
    if isinstance(settings, Edge):
        return "synthesis.pairs", settings.synthesis.pairs
    return "set", 0  # is there already, and small


def _coreset_work(settings: Edge | Covmatch, source: Source, baselines: Sequence[str]) -> Iterator[Work]:
    _, pairs = set_size(settings, source)
    greedy = {"herding", "k-center"}
    own = sorted(greedy & set(baselines))
    measured = sorted(greedy & set(settings.evaluation.baselines))
    passes = pairs * len(own) + ("clip-score" in baselines)  # over all rows
    if passes:
        yield Work(
            "coresets",
            source.rows * passes,
            "distances",
            # the one pass of clip-score does not change how long a distance takes
            f"{settings.features.clip}, {' and '.join(measured or ['clip-score'])}",
            1,
            0.0,
            "evaluation",
        )


def _evaluate_work(settings: Edge | Covmatch | Vlcp | Evaluate) -> Work:
    judged: Students | Classifiers
    if isinstance(settings, Vlcp):
        judged, batch = settings.classifiers, settings.classifiers.batch_images
        uses = f"{judged.model} of {judged.width} channels at {judged.image_px} px"
    else:
        judged, batch = settings.students, settings.students.batch_pairs
        uses = f"{judged.image_model} and {judged.text_model} at {judged.image_px} px, {judged.protocol}"
    rates = len(judged.learning_rates)
    sets = count_sets(settings.evaluation)
    students = sets * (settings.evaluation.seeds + (rates if rates > 1 else 0))
    each = settings.evaluation.gpus_per_student
    return Work(
        "evaluate",
        students * judged.steps * batch,
        "pairs",
        uses,
        students,
        each,
        "evaluation",
        batches=f"{batch} pairs",
        leaves_cpu=False,
    )


def clip_dim(name: str) -> int:
    """Width of the features of a CLIP model."""
    if folder := zoo.local_folder(name):
        return json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    return FALLBACK_DIM
