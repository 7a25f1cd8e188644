"""Reads distilled pairs as the public code of LoRS and RepBlend saves them: one file of ``torch.save``.

The file is a dict with ``image``, normalised pixels (N, 3, H, W), and ``text``, sentence vectors (N, F); LoRS adds
``similarity_mat`` (N, N) and the learning rates ``syn_lr_img`` and ``syn_lr_txt``, scalars. Both normalise by CLIP's
statistics whatever the image encoder is, and a vector is BERT's last hidden state at the [CLS]
token, before any projection (LoRS, ICML 2024, arXiv 2406.01112). The file names neither the text encoder nor captions.
"""

# N pairs, F width of a sentence vector, HW image size

import io
from math import inf, nan
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth")
POOLING: Literal["cls"] = "cls"
MEAN = (255 * 0.48145466, 255 * 0.4578275, 255 * 0.40821073)
STD = (255 * 0.26862954, 255 * 0.26130258, 255 * 0.27577711)
"""CLIP's statistics, in levels of [0, 255]."""
IMAGE, TEXT, SIMILARITY = "image", "text", "similarity_mat"
RATES = ("syn_lr_img", "syn_lr_txt")
LAYOUT = (
    f'expected a dict of tensors as LoRS saves it: "{IMAGE}" (N, 3, H, H), normalised, and "{TEXT}" (N, F), '
    "sentence vectors"
)


def read_published(content: bytes) -> LearntPairs:
    """The pairs of such a file, float32, with vectors and without words; ``encoder`` is left open.

    Args:
        content: The file. No code in it is run.

    Raises:
        UserError: It is damaged or something else; the message continues the name of the file.
    """
    found = _loaded(content)
    pixels, vectors = (_floats(found, name) for name in (IMAGE, TEXT))
    similarity = _floats(found, SIMILARITY) if found.get(SIMILARITY) is not None else None
    _check_shapes(pixels, vectors, similarity)
    if pixels.min() >= 0:
        raise UserError(
            f'holds an "{IMAGE}" without a value below 0, so that it is not normalised by the statistics of CLIP; '
            f"{LAYOUT}"
        )
    n = len(pixels)
    pairs = LearntPairs(
        pixels=pixels,
        ids=np.zeros((n, 0), np.int64),
        mask=np.zeros((n, 0), np.int64),
        offsets=np.zeros((n, 0, 0), np.float32),
        mean=MEAN,
        std=STD,
        vocabulary="",
        captions=[[""]] * n,
        nearest=[""] * n,
        vectors=vectors,
        pooling=POOLING,
        similarity=similarity,
        rates=None if similarity is None else _rates(found),  # of use with similarities alone
    )
    in_range = pairs.share_in_range()
    if in_range < 0.5:
        raise UserError(
            f'holds an "{IMAGE}" of which {1 - in_range:.0%} of the values are no levels of an image once the '
            f"statistics of CLIP are undone, so that it is normalised otherwise; {LAYOUT}"
        )
    return pairs


def _loaded(content: bytes) -> dict[Any, Any]:
    import torch

    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        # A text is read as opcodes, and the reason is then the number of one; that of the unpickler is torch's advice
        # to run the code.
        why = "" if isinstance(error, LookupError | UnpicklingError) else f" ({first_line[:120]})"
        raise UserError(
            f"cannot be read as tensors alone{why}; it is of another kind, damaged or holds pickled code, which is "
            f"never run; {LAYOUT}"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"holds a {type(found).__name__}; {LAYOUT}")
    return found


def _floats(found: dict[Any, Any], name: str) -> np.ndarray:
    import torch

    if name not in found:
        keys = ", ".join(sorted(map(str, found))[:8]) or "nothing"
        raise UserError(f'has no "{name}" (it has {keys}); {LAYOUT}')
    value: Tensor = found[name]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        what = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f'holds a "{name}" of {what}, which is no tensor of floating-point numbers; {LAYOUT}')
    values = value.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise UserError(f'holds a "{name}" with {bad:,} values that are not finite; save the set again')
    return values


def _rates(found: dict[Any, Any]) -> tuple[float, float] | None:
    """The learnt rates of the image side and the text side; None where the file has none."""
    given = [found[name] for name in RATES if found.get(name) is not None]
    if not given:
        return None
    try:
        image, text = map(float, given)
    except (TypeError, ValueError, RuntimeError):
        image = text = nan
    if not (0 < image < inf and 0 < text < inf):
        raise UserError(
            f"holds {' and '.join(RATES)} that are not two positive numbers, with which students could be trained; "
            "save both as learnt, or neither to have them trained at the protocol's rate"
        )
    return image, text


def _check_shapes(pixels: np.ndarray, vectors: np.ndarray, similarity: np.ndarray | None) -> None:
    n = len(pixels) if pixels.ndim else 0
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape or pixels.shape[2] != pixels.shape[3]:
        raise UserError(f'holds an "{IMAGE}" of shape {pixels.shape}; {LAYOUT}')
    if vectors.ndim != 2 or len(vectors) != n or not vectors.shape[1]:
        raise UserError(f'holds {n} images, but a "{TEXT}" of shape {vectors.shape}; {LAYOUT}')
    if similarity is not None and similarity.shape != (n, n):
        raise UserError(
            f'holds {n} images, but a "{SIMILARITY}" of shape {similarity.shape}; it must be ({n}, {n})'
        )
