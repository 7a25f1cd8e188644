"""Folders with the published architectures and random weights: speed and memory do not depend on values.

Nothing is downloaded. Tokenizers are those of the zoo, whose vocabularies are smaller than the models' embeddings.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mmdd_ray.models import zoo

# Stable Diffusion 1.5, where it differs from diffusers' and transformers' defaults
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


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mmdd-published-"))


def nfnet_l0() -> str:
    """NFNet-L0, 35.1M weights: the image encoder of CovMatch's and EDGE's students."""
    import timm

    folder = _folder() / "nfnet_l0"
    if not folder.exists():
        timm.models.save_for_hf(timm.create_model("nfnet_l0"), folder, safe_serialization=True)
    return str(folder)


def bert_base() -> str:
    """BERT-base, 109.5M weights: their text encoder."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = _folder() / "bert-base"
    if not folder.exists():
        AutoTokenizer.from_pretrained(zoo.FOLDER / "tiny-bert").save_pretrained(folder)
        BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def stable_diffusion() -> str:
    """Stable Diffusion 1.5: a U-Net of 859.5M weights, its VAE and its text encoder."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = _folder() / "stable-diffusion-1.5"
    if not folder.exists():
        StableDiffusionPipeline(
            unet=UNet2DConditionModel(**SD_UNET),
            vae=AutoencoderKL(**SD_VAE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**SD_TEXT)),
            tokenizer=CLIPTokenizer.from_pretrained(
                zoo.FOLDER / "tiny-sd" / "tokenizer", model_max_length=77
            ),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return str(folder)


def vit_b32() -> str:
    """CLIP ViT-B/32, 151.3M weights."""
    return _clip("ViT-B-32")


def vit_l14() -> str:
    """CLIP ViT-L/14, 427.6M weights."""
    return _clip("ViT-L-14")


def _clip(architecture: str) -> str:
    """A name for ``load_clip``."""
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf

    folder = _folder() / architecture
    if not folder.exists():
        model, _, _ = open_clip.create_model_and_transforms(architecture)
        save_for_hf(
            model,
            open_clip.get_tokenizer(architecture),
            open_clip.get_model_config(architecture),
            folder,
            safe_serialization=True,
        )
    return f"local-dir:{folder}"
