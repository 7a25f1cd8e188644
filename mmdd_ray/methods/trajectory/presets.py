"""Presets of trajectory matching."""

from dataclasses import replace

from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    FLICKR30K,
    FLICKR30K_EVALUATION,
    NFNET_AND_BERT,
    SCENES,
    SCENES_EVALUATION,
    SPOT_FAILURES,
    VIT_B32,
)
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories, Trajectory


def local() -> Trajectory:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Trajectory(
        data=SCENES,
        experts=Experts(count=2, epochs=3, batch_pairs=64),
        # rates that bring the loss of forty to eighty iterations down most; published ones are of thousands
        match=Trajectories(
            iterations=60,
            student_steps=4,
            max_start_epoch=1,
            student_rate=0.05,
            student_rate_rate=1e-4,
            text_rate=10.0,
            batch_pairs=32,
        ),
        evaluation=SCENES_EVALUATION,
    )


def flickr30k() -> Trajectory:
    """A GPU cluster: Flickr30K in Karpathy's split, NFNet-L0 and BERT, LoRS with 100 pairs as published."""
    return Trajectory(
        run=AUTOSCALING,
        data=FLICKR30K,
        features=VIT_B32,
        experts=Experts(max_real_mib=8192),  # 29,000 images of 224 px take 4,163 MiB
        match=Trajectories(
            protocol="lors-frozen-text",
            similarity="low-rank",
            image_model="nfnet_l0",
            text_model="google-bert/bert-base-uncased",
            image_px=224,
            max_tokens=64,
            embed_dim=2304,
            max_failures=SPOT_FAILURES,
        ),
        students=NFNET_AND_BERT,
        evaluation=replace(FLICKR30K_EVALUATION, protocols=("lors-frozen-text",)),
    )


PRESETS = {"local": local, "flickr30k": flickr30k}
