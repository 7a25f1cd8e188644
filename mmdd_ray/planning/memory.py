"""Memory that the process of a stage holds on a GPU, counted without one.

Models are built without weights and steps are taken on fake tensors, which have shapes and no values; what is alive is
added up as it comes and goes. The context of CUDA comes on top, and so do workspaces and fragments of the allocator. No
model is downloaded: what can be counted are folders, the zoo, architectures of timm and open_clip, and those of
``models/published.py``. Imports torch when it counts.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from mmdd_ray.config import Features, Finetune, PairLearning, Students, Synthesis
from mmdd_ray.config.job_settings import EncoderSettings
from mmdd_ray.models import zoo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

CONTEXT_BYTES = 2**29  # of CUDA in a process
FRAGMENTS = 1.05  # what an allocator holds over what is alive
HUB_TEXT = "hf_model_name"  # of CLIPs whose text encoder is on the hub
REPEATS = 2  # of a step: the states of an optimiser come with the first


@cache
def features_bytes(features: Features) -> int | None:
    """Bytes that encoding a chunk with CLIP takes; None if the model is not known."""
    import torch

    with _counting():
        clip = _clip(features.clip, torch.float16)
        if clip is None:
            return None
        side = _image_px(clip)
        pixels = torch.zeros(features.chunk_pairs, 3, side, side)

        @torch.no_grad()
        def encode() -> None:
            clip.encode_image(pixels.half())

        return _bytes_of([clip, pixels], encode)


@cache
def student_bytes(students: Students) -> int | None:
    """Bytes that training a student takes; None if a model is not known."""
    both = students.trained == "both-encoders"
    return _encoders_bytes(students, students.batch_pairs, trained=("image", "text") if both else ("image",))


@cache
def matching_bytes(matching: PairLearning, pairs: int) -> int | None:
    """Bytes that a worker takes to learn its share of the pairs; None if a model is not known."""
    trained: tuple[str, ...] = ("image", "text") if matching.encoder_updates else ()
    if matching.frozen_text:
        trained = trained[:1]
    return _encoders_bytes(
        matching,
        matching.micro_batch,
        trained=trained,
        adamw=matching.encoder_optimizer == "adamw",
        learnt_pairs=math.ceil(pairs / matching.workers),
        states=2 if matching.optimizer == "adam" else 1,
    )


def _encoders_bytes(
    encoders: EncoderSettings,
    batch: int,
    *,
    trained: tuple[str, ...],
    adamw: bool = False,
    learnt_pairs: int = 0,
    states: int = 0,
) -> int | None:
    """Bytes of a step of both encoders.

    Args:
        learnt_pairs: Pairs that are learnt, whose pixels and words then need a gradient.
        states: What their optimiser keeps of each value.
    """
    import torch
    from torch import nn

    with _counting():
        image, text = _timm(encoders.image_model), _text(encoders.text_model)
        if image is None or text is None:
            return None
        side, tokens = encoders.image_px, encoders.max_tokens
        heads = nn.ModuleList(
            nn.Linear(width, encoders.embed_dim, bias=False)
            for width in (image.num_features, text.config.hidden_size)
        )
        image.requires_grad_("image" in trained)
        text.requires_grad_("text" in trained)
        learnt = [p for part in (image, text, heads) for p in part.parameters() if p.requires_grad]
        optimizer: Optimizer = (
            torch.optim.AdamW(learnt) if adamw else torch.optim.SGD(learnt, 0.1, momentum=0.9)
        )
        # pairs that are learnt need the gradient of their pixels and words, students that of the encoders alone
        pixels = torch.zeros(batch, 3, side, side, requires_grad=learnt_pairs > 0)
        words = torch.zeros(batch, tokens, text.config.hidden_size, requires_grad=learnt_pairs > 0)
        reads_texts = "text" in trained or learnt_pairs > 0
        # values, gradients, and states of an optimiser
        held = [
            torch.zeros(learnt_pairs, *one.shape[1:]) for one in (pixels, words) for _ in range(2 + states)
        ]

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = heads[0](image(pixels)).float().sum()
                if reads_texts:
                    hidden = text(
                        inputs_embeds=words, attention_mask=torch.ones(batch, tokens)
                    ).last_hidden_state
                    loss = loss + heads[1](hidden.float().mean(dim=1)).float().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pixels.grad = words.grad = None

        return _bytes_of([image, text, heads, pixels, words, *held], step)


@cache
def drawing_bytes(synthesis: Synthesis, generator: str, image_px: int, clip: str | None) -> int | None:
    """Bytes that drawing a batch in half precision takes; None if a model is not known."""
    import torch

    with _counting():
        builds, look = _pipeline(generator), _clip(clip, torch.float16) if clip else None
        if builds is None or (clip and look is None):
            return None
        unet, vae, text = (_module(build, torch.float16) for build in builds)
        side = image_px // 2 ** (len(vae.config.block_out_channels) - 1)
        passes = synthesis.batch_images * (2 if synthesis.guidance > 1 else 1)
        latent = torch.zeros(passes, vae.config.latent_channels, side, side, dtype=torch.float16)
        states = torch.zeros(passes, 77, unet.config.cross_attention_dim, dtype=torch.float16)
        level = torch.zeros(passes, dtype=torch.int64)

        @torch.no_grad()
        def draw() -> None:
            unet(latent, level, states)
            vae.decode(latent[: synthesis.batch_images])

        return _bytes_of([unet, vae, text, *([look] if look else []), latent, states], draw)


@cache
def finetune_bytes(tuning: Finetune, clip: str | None) -> int | None:
    """Bytes that fine-tuning on a worker's share of a batch takes; None if a model is not known.

    Args:
        clip: The model that the loss looks at decoded images through, if it does.
    """
    import torch

    from mmdd_ray.models.generators.parts import in_parts
    from mmdd_ray.models.generators.stable_diffusion.trainable import trainable_parameters

    with _counting():
        # in float32 for images, with their gradient, and in float16 for captions
        looks = [_clip(clip, dtype) for dtype in (torch.float32, torch.float16)] if clip else []
        builds = _pipeline(tuning.generator)
        if builds is None or None in looks:
            return None
        unet, vae, text = map(_module, builds)
        half_vae = _module(builds[1], torch.bfloat16)
        for frozen in (vae, half_vae, text, *looks):
            frozen.requires_grad_(False)
        _norms_in_float32(unet, *looks[:1])
        trainable_parameters(unet, tuning.parameters, rank=tuning.lora_rank)
        unet.enable_gradient_checkpointing()
        learnt = [p for p in unet.parameters() if p.requires_grad]
        # averaged weights, and what data-parallel workers exchange
        copies = (tuning.ema_decay > 0) + (tuning.workers > 1)
        beside = [torch.zeros_like(p) for p in learnt for _ in range(copies)]
        optimizer: Optimizer = (
            torch.optim.AdamW(learnt)
            if tuning.optimizer == "adamw"
            else torch.optim.SGD(learnt, 0.1, momentum=tuning.momentum)
        )
        side = tuning.image_px // 2 ** (len(vae.config.block_out_channels) - 1)
        latent = torch.zeros(tuning.pairs_per_worker, vae.config.latent_channels, side, side)
        states = torch.zeros(tuning.pairs_per_worker, 77, unet.config.cross_attention_dim)
        level = torch.zeros(tuning.pairs_per_worker, dtype=torch.int64)

        def embed(part: "Tensor") -> "Tensor":
            px = _image_px(looks[0])
            with torch.autocast("cpu", enabled=False):
                drawn = half_vae.decode(part.bfloat16()).sample
            return looks[0].encode_image(torch.nn.functional.interpolate(drawn.float(), (px, px)))

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                implied = latent - unet(latent, level, states).sample
                found = in_parts(embed, implied, tuning.image_px) if looks else implied
            found.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return _bytes_of([unet, vae, half_vae, text, *looks, latent, states, *beside], step)


def _norms_in_float32(*models: Any) -> None:
    """As autocast computes them on a GPU, and not on the CPU, whose autocast stands for it here."""
    from torch import nn

    for model in models:
        for part in model.modules():
            if isinstance(part, nn.GroupNorm | nn.LayerNorm):
                part.register_forward_pre_hook(lambda norm, inputs: (inputs[0].float(), *inputs[1:]))


def _clip(name: str, dtype: "torch.dtype") -> Any:
    """The CLIP model of a name; None where its architecture is not known."""
    import json

    import open_clip

    if folder := zoo.local_folder(name):
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        if HUB_TEXT in config["text_cfg"]:
            return None
        kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        return _module(lambda: kind(**config), dtype)
    architecture = name.partition("/")[0]
    if architecture not in open_clip.list_models():
        return None
    if HUB_TEXT in open_clip.get_model_config(architecture)["text_cfg"]:
        return None
    return _module(lambda: open_clip.create_model(architecture, device="meta"), dtype)


def _image_px(clip: Any) -> int:
    size = clip.visual.image_size
    return int(size[0] if isinstance(size, tuple | list) else size)


def _timm(name: str) -> Any:
    import json

    import timm

    architecture, options = name.rpartition("/")[2], {}
    if folder := zoo.local_folder(name):
        config = json.loads((folder / "config.json").read_text())
        architecture, options = config["architecture"], config.get("model_args", {})
    if not timm.is_model(architecture):
        return None
    return _module(lambda: timm.create_model(architecture, num_classes=0, **options))


def _text(name: str) -> Any:
    from transformers import AutoConfig, AutoModel

    from mmdd_ray.models.published import TEXT_CONFIGS

    if folder := zoo.local_folder(name):
        config = AutoConfig.from_pretrained(folder)
    elif name in TEXT_CONFIGS:
        config = TEXT_CONFIGS[name]()
    else:
        return None
    return _module(lambda: AutoModel.from_config(config))


def _pipeline(name: str) -> "tuple[Callable[[], nn.Module], ...] | None":
    """What builds U-Net, VAE and text encoder of a generator; None of what is not counted."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from mmdd_ray.models.published import SD_TEXT, SD_UNET, SD_VAE, STABLE_DIFFUSION

    if folder := zoo.local_folder(name):
        if (folder / "text_encoder_2").exists():  # Stable Diffusion XL
            return None
        unet = UNet2DConditionModel.load_config(folder, subfolder="unet")
        vae = AutoencoderKL.load_config(folder, subfolder="vae")
        text = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    elif name == STABLE_DIFFUSION:
        unet, vae, text = SD_UNET, SD_VAE, CLIPTextConfig(**SD_TEXT)
    else:
        return None
    return (
        lambda: UNet2DConditionModel.from_config(unet),
        lambda: AutoencoderKL.from_config(vae),
        lambda: CLIPTextModel(text),
    )


def _module(build: "Callable[[], nn.Module]", dtype: "torch.dtype | None" = None) -> Any:
    """A module whose weights are fake, in training mode; float32 unless another dtype is asked for."""
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with (
        unset_fake_temporarily(),
        torch.device("meta"),
    ):  # some architectures compute with values while they are built
        module = build()
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=dtype or torch.float32, device="cpu")
                part._parameters[name] = nn.Parameter(fake, weight.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                kind = dtype if dtype and value.is_floating_point() else value.dtype
                part._buffers[name] = torch.empty(value.shape, dtype=kind, device="cpu")
    return module.train()


def _counting() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def _bytes_of(parts: "list[nn.Module | Tensor]", step: Callable[[], None]) -> int:
    """The most that is alive in some steps, with the weights and inputs that are there all along."""
    held = _alive()
    for part in parts:
        for value in part.state_dict().values() if hasattr(part, "state_dict") else [part]:
            held.see(value)
    with held:
        for _ in range(REPEATS):
            step()
    return int(held.most * FRAGMENTS) + CONTEXT_BYTES


@cache
def _alive_class() -> Any:
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Alive(TorchDispatchMode):
        """Adds up the storages of tensors from their first operation to their end."""

        def __init__(self) -> None:
            super().__init__()
            self.now = self.most = 0
            self._bytes: dict[int, int] = {}

        def see(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._bytes:
                return
            self._bytes[key] = storage.nbytes()
            self.now += self._bytes[key]
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._end, key)

        def _end(self, key: int) -> None:
            self.now -= self._bytes.pop(key, 0)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            for one in tree_leaves(found):
                if isinstance(one, torch.Tensor):
                    self.see(one)
            return found

    return Alive


def _alive() -> Any:
    return _alive_class()()
