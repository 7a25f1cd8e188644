"""In which precision products run."""

import torch

from mmdd_ray.config import Precision


def autocast(device: torch.device | str, precision: Precision = "auto") -> torch.autocast:
    """Autocast to bfloat16, or none.

    "auto" is bfloat16 on GPUs and float32 on CPUs: there it pays in large matrix products only, and only where the CPU
    has units for it (``bfloat16_is_fast``).
    """
    kind = torch.device(device).type
    half = kind != "cpu" if precision == "auto" else precision == "bfloat16"
    return torch.autocast(kind, torch.bfloat16, enabled=half)


def fastest(precision: Precision) -> Precision:
    """The precision with "auto" as bfloat16 on CPUs that have units for it, as on GPUs.

    For students, classifiers and the pretraining of models, which need not be the same to the last digit on every
    machine: a step of tiny-nf takes 40 ms in place of 70 on one core with matrix units for it, 49 in place of 76 with
    AVX-512's products alone. All that makes a set stays in float32 on CPUs.
    """
    return "bfloat16" if precision == "auto" and bfloat16_is_fast() else precision


def bfloat16_is_fast() -> bool:
    """Whether the CPU has units for bfloat16.

    Without them it is emulated: an AVX2 core ran a step of a small ResNet 12 times, one of MiniLM 18 times slower than
    in float32.
    """
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
