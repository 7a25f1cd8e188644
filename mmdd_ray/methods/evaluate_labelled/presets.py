"""Presets of the evaluation of labelled sets."""

from dataclasses import replace

from mmdd_ray.config import Data, LabelledEvaluation
from mmdd_ray.config.evaluation import LabelledBaseline
from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    IMAGENETTE,
    IMAGENETTE_EVALUATION,
    IMAGENETTE_NAMES,
    LABELLED_SCENES,
    LABELLED_TEST_SCENES,
    RESNET_AP_10,
    SMALL_CLASSIFIERS,
    VIT_B32,
)

REAL: tuple[LabelledBaseline, ...] = ("random", "herding", "k-center", "clip-score", "full")


def local() -> EvaluateLabelled:
    """A laptop: small classifiers on labelled procedural scenes."""
    return EvaluateLabelled(
        set=("runs/vlcp_imagenette-local/distilled",),
        data=Data(uri=LABELLED_SCENES),
        classifiers=SMALL_CLASSIFIERS,
        evaluation=LabelledEvaluation(test=LABELLED_TEST_SCENES, baselines=REAL),
    )


def imagenette() -> EvaluateLabelled:
    """A GPU cluster: ResNet-AP-10 on ImageNette as an image folder."""
    return EvaluateLabelled(
        run=AUTOSCALING,
        set=("s3://YOUR-BUCKET/runs/vlcp-10/distilled",),
        class_names=IMAGENETTE_NAMES,
        data=IMAGENETTE,
        features=VIT_B32,
        classifiers=RESNET_AP_10,
        evaluation=replace(IMAGENETTE_EVALUATION, baselines=REAL),
    )


PRESETS = {"local": local, "imagenette": imagenette}
