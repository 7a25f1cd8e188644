"""A tiny Stable Diffusion XL of random weights, for tests: two text encoders, 16 x 16 latents of 32 x 32 pixels."""

from pathlib import Path

import torch

from mmdd_ray.models import zoo


def write_sdxl(folder: Path) -> None:
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    first, second = (CLIPTokenizer.from_pretrained(zoo.FOLDER / "tiny-sd" / "tokenizer") for _ in range(2))
    second.pad_token = second.convert_ids_to_tokens(5)  # the published ones pad differently, too

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(first),
            bos_token_id=first.bos_token_id,
            eos_token_id=first.eos_token_id,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=first.model_max_length,
            projection_dim=48,
        )

    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=32 + 64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 48,
        ),
        vae=AutoencoderKL(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=32,
            scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(text(32)),
        text_encoder_2=CLIPTextModelWithProjection(text(64)),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)
