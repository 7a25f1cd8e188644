"""A frozen CLIP of open_clip: unit-norm features of images and captions."""

# B rows, D width of CLIP's joint space, HW image size

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo

SCHEMAS = ("hf-hub:", "local-dir:")
TEXT_ROWS = 256  # captions of about one length that are encoded at once


class Clip:
    """Both towers of one model, in eval mode and without gradients of their own; made by ``load_clip``.

    On a GPU ``encode_images`` and ``encode_texts`` run a copy in float16, whatever the autocast of their caller: its
    features differ from float32's by about 1e-3, bfloat16's by 1e-2. Where one is not finite, they run in float32.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.name = name
        self.device = device
        self._model = model.eval().requires_grad_(False)  # comes to a GPU when it is first needed there
        in_half = device.type == "cuda"
        self._encoder = deepcopy(self._model).half().to(device) if in_half else self._whole()
        self._tokenizer = tokenizer
        preprocessing = model.visual.preprocess_cfg
        self._mean, self._std = (
            torch.tensor(preprocessing[field], device=device).view(1, 3, 1, 1) for field in ("mean", "std")
        )
        image_size = model.visual.image_size
        self.image_px: int = image_size[0] if isinstance(image_size, tuple | list) else image_size
        """Side of the square images that the image tower sees."""
        self.dim: int = self.encode_texts([""]).shape[1]
        """D, the width of the features."""

    @torch.no_grad()
    def encode_images(self, images_BHW3: NDArray[np.uint8] | Tensor) -> Tensor:
        """Unit-norm features, (B, D) float32 on the model's device, of square uint8 RGB images."""
        pixels_B3HW = torch.as_tensor(images_BHW3).to(self.device).permute(0, 3, 1, 2).float() / 255
        seen_B3HW = self._seen(pixels_B3HW)
        return self._encode(lambda model: model.encode_image(seen_B3HW.to(next(model.parameters()).dtype)))

    def embed_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """Unit-norm features, (B, D) float32, of square images in [0, 1], with the gradient to the pixels.

        Runs in the precision of the caller's autocast.
        """
        return _unit(self._whole().encode_image(self._seen(pixels_B3HW)))

    def _seen(self, pixels_B3HW: Tensor) -> Tensor:
        """Images as the tower takes them, preprocessed as CLIP does itself.

        Resized, bicubic with antialiasing and clipped to [0, 1], then shifted and scaled by the model's own mean and
        standard deviation.
        """
        assert pixels_B3HW.shape[2] == pixels_B3HW.shape[3], "square images, as decode_image makes them"
        if pixels_B3HW.shape[2] != self.image_px:
            size = (self.image_px, self.image_px)
            pixels_B3HW = F.interpolate(pixels_B3HW, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels_B3HW - self._mean) / self._std

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str], *, whole: bool = False) -> Tensor:
        """Unit-norm features, (B, D) float32 on the model's device; captions beyond the context are cut.

        Padding takes most of the context, and no part in the features of a causal text tower. So captions are encoded
        in the order of their lengths, as many tokens at a time as the longest of them has.

        Args:
            whole: encodes padding, too. The features of a caption are then the same to the last digit whatever the
                lengths of the captions beside it.
        """
        tokens_BS = self._tokenizer(list(captions))
        if whole or not _is_causal(self._model):
            return self._encode(lambda model: model.encode_text(tokens_BS.to(self.device)))
        return self._encode(lambda model: self._encode_by_length(model, tokens_BS))

    def _whole(self) -> Any:
        """The model in float32, on its device."""
        return self._model.to(self.device)

    def _encode(self, encode: Callable[[Any], Tensor]) -> Tensor:
        """Unit-norm features in the precision of the copy, or in float32 where one of them is not finite."""
        with torch.autocast(self.device.type, enabled=False):
            found_BD = encode(self._encoder)
            if self._encoder is not self._model and not found_BD.isfinite().all():
                found_BD = encode(self._whole())
        return _unit(found_BD)

    def _encode_by_length(self, model: Any, tokens_BS: Tensor) -> Tensor:
        length_B = tokens_BS.argmax(dim=1) + 1  # the end of a text has the highest of all token ids
        order = length_B.argsort(stable=True)
        parts = [
            _encode_short(model, tokens_BS[rows, : int(length_B[rows[-1]])].to(self.device))
            for rows in order.split(TEXT_ROWS)
        ]
        return torch.cat(parts)[order.argsort().to(self.device)]


def load_clip(name: str, device: torch.device | str = "cpu", *, setting: str = "features.clip") -> Clip:
    """The CLIP model of a zoo name, "MODEL/PRETRAINED", "hf-hub:ORG/REPO" or "local-dir:/FOLDER".

    Weights are read without unpickling code (safetensors, or ``weights_only``).

    Raises:
        ValueError: the name is none of these, or the model cannot be loaded; names ``setting``.
    """
    model_name, pretrained = _source(name, setting)
    import open_clip  # 7 to 12 s, which importers of this module that load no CLIP need not pay

    with zoo.loading("CLIP model", name, setting):
        model, _, _ = open_clip.create_model_and_transforms(model_name, pretrained, weights_only=True)
        tokenizer = open_clip.get_tokenizer(model_name)
    return Clip(name, model, tokenizer, torch.device(device))


def _unit(features_BD: Tensor) -> Tensor:
    """Unit norm, float32."""
    return F.normalize(features_BD.float(), dim=1)


def _is_causal(model: Any) -> bool:
    """Whether no token sees what follows it, and the features are those of the last one, at the end of the text."""
    import open_clip
    from open_clip.transformer import TextTransformer

    if isinstance(model, open_clip.CLIP):
        return model.attn_mask is not None and model.text_pool_type == "argmax"
    text = getattr(model, "text", None)
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.pool_type == "argmax"
        and text.cls_emb is None
        and not text.use_pad_mask
    )


def _encode_short(model: Any, tokens_BS: Tensor) -> Tensor:
    """Features of token ids that are shorter than the context, by a causal text tower of open_clip."""
    tower = getattr(model, "text", model)
    size = tokens_BS.shape[1]
    # open_clip adds all of the positions and masks all of the context, and has no option to do less
    short = {"attn_mask": tower.attn_mask[:size, :size]}
    if tower is model:
        short["positional_embedding"] = model.positional_embedding[:size]
        return functional_call(model, short, (), {"text": tokens_BS})[1]
    return functional_call(tower, short, (tokens_BS,))


def _source(name: str, setting: str) -> tuple[str, str | None]:
    """open_clip's model name and pretrained tag."""
    if name.startswith(SCHEMAS):
        return name, None
    if "/" not in name.strip("/") and not name.startswith("tiny-"):
        # open_clip would give this architecture random weights
        raise UserError(
            f"{setting}={name} names no weights; write MODEL/PRETRAINED as in ViT-B-32/laion2b_s34b_b79k, "
            "hf-hub:ORG/REPO, or local-dir:/FOLDER"
        )
    resolved = zoo.resolve(name)
    if resolved != name or resolved.startswith("/"):
        return f"local-dir:{resolved}", None
    model_name, _, pretrained = name.partition("/")
    return model_name, pretrained
