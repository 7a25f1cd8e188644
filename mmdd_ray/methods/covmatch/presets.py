"""CovMatch's presets."""

from dataclasses import replace

from mmdd_ray.config import Data, Evaluation, Students
from mmdd_ray.methods.covmatch.settings import Covmatch, Match
from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    BETTER_HALF,
    CC3M,
    CC3M_EVALUATION,
    CC3M_MATCHING,
    FLICKR30K,
    FLICKR30K_EVALUATION,
    LOCAL_MATCHING,
    NFNET_AND_BERT,
    PUBLISHED_MATCHING,
    PUBLISHED_MATCHING_500,
    SCENES,
    SCENES_EVALUATION,
    VIT_B32,
)

STUDENT_SHARE = 0.33  # of a GPU: a student of both encoders takes 12 GiB, of which three fit on an L40S


def local() -> Covmatch:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Covmatch(
        data=SCENES,
        features=BETTER_HALF,
        match=Match(iterations=60, init="clip-score", **LOCAL_MATCHING),
        students=Students(trained="both-encoders", steps=40),
        evaluation=SCENES_EVALUATION,
    )


def flickr30k() -> Covmatch:
    """A GPU cluster: Flickr30K in Karpathy's split, NFNet-L0 and BERT, 100 pairs as published."""
    return Covmatch(
        run=AUTOSCALING,
        data=FLICKR30K,
        features=VIT_B32,
        match=Match(pairs=100, iterations=10_000, rho=2.0, cache_mib=8192, **PUBLISHED_MATCHING),
        students=replace(NFNET_AND_BERT, trained="both-encoders", steps=100),
        evaluation=replace(FLICKR30K_EVALUATION, gpus_per_student=STUDENT_SHARE),
    )


def coco() -> Covmatch:
    """A GPU cluster: COCO in Karpathy's split (from a copy on the hub that was not tried), 500 pairs as published."""
    flickr = flickr30k()
    hub = "hf://datasets/undefined443/coco-karpathy-wds"
    return replace(
        flickr,
        data=Data(uri=f"{hub}/train/train-*.tar"),
        match=replace(flickr.match, pairs=500, iterations=20_000, **PUBLISHED_MATCHING_500),
        students=replace(flickr.students, steps=400),
        evaluation=Evaluation(
            val=f"{hub}/val/val-*.tar",
            test=f"{hub}/test/test-*.tar",
            max_pairs=5000,
            seeds=5,
            gpus_per_student=STUDENT_SHARE,
        ),
    )


def cc3m() -> Covmatch:
    """A GPU cluster: CC3M from the hub, 500 pairs, real batches streamed to eight workers."""
    shown = coco()
    return replace(
        shown,
        data=CC3M,
        match=replace(shown.match, **CC3M_MATCHING),
        evaluation=replace(CC3M_EVALUATION, gpus_per_student=STUDENT_SHARE),
    )


PRESETS = {"local": local, "flickr30k": flickr30k, "coco": coco, "cc3m": cc3m}
