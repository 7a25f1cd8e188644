"""Presets of features alone."""

from mmdd_ray.methods.precompute.settings import Precompute
from mmdd_ray.methods.preset_parts import AUTOSCALING, CC3M, SCENES, VIT_B32


def local() -> Precompute:
    """A laptop: the tiny CLIP on procedural scenes."""
    return Precompute(data=SCENES)


def cc3m() -> Precompute:
    """A GPU cluster: ViT-B/32 on CC3M."""
    return Precompute(run=AUTOSCALING, data=CC3M, features=VIT_B32)


PRESETS = {"local": local, "cc3m": cc3m}
