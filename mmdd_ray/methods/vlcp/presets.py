"""VLCP's presets."""

from dataclasses import replace

from mmdd_ray.config import Data, Finetune, LabelledEvaluation
from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    IMAGENETTE,
    IMAGENETTE_EVALUATION,
    IMAGENETTE_NAMES,
    LABELLED_SCENES,
    LABELLED_TEST_SCENES,
    LLAVA,
    RESNET_AP_10,
    SMALL_CLASSIFIERS,
    SPOT_FAILURES,
    STABLE_DIFFUSION,
    VIT_B32,
)
from mmdd_ray.methods.vlcp.settings import Describe, Prototypes, Vlcp, VlcpSynthesis
from mmdd_ray.protocols.soft_label import IMAGENET_TEACHER

NAMED = "a picture of a {class_name}"


def local() -> Vlcp:
    """A laptop: labelled procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Vlcp(
        data=Data(uri=LABELLED_SCENES),
        # tiny-sd has read captions that begin so; the scenes' own call a circle a disc, and tell more of its place
        describe=Describe(template=NAMED, prefix=f"{NAMED}, "),
        finetune=Finetune(
            steps=240, parameters="full", optimizer="adamw", learning_rate=2e-4, ema_decay=0.95
        ),
        prototypes=Prototypes(images_per_class=2),
        synthesis=VlcpSynthesis(negative_prompt=""),
        classifiers=SMALL_CLASSIFIERS,
        evaluation=LabelledEvaluation(test=LABELLED_TEST_SCENES),
    )


def imagenette() -> Vlcp:
    """A GPU cluster: ImageNette as an image folder, Stable Diffusion 1.5, LLaVA's descriptions, 10 images a class."""
    return Vlcp(
        run=AUTOSCALING,
        data=IMAGENETTE,
        features=VIT_B32,
        describe=Describe(
            source="vlm",
            class_names=IMAGENETTE_NAMES,
            model=LLAVA,
            image_px=336,
            chunk_images=32,
            max_actors=16,
        ),
        finetune=Finetune(
            generator=STABLE_DIFFUSION,
            image_px=512,
            steps=592,  # 8 epochs of 9,469 images in batches of 128
            batch_pairs=32,
            accumulate=4,
            parameters="full",
            optimizer="adamw",
            learning_rate=1e-5,
            ema_decay=0.9999,
            checkpoint_steps=100,
            workers=4,
            max_failures=SPOT_FAILURES,
        ),
        prototypes=Prototypes(chunk_images=64, max_actors=16),
        synthesis=VlcpSynthesis(inference_steps=50, guidance=8.0, batch_images=16, max_actors=16),
        classifiers=RESNET_AP_10,
        evaluation=IMAGENETTE_EVALUATION,
    )


def imagenet1k() -> Vlcp:
    """A GPU cluster: ImageNet-1K as an image folder, otherwise as ImageNette."""
    small = imagenette()
    return replace(
        small,
        data=replace(small.data, uri="s3://YOUR-BUCKET/imagenet/train/"),
        describe=replace(small.describe, class_names="s3://YOUR-BUCKET/imagenet/classes.txt", max_actors=64),
        finetune=replace(small.finetune, steps=80_000, workers=8, accumulate=2, batch_pairs=64),
        prototypes=replace(small.prototypes, max_actors=64),
        synthesis=replace(small.synthesis, max_actors=64),
        # VLCP's figures of these classes are of soft labels
        classifiers=replace(small.classifiers, model="resnet-18", steps=300_000, teacher=IMAGENET_TEACHER),
        evaluation=replace(
            small.evaluation,
            protocols=("equal-budget", "soft-label"),
            test="s3://YOUR-BUCKET/imagenet/val/",
            max_pairs=50_000,
        ),
    )


PRESETS = {"local": local, "imagenette": imagenette, "imagenet1k": imagenet1k}
