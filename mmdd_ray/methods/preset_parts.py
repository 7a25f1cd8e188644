"""Settings that presets of several methods share."""

from typing import Any

from mmdd_ray.config import Classifiers, Data, Evaluation, Features, LabelledEvaluation, Run, Students
from mmdd_ray.models import published

# what cluster.yaml may grow to; docs/kuberay.yaml has as many GPUs
AUTOSCALING = Run(max_cpus=256, max_gpus=16)
SPOT_FAILURES = 50  # machines that vanish during a training
STABLE_DIFFUSION, LLAVA = published.STABLE_DIFFUSION, published.LLAVA

# The procedural world of docs/world.md: noisy pairs to distil, and such pictures with right captions, five
# each, to choose learning rates on and to test.
SCENES = Data(uri="shapes:2000?seed=1&wrong=0.2&vague=0.1&captions=1")
SCENES_EVALUATION = Evaluation(
    val="shapes:300?seed=2&wrong=0&vague=0&captions=5", test="shapes:500?seed=3&wrong=0&vague=0&captions=5"
)
# Labels are right, and so are the captions that stand for a model's descriptions of the images.
LABELLED_SCENES = "shapes:2000?seed=1&labelled=1&wrong=0&vague=0&captions=1"
LABELLED_TEST_SCENES = "shapes:1000?seed=3&labelled=1&wrong=0&vague=0&captions=1"
# CutMix weighs labels by area, which says nothing of an object that covers a few percent of its scene.
SMALL_CLASSIFIERS = Classifiers(width=32, steps=100, learning_rates=(0.05,), cutmix=0.0)

IMAGENETTE = Data(uri="s3://YOUR-BUCKET/imagenette2/train/")
IMAGENETTE_NAMES = "s3://YOUR-BUCKET/imagenette2/classes.txt"
IMAGENETTE_EVALUATION = LabelledEvaluation(test="s3://YOUR-BUCKET/imagenette2/val/", max_pairs=4000)
RESNET_AP_10 = Classifiers(
    model="resnet-ap-10",
    image_px=224,
    steps=4000,  # 2,000 epochs of 100 images
    cutmix=1.0,
)

# The moments to match are those of the pairs that are right, as far as CLIP knows.
BETTER_HALF = Features(clip_score_fraction=0.5)

# 2,905,954 pairs as WebDataset. Its validation shards serve for both: those of even numbers for validation, and those
# of odd ones for the test.
CC3M = Data(uri="hf://datasets/pixparse/cc3m-wds/cc3m-train-{0000..0575}.tar")
CC3M_EVALUATION = Evaluation(
    val="hf://datasets/pixparse/cc3m-wds/cc3m-validation-*[02468].tar",
    test="hf://datasets/pixparse/cc3m-wds/cc3m-validation-*[13579].tar",
    max_pairs=5000,
    seeds=5,
)
# Karpathy's split, in one file
FLICKR30K = Data(
    uri="s3://YOUR-BUCKET/flickr30k/dataset_flickr30k.json",
    image_root="s3://YOUR-BUCKET/flickr30k/images",
    split="train",
)
FLICKR30K_EVALUATION = Evaluation(
    val=FLICKR30K.uri, test=FLICKR30K.uri, val_split="val", test_split="test", max_pairs=1000, seeds=5
)
VIT_B32 = Features(
    clip="ViT-B-32/laion2b_s34b_b79k", image_px=224, chunk_pairs=512, min_actors=1, max_actors=64
)
NFNET_AND_BERT = Students(
    image_model="nfnet_l0",
    text_model=published.BERT,
    image_px=224,
    max_tokens=64,
    embed_dim=2304,
    steps=3000,
    batch_pairs=128,
    learning_rates=(0.03, 0.1, 0.3),
)

LOCAL_MATCHING: dict[str, Any] = {
    "relative": True,
    "mean_weight": 0.001,  # tiny-nf's features are long, and so are their means
    # Published are batches under encoders that are trained along. Exact moments under still ones are as good here, at
    # half of the time.
    "real_moments": "whole",
    "encoder_updates": False,
    "optimizer": "adam",  # published is SGD, over 10,000 iterations
    "pixel_rate": 0.005,
    "token_rate": 0.001,
    "encoder_optimizer": "adamw",  # where encoders are trained
    "encoder_rate": 1e-4,
    "head_rate": 1e-3,
    "checkpoint_iterations": 10,
}
"""Learning pairs under the tiny encoders."""

PUBLISHED_MATCHING: dict[str, Any] = {
    "image_model": "nfnet_l0",
    "text_model": published.BERT,
    "image_px": 224,
    "max_tokens": 64,
    "embed_dim": 2304,
    "micro_batch": 64,
    "checkpoint_iterations": 500,
    "max_failures": SPOT_FAILURES,
}
"""Learning pairs under NFNet and BERT."""

PUBLISHED_MATCHING_500: dict[str, Any] = {"rho": 1.0, "mean_weight": 0.6}
"""Published for 500 pairs."""
CC3M_MATCHING: dict[str, Any] = {"real_batch": 1024, "workers": 8, "cache_mib": 0}
"""Real batches streamed to eight workers."""
