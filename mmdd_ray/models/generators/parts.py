"""Encoding and decoding images some at a time: a GPU is full with few of them, and its memory with a batch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIXELS_AT_ONCE = 16 * 256**2  # whose graph in the decoder takes 14 GB in bfloat16


def in_parts(look: Callable[[Tensor], Tensor], images: Tensor, image_px: int) -> Tensor:
    """``look`` of images, or of latents of images of that side, some at a time.

    Where there are several parts, each is looked at once more for its gradient.
    """
    parts = images.split(max(1, PIXELS_AT_ONCE // image_px**2))
    if len(parts) == 1:
        return look(images)
    return torch.cat([checkpoint(look, part, use_reentrant=False) for part in parts])
