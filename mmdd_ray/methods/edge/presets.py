"""EDGE's presets."""

from mmdd_ray.methods.edge.settings import Captions, Edge, EdgeFinetune, EdgeSynthesis, Refine
from mmdd_ray.methods.preset_parts import (
    AUTOSCALING,
    BETTER_HALF,
    CC3M,
    CC3M_EVALUATION,
    CC3M_MATCHING,
    LLAVA,
    LOCAL_MATCHING,
    NFNET_AND_BERT,
    PUBLISHED_MATCHING,
    PUBLISHED_MATCHING_500,
    SCENES,
    SCENES_EVALUATION,
    SPOT_FAILURES,
    STABLE_DIFFUSION,
    VIT_B32,
)


def local() -> Edge:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Edge(
        data=SCENES,
        features=BETTER_HALF,
        # Published is SGD on biases and scale factors, without a denoising loss, over epochs. In sixty steps all of the
        # U-Net gains more; with noise levels up to 0.8 and twice the weight of L_D similarity falls, too (docs/log.md).
        finetune=EdgeFinetune(
            parameters="full",
            optimizer="adamw",
            learning_rate=1e-4,
            diversity_weight=2.0,
            noise_weight=1.0,
            max_timestep_fraction=0.8,
        ),
        synthesis=EdgeSynthesis(candidates_per_image=4, clip_score_fraction=0.5, guidance=4.0),
        captions=Captions(per_image=1),  # a small student gains more by another image than by another caption
        refine=Refine(**LOCAL_MATCHING),
        evaluation=SCENES_EVALUATION,
    )


def cc3m() -> Edge:
    """A GPU cluster: CC3M from the hub, Stable Diffusion 1.5, LLaVA captions."""
    return Edge(
        run=AUTOSCALING,
        data=CC3M,
        features=VIT_B32,
        finetune=EdgeFinetune(
            generator=STABLE_DIFFUSION,
            image_px=256,
            steps=180_000,  # 10 epochs of 2.3 million pairs in batches of 128
            batch_pairs=128,
            learning_rate=1e-3,
            momentum=0.0,
            ema_decay=0.9999,
            checkpoint_steps=1000,
            workers=8,
            max_failures=SPOT_FAILURES,
        ),
        synthesis=EdgeSynthesis(
            pairs=500, candidates_per_image=4, guidance=7.5, batch_images=16, min_actors=1, max_actors=32
        ),
        captions=Captions(model=LLAVA, batch_images=16, min_actors=1, max_actors=16),
        # as CovMatch's cc3m, which has 500 pairs, too
        refine=Refine(**PUBLISHED_MATCHING | PUBLISHED_MATCHING_500 | CC3M_MATCHING),
        students=NFNET_AND_BERT,
        evaluation=CC3M_EVALUATION,
    )


PRESETS = {"local": local, "cc3m": cc3m}
