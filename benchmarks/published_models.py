"""Names of the published models that speed is measured with, built with random weights in a temporary folder."""

import tempfile
from functools import cache
from pathlib import Path

from mmdd_ray.models.published import BERT, STABLE_DIFFUSION, build


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mmdd-published-"))


def nfnet_l0() -> str:
    """NFNet-L0, 35.1M weights: the image encoder of CovMatch's and EDGE's students."""
    return build("image encoder", "nfnet_l0", _folder())


def bert_base() -> str:
    """BERT-base, 109.5M weights: their text encoder."""
    return build("text encoder", BERT, _folder())


def stable_diffusion() -> str:
    """Stable Diffusion 1.5: a U-Net of 859.5M weights, its VAE and its text encoder."""
    return build("generator", STABLE_DIFFUSION, _folder())


def vit_b32() -> str:
    """CLIP ViT-B/32, 151.3M weights."""
    return build("CLIP model", "ViT-B-32", _folder())


def vit_l14() -> str:
    """CLIP ViT-L/14, 427.6M weights."""
    return build("CLIP model", "ViT-L-14", _folder())
