"""Presets: functions that return settings, so that one can start from another and change a field."""

from mmdd_ray.config import (
    Captions,
    Data,
    Edge,
    Evaluate,
    Evaluation,
    Features,
    Finetune,
    Precompute,
    Students,
    Synthesis,
)


def edge_local() -> Edge:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Edge(
        data=Data(uri="shapes:2000?seed=1"),
        finetune=Finetune(optimizer="adamw"),  # the authors' SGD needs more than the 60 steps of a demo
        evaluation=Evaluation(val="shapes:300?seed=2", test="shapes:500?seed=3"),
    )


def edge_cc3m() -> Edge:
    """A GPU cluster: CC3M as img2dataset writes it, Stable Diffusion 1.5, LLaVA captions."""
    return Edge(
        data=Data(uri="s3://YOUR-BUCKET/cc3m/{00000..00331}.tar"),
        features=Features(
            clip="ViT-B-32/laion2b_s34b_b79k", image_px=224, chunk_pairs=512, min_actors=1, max_actors=64
        ),
        finetune=Finetune(
            generator="stable-diffusion-v1-5/stable-diffusion-v1-5",
            image_px=256,
            steps=180_000,  # 10 epochs of 2.3 million pairs in batches of 128
            batch_pairs=128,
            learning_rate=1e-3,
            momentum=0.0,
            ema_decay=0.9999,
            checkpoint_steps=1000,
            workers=8,
        ),
        synthesis=Synthesis(
            pairs=500, candidates_per_image=4, guidance=7.5, batch_images=16, min_actors=1, max_actors=32
        ),
        captions=Captions(model="llava-hf/llava-1.5-7b-hf", batch_images=16, min_actors=1, max_actors=16),
        students=Students(
            image_model="nfnet_l0",
            text_model="google-bert/bert-base-uncased",
            image_px=224,
            max_tokens=64,
            embed_dim=2304,
            steps=3000,
            batch_pairs=128,
            learning_rates=(0.03, 0.1, 0.3),
        ),
        evaluation=Evaluation(
            val="s3://YOUR-BUCKET/cc3m-val/00000.tar",
            test="s3://YOUR-BUCKET/cc3m-val/00001.tar",
            max_pairs=5000,
            seeds=5,
        ),
    )


def precompute_local() -> Precompute:
    """A laptop: the tiny CLIP on procedural scenes."""
    return _precompute(edge_local())


def precompute_cc3m() -> Precompute:
    """A GPU cluster: ViT-B/32 on CC3M."""
    return _precompute(edge_cc3m())


def _precompute(edge: Edge) -> Precompute:
    return Precompute(data=edge.data, features=edge.features)


def evaluate_local() -> Evaluate:
    """A laptop: tiny students on procedural scenes."""
    return _evaluate(edge_local(), "runs/edge_cc3m-local/distilled")


def evaluate_cc3m() -> Evaluate:
    """A GPU cluster: NFNet and BERT students on CC3M."""
    return _evaluate(edge_cc3m(), "s3://YOUR-BUCKET/runs/edge_cc3m/distilled")


def _evaluate(edge: Edge, distilled: str) -> Evaluate:
    return Evaluate(
        set=distilled,
        data=edge.data,
        features=edge.features,
        students=edge.students,
        evaluation=edge.evaluation,
    )
