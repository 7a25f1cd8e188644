"""The protocol of captioners, and loading one."""

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image


class Captioner(Protocol):
    """Writes captions for images."""

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens read and written so far, as far as the captioner counts them."""
        ...

    def write(
        self,
        images: Sequence[Image.Image],
        captions: int,
        *,
        instructions: Sequence[str],
        max_new_tokens: int,
        seed: int | tuple[int, ...],
    ) -> list[list[str]]:
        """`captions` texts for each of `images`.

        The first one of each instruction is the likeliest (greedy), later ones are drawn at random. Each of them
        has a stream of its own, from `seed` (the numbers of a tuple together, e.g. of the run and the batch) and
        its number.
        """
        ...

    def describe(
        self, images: Sequence[Image.Image], instructions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """The likeliest answer to each image and its own instruction."""
        ...


def load_captioner(name: str, device: torch.device, setting: str = "captions.model") -> Captioner:
    """The captioner of a zoo name, a hub name, a folder, or ``openai:MODEL@URL``.

    Raises:
        ValueError: The model cannot be loaded; names `setting`.
    """
    from mmdd_ray.models.captioners.endpoint import PREFIX, EndpointCaptioner

    if name.startswith(PREFIX):
        return EndpointCaptioner(name, setting)
    from mmdd_ray.models.captioners.transformers_model import TransformersCaptioner

    return TransformersCaptioner(name, device, setting)
