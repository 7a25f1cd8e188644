"""Any transformers model that describes an image, with or without a chat template."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdd_ray.models.zoo import loading, resolve, variant_of


class TransformersCaptioner:
    """A ``Captioner``.

    A processor with a chat template (LLaVA, Qwen-VL) is asked an instruction in its own format. Others (BLIP,
    GIT) simply continue from the image.

    Raises:
        ValueError: The model cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device, setting: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with loading("captioner", name, setting):
            folder = resolve(name)
            self.processor = AutoProcessor.from_pretrained(folder)
            variant = variant_of("captioner", name, setting)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, variant=variant
            )
        self.model.to(device).eval()
        self.device, self.dtype = device, dtype
        self.tokens = 0, 0  # which nobody pays for
        self.chats = getattr(self.processor, "chat_template", None) is not None

    def write(
        self,
        images: Sequence[Image.Image],
        captions: int,
        *,
        instructions: Sequence[str],
        max_new_tokens: int,
        seed: int | tuple[int, ...],
    ) -> list[list[str]]:
        """See ``Captioner``."""
        written: list[list[str]] = [[] for _ in images]
        asked = itertools.cycle(instructions if self.chats else ("",))
        for number in range(captions):
            first_of_its_kind = number < (len(instructions) if self.chats else 1)
            stream = np.random.SeedSequence(seed, spawn_key=(number,))
            torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))
            asked_now = [next(asked)] * len(images)
            texts = self._answers(images, asked_now, max_new_tokens, do_sample=not first_of_its_kind)
            for own, text in zip(written, texts, strict=True):
                own.append(text)
        return written

    def describe(
        self, images: Sequence[Image.Image], instructions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """The likeliest answer to each image and its own instruction."""
        return self._answers(images, instructions, max_new_tokens, do_sample=False)

    @torch.inference_mode()
    def _answers(
        self,
        images: Sequence[Image.Image],
        instructions: Sequence[str],
        max_new_tokens: int,
        *,
        do_sample: bool,
    ) -> list[str]:
        inputs = self._inputs(images, instructions)
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=do_sample)
        if self.chats:  # the answer follows the question
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return [
            " ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)
        ]

    def _inputs(self, images: Sequence[Image.Image], instructions: Sequence[str]) -> dict[str, Any]:
        if not self.chats:
            inputs = self.processor(images=list(images), return_tensors="pt")
        else:
            chats = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": i}, {"type": "text", "text": instruction}],
                    }
                ]
                for i, instruction in zip(images, instructions, strict=True)
            ]
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                # left, so that every question ends where its answer begins
                processor_kwargs={"padding": True, "padding_side": "left"},
            )
        return dict(inputs.to(self.device, dtype=self.dtype))
