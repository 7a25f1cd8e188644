"""Presets of the evaluation of a set."""

from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    CC3M,
    CC3M_EVALUATION,
    NFNET_AND_BERT,
    SCENES,
    SCENES_EVALUATION,
    VIT_B32,
)


def local() -> Evaluate:
    """A laptop: tiny students on procedural scenes."""
    return Evaluate(set=("runs/edge_cc3m-local/distilled",), data=SCENES, evaluation=SCENES_EVALUATION)


def cc3m() -> Evaluate:
    """A GPU cluster: NFNet and BERT students on CC3M."""
    return Evaluate(
        run=AUTOSCALING,
        set=("s3://YOUR-BUCKET/runs/edge_cc3m/distilled",),
        data=CC3M,
        features=VIT_B32,
        students=NFNET_AND_BERT,
        evaluation=CC3M_EVALUATION,
    )


PRESETS = {"local": local, "cc3m": cc3m}
