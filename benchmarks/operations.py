"""Where the floating-point operations of EDGE on CC3M go: counted on the published architectures, without weights.

    python benchmarks/operations.py

Models are built on torch's meta device, which computes shapes alone, and PyTorch's counter adds up the operations of
matrix products, convolutions and attention. How often each is done is what the preset `cc3m` says. A count is not a
time: a GPU reaches another share of its peak in every model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import timm
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from markdown_table import markdown_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from mmdd_ray.engine.draws import count_sets
from mmdd_ray.methods.edge.presets import cc3m
from mmdd_ray.models.generators.stable_diffusion.trainable import trainable_parameters
from mmdd_ray.models.published import SD_TEXT, SD_UNET, SD_VAE

CC3M_PAIRS = 2_905_954
CAPTION_TOKENS = 16  # with begin and end; of CLIP's tokenizer
LLAVA_WEIGHTS, LLAVA_TOKENS = 7.06e9, 576 + 60 + 60  # of the image, the instruction and the answer


@dataclass(frozen=True)
class Counted:
    """The operations of a stage."""

    stage: str
    what: str
    operations: float


def counted(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def trained(model: nn.Module, call: Callable[[], Tensor]) -> float:
    """Forward and backward, for the weights that ask for a gradient."""
    return counted(lambda: call().sum().backward())


def edge() -> list[Counted]:
    settings = cc3m()
    tuning, synthesis = settings.finetune, settings.synthesis
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_UNET)
        vae = AutoencoderKL(**SD_VAE).requires_grad_(False)
        text = CLIPTextModel(CLIPTextConfig(**SD_TEXT)).requires_grad_(False)
        clip = open_clip.create_model(settings.features.clip.partition("/")[0], device="meta")
        student = timm.create_model(settings.students.image_model, num_classes=0)

    def denoise(side: int) -> Tensor:
        return unet(
            meta(1, 4, side, side), meta(1, dtype=torch.int64), meta(1, 77, SD_TEXT["hidden_size"])
        ).sample

    drawn = counted(lambda: denoise(512 // 8))
    decoded = counted(lambda: vae.decode(meta(1, 4, 512 // 8, 512 // 8)))
    image = counted(lambda: clip.encode_image(meta(1, 3, 224, 224)))
    tokens = counted(lambda: clip.encode_text(meta(1, 77, dtype=torch.int64))) * CAPTION_TOKENS / 77

    trainable_parameters(unet, tuning.parameters)
    side = tuning.image_px // 8
    step = trained(unet, lambda: denoise(side)) + counted(
        lambda: denoise(side)
    )  # checkpointed: forward twice
    latent = meta(1, 4, side, side).requires_grad_()
    step += trained(vae, lambda: vae.decode(latent).sample) + counted(lambda: vae.decode(latent))
    encoded = counted(lambda: vae.encode(meta(1, 3, tuning.image_px, tuning.image_px)))
    encoded += counted(lambda: text(meta(1, 77, dtype=torch.int64)))
    pixels = meta(1, 3, 224, 224).requires_grad_()
    clip.requires_grad_(False)
    step += trained(clip, lambda: clip.encode_image(pixels)) + counted(
        lambda: clip.encode_text(meta(1, 77, dtype=torch.int64))
    )
    pairs = tuning.steps * tuning.batch_pairs

    images = synthesis.pairs // settings.captions.per_image
    passes = images * synthesis.candidates_per_image * synthesis.inference_steps * 2  # with guidance
    learned = trained(student, lambda: student(meta(1, 3, 224, 224)))
    evaluation, students = settings.evaluation, settings.students
    rates = len(students.learning_rates)
    count = count_sets(evaluation) * (evaluation.seeds + (rates if rates > 1 else 0))
    return [
        Counted("features", f"{CC3M_PAIRS:,} images and captions", CC3M_PAIRS * (image + tokens)),
        Counted("finetune", f"{pairs:,} pairs: U-Net, decoder and CLIP", pairs * step),
        Counted("finetune", f"{pairs:,} pairs: encoders that could be kept", pairs * encoded),
        Counted(
            "synthesize",
            f"{passes:,} passes of the U-Net",
            passes * drawn + images * synthesis.candidates_per_image * decoded,
        ),
        Counted("recaption", f"{images} images", images * 2 * LLAVA_WEIGHTS * LLAVA_TOKENS),
        Counted("evaluate", f"{count} students", count * students.steps * students.batch_pairs * learned),
    ]


def main() -> None:
    found = edge()
    total = sum(one.operations for one in found)
    rows = [
        [one.stage, one.what, f"{one.operations / 1e15:,.1f}", f"{100 * one.operations / total:.2f} %"]
        for one in found
    ]
    rows.append(["all", "", f"{total / 1e15:,.0f}", ""])
    print(markdown_table(["stage", "what", "10^15 operations", "share"], rows, words=2))


if __name__ == "__main__":
    main()
