"""The architectures of published models, with random weights: speed, memory and shapes do not depend on values.

Nothing is downloaded. Configs of generators, captioners and text encoders stand here; timm and open_clip have theirs.
Tokenizers are those of the zoo, whose vocabularies are smaller than the embeddings of the models.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo
from mmdd_ray.models.captioners.endpoint import PREFIX as ENDPOINT
from mmdd_ray.models.contents import Role

# where they differ from the defaults of diffusers and transformers
SD_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
SD_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
SD_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
LLAVA_TEXT: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
LLAVA_LAYERS = 32
LLAVA_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def build(role: Role, name: str, folder: Path, *, layers: int | None = None) -> str:
    """Writes a model of the architecture that a name stands for, with random weights; gives the name of what it wrote.

    Models of the zoo, folders, and models of a server are what they are, and nothing is written for them.

    Args:
        folder: Where models are written, each in a folder of its own; one that is there is not written again.
        layers: Layers of a language model that writes captions; default: all of them.

    Raises:
        UserError: The architecture of this name is not known here.
    """
    if name.startswith(ENDPOINT) or zoo.local_folder(name):
        return name
    own = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
    if role == "CLIP model":
        _write(own, lambda: _clip(name, own))
        return f"local-dir:{own}"
    if role == "image encoder":
        _write(own, lambda: _timm(name, own))
        return str(own)
    if name not in BUILDERS:
        raise UserError(
            f"the architecture of {name!r} does not come with mmdd-ray, which has {', '.join(BUILDERS)}; name one of "
            f"these or a folder for the {role}"
        )
    _write(own, lambda: BUILDERS[name](own) if layers is None or name != LLAVA else llava(own, layers))
    return str(own)


def _write(folder: Path, write: Callable[[], None]) -> None:
    """Writes a folder unless it is there, whole; without the libraries' own lines of progress."""
    from transformers.utils import logging as transformers_logging

    done = folder / "random_weights"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # open_clip warns that weights are random
    try:
        write()
    finally:
        logging.disable(logging.NOTSET)
        if had_bar:
            transformers_logging.enable_progress_bar()
    done.touch()


def _clip(name: str, folder: Path) -> None:
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    architecture = name.partition("/")[0]
    if architecture not in open_clip.list_models():
        raise UserError(f"features.clip={name}: {architecture} is no architecture that open_clip knows")
    config = open_clip.get_model_config(architecture)
    if {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
        raise UserError(
            f"features.clip={name} has a text encoder or a tokenizer of the hub, which does not come with mmdd-ray; "
            "name another, or a folder"
        )
    model = open_clip.create_model(architecture)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_config_for_hf(model, folder / "open_clip_config.json", config)


def _timm(name: str, folder: Path) -> None:
    import timm

    if not timm.is_model(architecture := name.rpartition("/")[2]):
        raise UserError(f"{name!r} is no architecture that timm knows")
    timm.models.save_for_hf(timm.create_model(architecture), folder, safe_serialization=True)


def bert_base(folder: Path) -> None:
    """BERT-base, 109.5M weights: the text encoder of CovMatch's and EDGE's students."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    AutoTokenizer.from_pretrained(zoo.FOLDER / "tiny-bert").save_pretrained(folder)
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)


def stable_diffusion(folder: Path, unet: dict[str, Any] | None = None) -> None:
    """Stable Diffusion 1.5: a U-Net of 859.5M weights, its VAE and its text encoder.

    Args:
        unet: Changes of the U-Net, for tests.
    """
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = zoo.FOLDER / "tiny-sd" / "tokenizer"
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(**SD_UNET | (unet or {})),
        vae=AutoencoderKL(**SD_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**SD_TEXT)),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer, model_max_length=77),
        scheduler=PNDMScheduler(**SD_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def blip_base(folder: Path) -> None:
    """BLIP base, 247.4M weights."""
    from transformers import (
        AutoTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(zoo.FOLDER / "tiny-captioner")
    BlipProcessor(BlipImageProcessor(size={"height": 384, "width": 384}), tokenizer).save_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "sep_token_id", "pad_token_id")}
    text = {**ids, "eos_token_id": tokenizer.sep_token_id, "encoder_hidden_size": 768}
    config = BlipConfig(text_config=text, vision_config={"image_size": 384})
    BlipForConditionalGeneration(config).save_pretrained(folder)


def llava(folder: Path, layers: int = LLAVA_LAYERS) -> None:
    """LLaVA-1.5 of 7.06B weights, in half precision as it is published; with fewer layers a smaller one."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(zoo.FOLDER / "tiny-captioner")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    px = LLAVA_VISION["image_size"]
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": px}, crop_size={"height": px, "width": px}),
        tokenizer,
        patch_size=LLAVA_VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(
        **LLAVA_TEXT,
        num_hidden_layers=layers,
        vocab_size=32_064,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**LLAVA_VISION),
        text_config=text,
        image_token_id=image,
        image_seq_length=(px // LLAVA_VISION["patch_size"]) ** 2,
    )
    LlavaForConditionalGeneration(config).to(torch.float16).save_pretrained(folder)


STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
LLAVA = "llava-hf/llava-1.5-7b-hf"
BERT = "google-bert/bert-base-uncased"
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
BUILDERS: dict[str, Callable[[Path], None]] = {
    STABLE_DIFFUSION: stable_diffusion,
    LLAVA: llava,
    "Salesforce/blip-image-captioning-base": blip_base,
    BERT: bert_base,
}
"""By the hub's name."""


def _bert_config() -> Any:
    from transformers import BertConfig

    return BertConfig()


TEXT_CONFIGS: dict[str, Callable[[], Any]] = {BERT: _bert_config}
"""Configs of text encoders, by the hub's name."""
