"""The parameters of a U-Net that fine-tuning trains."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmdd_ray.models.generators.generator import Trained
from mmdd_ray.models.generators.stable_diffusion.pipeline import Pipeline, UNet

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention layers, as in the diffusers examples


class Scale(nn.Module):
    """γW with a learned γ that starts at 1: DiffFit's scale factor, for the last layer of a branch."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones((), device=weight.device, dtype=weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gamma * weight


def trainable_parameters(unet: UNet, kind: Trained, *, rank: int = 8) -> list[nn.Parameter]:
    """Prepares the U-Net for training, freezes the rest of it, and returns the parameters to train.

    - ``difffit`` (Xie et al., ICCV 2023, arXiv 2304.06648): all biases, all normalisation layers, and a new
      scale factor γ for the output of each attention, feed-forward and residual block.
    - ``lora``: new low-rank adapters of the attention layers; draws from torch's global generator.
    - ``full``: everything.

    ``merge_trained`` turns the result into a plain U-Net again.
    """
    unet.requires_grad_(kind == "full")
    if kind == "lora":
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))
    elif kind == "difffit":
        for module in unet.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.requires_grad_(True)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.requires_grad_(True)
        for layer in _branch_outputs(unet):
            # The bias is trained anyway, so that only the weight needs the factor.
            parametrize.register_parametrization(layer, "weight", Scale(layer.weight))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def merge_trained(unet: UNet) -> None:
    """Multiplies scale factors and adds adapters into the weights they belong to, and removes them."""
    if getattr(unet, "peft_config", None):
        unet.fuse_lora()
        unet.unload_lora()
    for module in list(unet.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _branch_outputs(unet: UNet) -> list[Any]:
    """The layer of each residual branch whose output is added to the trunk."""
    layers: list[Any] = []
    for module in unet.modules():
        if isinstance(module, Attention):
            layers.append(module.to_out[0])
        elif isinstance(module, FeedForward):
            layers.append([layer for layer in module.net if isinstance(layer, nn.Linear)][-1])
        elif isinstance(module, ResnetBlock2D):
            layers.append(module.conv2)
    return layers


def save_pipeline(pipeline: Pipeline, folder: Path) -> None:
    """Saves a plain StableDiffusionPipeline in safetensors; merges what was trained into the U-Net first."""
    merge_trained(pipeline.unet)
    pipeline.save_pretrained(folder, safe_serialization=True)
