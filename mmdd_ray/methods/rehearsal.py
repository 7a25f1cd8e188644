"""A rehearsal: every stage of a run for two steps, with the architectures of its models and random weights.

The memory that each stage would take on a GPU is counted beside that, for the batches of the run.

Nothing is downloaded and none of the user's data is read: pairs are procedural scenes, decoded to the side that the run
has. What goes wrong in a stage because of shapes, memory or versions goes wrong here in minutes, and not after days of
the stages before it. What the set of a rehearsal looks like says nothing.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from mmdd_ray.config import (
    Classifiers,
    Data,
    Evaluation,
    Features,
    Finetune,
    PairLearning,
    Plan,
    Pool,
    Run,
    RunSettings,
    Students,
    Synthesis,
    Training,
)
from mmdd_ray.engine.environment import unset
from mmdd_ray.engine.progress import duration
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.methods.execute import check, execute, method_of
from mmdd_ray.methods.method import Method
from mmdd_ray.models import zoo
from mmdd_ray.models.published import build
from mmdd_ray.planning.costs import counted_bytes
from mmdd_ray.planning.preflight import check_values

STEPS = 2
SMALL_BATCH = 4  # without a GPU
SMALL_LAYERS = 2  # of a language model there, which has 32 alike
_PROBES = (  # tests beyond retrieval, which cost little
    "zero_shot", "zero_shot_split", "zero_shot_image_root", "zero_shot_names", "compositional",
    "compositional_image_root",
)  # fmt: skip
SCENES_HELD_OUT, LABELLED_HELD_OUT, LEAST_SCENES = 8, 48, 16


@dataclass(frozen=True)
class Limits:
    """How much a rehearsal does."""

    batch: int | None
    """Most samples of a batch; None: as many as the run has."""
    layers: int | None
    """Layers of a language model; None: all."""

    def of(self, batch: int) -> int:
        """A batch of the run, as far as it is allowed."""
        return batch if self.batch is None else min(batch, self.batch)


def rehearse(settings: RunSettings, preset: str) -> str:
    """Runs all stages; gives a table of what they took.

    Raises:
        UserError: A setting cannot be, the architecture of a model is not known, or a stage says what is wrong.
    """
    method = method_of(settings)
    check_values(settings)
    limits = limits_of(settings)
    with tempfile.TemporaryDirectory(prefix="mmdd-rehearsal-") as folder:
        print("models       are built with random weights", flush=True)
        short = rehearsed(settings, method, Path(folder), limits)
        check(short)
        with unset("RAY_ADDRESS"):  # of a cluster, whose other machines do not have these models
            stages = execute(short, preset).stages.values()
        table = _table(method, settings, short, stages, limits)
        ours, theirs = method.models(short), method.models(settings)
        for setting, name in theirs.items():
            table = table.replace(ours[setting], name)
        return table


def limits_of(settings: Any) -> Limits:
    import torch

    if torch.cuda.is_available():
        return Limits(settings.rehearse.batch, None)
    return Limits(settings.rehearse.batch or SMALL_BATCH, SMALL_LAYERS)


def rehearsed(settings: Any, method: Method[Any], folder: Path, limits: Limits) -> Any:
    """The settings of the rehearsal of a run.

    Args:
        folder: The folder for its run directory and the models that are built.
    """
    short = method.shortened(_each_section(settings, folder, limits), limits.of, folder)
    data, held_out = Data(uri=training_scenes(short, method.labelled)), SCENES_HELD_OUT
    if method.labelled:
        # a few scenes have a quarter of the classes, and those held out of the others are refused
        data, held_out = replace(data, max_reject_ratio=1.0), LABELLED_HELD_OUT
    changed: dict[str, Any] = {"plan": Plan(), "data": data}
    if hasattr(short, "evaluation"):
        val, test = (_scenes(held_out, seed, method.labelled) for seed in (2, 3))
        changed["evaluation"] = replace(short.evaluation, val=val, test=test)
    for setting, name in method.models(_of_its_own(settings)).items():
        section, _, part = setting.partition(".")
        built = build(zoo.ROLES[part], name, folder / "models", layers=limits.layers)
        changed[section] = replace(changed.get(section, getattr(short, section)), **{part: built})
    return replace(short, **changed)


def _of_its_own(settings: Any) -> Any:
    """The settings without further students."""
    if not hasattr(settings, "evaluation"):
        return settings
    return replace(settings, evaluation=replace(settings.evaluation, students=()))


def training_scenes(short: Any, labelled: bool) -> str:
    """URI of the scenes that stand for the data in a rehearsal.

    Args:
        short: The settings, with sections that are shortened already.
    """
    return _scenes(_rows(short), 1, labelled)


def _scenes(rows: int, seed: int, labelled: bool) -> str:
    return f"shapes:{rows}?seed={seed}&wrong=0&vague=0&captions=1{'&labelled=1' if labelled else ''}"


def _rows(short: Any) -> int:
    """Scenes for the largest batch, or as many as are drawn or chosen from them."""
    sections = [getattr(short, part.name) for part in fields(short)]
    counts = [
        getattr(section, name, 0)
        for section in sections
        for name in ("batch_pairs", "real_batch", "pairs", "batch_images")
    ]
    return max(LEAST_SCENES, getattr(short, "candidates", 0), *counts)


def _each_section(settings: Any, folder: Path, limits: Limits) -> Any:
    changed = {}
    for part in fields(settings):
        section = getattr(settings, part.name)
        if is_dataclass(section):
            changed[part.name] = _shortened(section, folder, limits)
    return replace(settings, **changed)


def _shortened(section: Any, folder: Path, limits: Limits) -> Any:
    """A section with one process, two steps, and batches as they are allowed."""
    changes: dict[str, Any] = {}
    if isinstance(section, Run):
        changes |= {"dir": str(folder / "run"), "ray_address": None, "max_cpus": None, "max_gpus": None}
        changes["track"] = None
    if isinstance(section, Pool):
        changes |= {"min_actors": 1, "max_actors": 1}
        changes |= {name: limits.of(getattr(section, name)) for name in _batches(section)}
    if isinstance(section, Features):
        changes["clip_score_fraction"] = 1.0
    if hasattr(section, "compile"):
        changes["compile"] = False  # would take longer than all else
    if hasattr(section, "protocol"):
        changes["protocol"] = "equal-budget"  # as the students below
    if isinstance(section, Synthesis) and limits.batch is not None:
        changes["inference_steps"] = STEPS
    if isinstance(section, Training):
        changes |= {"workers": 1, **_of_one_worker(section, limits)}
    if isinstance(section, Students | Classifiers):
        changes |= {"steps": STEPS, "learning_rates": section.learning_rates[:1], "looks": 0}
        changes |= {name: limits.of(getattr(section, name)) for name in _batches(section)}
    if isinstance(section, Classifiers):
        changes["teacher"] = None  # which the students below do not need
    if isinstance(section, Evaluation):
        changes |= {"val_split": None, "test_split": None, "val_image_root": None, "test_image_root": None}
        changes |= dict.fromkeys(_PROBES) | {"linear_probe": False}
        # other protocols are epochs by the thousand, and further students are models by name
        changes |= {"protocols": ("equal-budget",), "students": (), "curve_pairs": ()}
        changes |= {"baselines": ("random",), "seeds": 1, "draws": 1, "max_pairs": SCENES_HELD_OUT}
    return replace(section, **changes)


def _batches(section: Any) -> list[str]:
    return [part.name for part in fields(section) if part.name.startswith(("batch_", "chunk_"))]


def _of_one_worker(section: Training, limits: Limits) -> dict[str, Any]:
    """A worker's share of every batch, and two steps of it."""
    if isinstance(section, Finetune):
        changes = {"steps": min(section.steps, STEPS), "batch_pairs": limits.of(section.pairs_per_worker)}
        return changes | ({} if limits.batch is None else {"accumulate": 1})
    if isinstance(section, PairLearning):
        return {
            "iterations": min(section.iterations, STEPS),
            "real_batch": limits.of(section.real_pairs_per_worker),
            "synthetic_batch": limits.of(section.synthetic_batch),
            "micro_batch": limits.of(section.micro_batch),
        }
    other: Any = section
    return {"iterations": STEPS, "batch_pairs": limits.of(other.batch_pairs)}


def _table(method: Method[Any], settings: Any, short: Any, stages: Iterable[StageDir], limits: Limits) -> str:
    """Table of the stages: time and memory here, and memory of a GPU in the run."""
    source = method.look(short)
    costs = {cost.stage: cost for cost in method.costs(short, source)}
    whole = {cost.stage: cost for cost in method.costs(settings, source)}
    rows = [("stage", "time", "memory", "of a GPU, in the run", "with")]
    large = []
    for stage in stages:
        cost, peak = costs.get(stage.name), stage.manifest["peak_bytes"]
        counted = counted_bytes(whole[stage.name]) if stage.name in whole else None
        rows.append(
            (
                stage.name,
                duration(stage.manifest["seconds"]),
                _gib(peak),
                _gib(counted),
                "; ".join(filter(None, (cost.uses, cost.batches))) if cost else "",
            )
        )
        if counted and settings.plan.gpu_gib and counted > settings.plan.gpu_gib * 2**30:
            large.append(stage.name)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, (*widths, 0), strict=True)) for row in rows
    ]
    if large:
        lines.append(f"on a GPU of {settings.plan.gpu_gib:g} GiB will not fit: {', '.join(large)}")
    if limits.batch is not None:
        lines.append(
            f"batches had at most {limits.batch} samples here; the memory of a GPU is counted for those of the run"
        )
    if limits.layers is not None:
        lines.append(f"language models that write captions had {limits.layers} layers")
    return "\n".join(line.rstrip() for line in lines)


def _gib(count: int | None) -> str:
    return f"{count / 2**30:.1f} GiB" if count else ""
