"""The files of a model folder or of a repository of the hub: their names and configs tell what a model is and what it
lacks, before any weights are read. Imports no torch.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from mmdd_ray.errors import UserError

Role = Literal["generator", "captioner", "CLIP model", "image encoder", "text encoder"]
Variant = Literal["fp16"] | None
"""Weights are in ``model.fp16.safetensors``, which a library only finds when it is told so."""

NEEDED: dict[Role, str] = {
    "generator": "a generator is a StableDiffusionPipeline or StableDiffusionXLPipeline of diffusers: "
    "model_index.json, with unet, vae, text_encoder, tokenizer and scheduler in folders of their own",
    "captioner": "a captioner is a model of transformers that sees images and writes, as BLIP or LLaVA, with its "
    "processor",
    "CLIP model": "a CLIP model is one of open_clip: open_clip_config.json and open_clip_model.safetensors",
    "image encoder": "an image encoder is a model of timm: config.json and model.safetensors",
    "text encoder": "a text encoder is a model of transformers that reads, as BERT, with its tokenizer",
}
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Parts of a pipeline that have weights, and the stem of their files."""
PIPELINES: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionPipeline": PARTS,
    "StableDiffusionXLPipeline": PARTS | {"text_encoder_2": "model"},
}
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
CLIP_WEIGHTS = ("open_clip_model", "open_clip_pytorch_model", "model")
_TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
)


class Contents(Protocol):
    """The files of a model."""

    @property
    def is_partial(self) -> bool:
        """Whether there may be others that cannot be seen from here."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """Paths of all files, relative to the model."""
        ...

    def read_json(self, name: str) -> dict[str, Any]:
        """A config; empty where there is none. Raises ``UserError`` where it is no JSON object."""
        ...


@dataclass(frozen=True)
class Folder:
    """The files of a folder, also of those that it links to."""

    path: Path
    is_partial = False

    @cached_property
    def names(self) -> frozenset[str]:
        files = (
            Path(folder, name).relative_to(self.path)
            for folder, _, names in os.walk(self.path, followlinks=True)
            for name in names
        )
        return frozenset(file.as_posix() for file in files)

    def read_json(self, name: str) -> dict[str, Any]:
        return _read_json(self.path / name) if name in self.names else {}


@dataclass(frozen=True)
class Repository:
    """The files of a repository of the hub, of which configs alone are downloaded."""

    name: str
    names: frozenset[str]
    is_partial: bool = False
    """Whether these are the files in the cache of this machine, of which there may be more on others."""

    def read_json(self, name: str) -> dict[str, Any]:
        if name not in self.names:
            return {}
        from huggingface_hub import hf_hub_download

        try:
            file = hf_hub_download(self.name, name)
        except OSError as error:  # as most of the hub's errors are
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"has a {name} that cannot be read ({first_line[:200]}); if the model is gated, accept its terms "
                "and set HF_TOKEN"
            ) from error
        return _read_json(Path(file))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"has a {file.name} that is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"has a {file.name} that is no JSON object")
    return found


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model that has what its role needs."""

    says: str
    """Its class or architecture, for people."""
    weights: tuple[str, ...]
    """The files that a library reads of it, and no other copy of the weights."""
    variant: Variant = None
    only_px: int | None = None
    """Side of the only images that an image encoder takes; None where it takes others, too, or does not say."""


@dataclass(frozen=True)
class _Layout:
    """How a library lays out a kind of model."""

    role: Role | None
    says: str
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name, files of which one has to be there."""
    weights: tuple[str, ...] = ("model",)
    """Files of weights, without their ending."""
    variants: tuple[Variant, ...] = (None, "fp16")
    only_px: int | None = None


def inspect_model(role: Role, contents: Contents) -> ModelFiles:
    """Finds the files that a role needs.

    Raises:
        UserError: The model is of another kind, or lacks some of them; the message continues the model's name.
    """
    layout = _layout(contents)
    if layout is None:
        raise UserError(f"{_unknown(contents)}; {NEEDED[role]}")
    if layout.role != role:
        raise UserError(f"is {layout.says}; {NEEDED[role]}")
    missing = [name for name, files in layout.needs.items() if contents.names.isdisjoint(files)]
    found = _weights(layout, contents)
    if found is None:
        missing += [f"{stem}.safetensors" for stem in layout.weights if not _copy(contents, stem, None)]
        if any(name.endswith(PICKLED) for name in contents.names):
            missing[-1] += " (pickled weights are not read; convert them)"
    if contents.is_partial:
        return ModelFiles(layout.says, *(found or ((), None)), layout.only_px)
    if missing or found is None:
        raise UserError(f"is {layout.says}, but has no {' and no '.join(missing)}")
    return ModelFiles(layout.says, *found, layout.only_px)


def weight_files(contents: Contents) -> tuple[str, ...] | None:
    """The files that a library reads of a model, whatever its role; None if they cannot be told."""
    layout = _layout(contents)
    found = layout and _weights(layout, contents)
    return found[0] if found else None


def _layout(contents: Contents) -> _Layout | None:
    """The layout that a model's configs name; None if they name none."""
    if "model_index.json" in contents.names:
        return _pipeline(contents)
    if "open_clip_config.json" in contents.names:
        return _clip(contents)
    config = contents.read_json("config.json")
    if "architecture" in config:
        card = config.get("pretrained_cfg") or {}
        only_px = card["input_size"][-1] if card.get("fixed_input_size") and "input_size" in card else None
        says = f"{config['architecture']} of timm"
        return _Layout("image encoder", says, variants=(None,), only_px=only_px)
    if "model_type" not in config:
        return None
    return _of_transformers(config, contents)


def _clip(contents: Contents) -> _Layout:
    config = contents.read_json("open_clip_config.json")
    stems = [stem for stem in CLIP_WEIGHTS if f"{stem}.safetensors" in contents.names]
    if not stems and isinstance(contents, Folder):  # from the hub, open_clip reads pickled tensors, too
        stems = [CLIP_WEIGHTS[0]]
    named = "hf_tokenizer_name" in config.get("model_cfg", {}).get("text_cfg", {})
    needs = {"tokenizer": _TOKENIZER} if named else {}  # others have the one that comes with open_clip
    return _Layout("CLIP model", "a CLIP model of open_clip", needs, tuple(stems[:1]), (None,))


def _of_transformers(config: Mapping[str, Any], contents: Contents) -> _Layout:
    kind = str((config.get("architectures") or [config["model_type"]])[0])
    says = f"{kind} of transformers"
    needs: dict[str, tuple[str, ...]] = {"tokenizer": _TOKENIZER}
    # transformers finds copies that the hub has converted, in a branch of their own
    converted = isinstance(contents, Repository) and any(name.endswith(PICKLED) for name in contents.names)
    weights = (
        () if converted and not any(name.endswith(".safetensors") for name in contents.names) else ("model",)
    )
    if "vision_config" in config or config["model_type"] in _SEEING:
        needs["processor"] = ("preprocessor_config.json", "processor_config.json")
        return _Layout("captioner" if kind.endswith(_WRITING) else None, says, needs, weights)
    reads = not config.get("is_encoder_decoder") and not kind.endswith(_NO_ENCODERS)
    return _Layout("text encoder" if reads else None, says, needs, weights)


_SEEING = ("vision-encoder-decoder", "fuyu", "chameleon", "emu3")
"""Types of transformers that see images without a config of their own for it."""
_WRITING = ("ForConditionalGeneration", "ForCausalLM", "VisionEncoderDecoderModel")
_NO_ENCODERS = ("ForCausalLM", "LMHeadModel", "CLIPTextModel", "WithProjection")


def _pipeline(contents: Contents) -> _Layout:
    kind = contents.read_json("model_index.json").get("_class_name")
    parts = PIPELINES.get(kind, {}) if isinstance(kind, str) else {}
    tokenizers = [
        part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")
    ]
    return _Layout(
        "generator" if parts else None,
        f"a {kind} of diffusers",
        {
            **{part: tuple(f"{part}/{name}" for name in _TOKENIZER) for part in tokenizers},
            "scheduler": ("scheduler/scheduler_config.json",),
            **{f"{part}/config.json": (f"{part}/config.json",) for part in parts},
        },
        tuple(f"{part}/{stem}" for part, stem in parts.items()),
    )


def _weights(layout: _Layout, contents: Contents) -> tuple[tuple[str, ...], Variant] | None:
    """The first complete copy of the weights."""
    for variant in layout.variants:
        copies = [_copy(contents, stem, variant) for stem in layout.weights]
        if all(copies):
            return tuple(file for copy in copies for file in copy), variant
    return None


def _copy(contents: Contents, stem: str, variant: Variant) -> tuple[str, ...]:
    """The files of a copy of the weights, in one or in several; none where one is missing."""
    suffix = f".{variant}" if variant else ""
    whole, index = f"{stem}{suffix}.safetensors", f"{stem}.safetensors.index{suffix}.json"
    if whole in contents.names:
        return (whole,)
    folder = stem.rpartition("/")[0]
    parts = sorted(set(contents.read_json(index).get("weight_map", {}).values()))
    files = tuple(f"{folder}/{part}" if folder else part for part in parts)
    return files if contents.names.issuperset(files) else ()


def _unknown(contents: Contents) -> str:
    """A description of a folder that no library has laid out."""
    if not contents.names:
        return "is empty"
    weights = sorted(name for name in contents.names if name.endswith((".safetensors", *PICKLED)))
    return f"has no config that tells what it is{f', only {weights[0]}' if weights else ''}"
