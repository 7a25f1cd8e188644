"""Names of the published models that speed is measured with, built with random weights in the folder of temporary
files, where the next benchmark finds them."""

import getpass
import tempfile
from pathlib import Path

from mmdd_ray import __version__
from mmdd_ray.models.published import BERT, STABLE_DIFFUSION, build

FOLDER = Path(tempfile.gettempdir(), f"mmdd-published-{__version__}-{getpass.getuser()}")


def nfnet_l0() -> str:
    """NFNet-L0, 35.1M weights: the image encoder of CovMatch's and EDGE's students."""
    return build("image encoder", "nfnet_l0", FOLDER)


def bert_base() -> str:
    """BERT-base, 109.5M weights: their text encoder."""
    return build("text encoder", BERT, FOLDER)


def stable_diffusion() -> str:
    """Stable Diffusion 1.5: a U-Net of 859.5M weights, its VAE and its text encoder."""
    return build("generator", STABLE_DIFFUSION, FOLDER)


def vit_b32() -> str:
    """CLIP ViT-B/32, 151.3M weights."""
    return build("CLIP model", "ViT-B-32", FOLDER)


def vit_l14() -> str:
    """CLIP ViT-L/14, 427.6M weights."""
    return build("CLIP model", "ViT-L-14", FOLDER)
