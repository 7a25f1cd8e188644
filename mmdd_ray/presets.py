"""Presets: functions that return settings, so that one can start from another and change a field."""

from dataclasses import fields, replace

from mmdd_ray.config import (
    Captions,
    Classifiers,
    Covmatch,
    Data,
    Describe,
    Edge,
    EdgeFinetune,
    EdgeSynthesis,
    Evaluate,
    Evaluation,
    Features,
    Finetune,
    LabelledEvaluation,
    Match,
    Precompute,
    Prototypes,
    Refine,
    Run,
    Students,
    Vlcp,
    VlcpSynthesis,
)

# what cluster.yaml may grow to; docs/kuberay.yaml has as many GPUs
AUTOSCALING = Run(max_cpus=256, max_gpus=16)
SPOT_FAILURES = 50  # machines that vanish during a training

# The procedural world of docs/world.md: noisy pairs to distil, and such pictures with right captions, five
# each, to choose learning rates on and to test.
SCENES = "shapes:2000?seed=1&wrong=0.2&vague=0.1&captions=1"
VAL_SCENES = "shapes:300?seed=2&wrong=0&vague=0&captions=5"
TEST_SCENES = "shapes:500?seed=3&wrong=0&vague=0&captions=5"
# Labels are right, and so are the captions that stand for a model's descriptions of the images.
LABELLED_SCENES = "shapes:2000?seed=1&labelled=1&wrong=0&vague=0&captions=1"
LABELLED_TEST_SCENES = "shapes:1000?seed=3&labelled=1&wrong=0&vague=0&captions=1"
NAMED = "a picture of a {class_name}"
# The moments to match are those of the pairs that are right, as far as CLIP knows.
BETTER_HALF = Features(clip_score_fraction=0.5)


def _local_match() -> Match:
    """Of the tiny encoders."""
    return Match(
        iterations=60,
        relative=True,
        mean_weight=0.001,  # tiny-nf's features are long, and so are their means
        # Published are batches under encoders that are trained along. Exact moments under still ones are as good here,
        # at half of the time.
        real_moments="whole",
        encoder_updates=False,
        optimizer="adam",  # published is SGD, over 10,000 iterations
        pixel_rate=0.005,
        token_rate=0.001,
        encoder_optimizer="adamw",  # where encoders are trained
        encoder_rate=1e-4,
        head_rate=1e-3,
        checkpoint_iterations=10,
    )


def _published_match() -> Match:
    """Of NFNet and BERT, with the settings published for 100 pairs."""
    return Match(
        pairs=100,
        iterations=10_000,
        rho=2.0,
        image_model="nfnet_l0",
        text_model="google-bert/bert-base-uncased",
        image_px=224,
        max_tokens=64,
        embed_dim=2304,
        micro_batch=64,
        cache_mib=8192,
        checkpoint_iterations=500,
        max_failures=SPOT_FAILURES,
    )


def _refine(match: Match) -> Refine:
    """The same for pairs that EDGE has drawn, switched off."""
    shared = {item.name: getattr(match, item.name) for item in fields(Refine)}
    return Refine(**{**shared, "iterations": 0})


def edge_local() -> Edge:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    return Edge(
        data=Data(uri=SCENES),
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
        refine=_refine(_local_match()),
        evaluation=Evaluation(val=VAL_SCENES, test=TEST_SCENES),
    )


def edge_cc3m() -> Edge:
    """A GPU cluster: CC3M as img2dataset writes it, Stable Diffusion 1.5, LLaVA captions."""
    return Edge(
        run=AUTOSCALING,
        data=Data(uri="s3://YOUR-BUCKET/cc3m/{00000..00331}.tar"),
        features=Features(
            clip="ViT-B-32/laion2b_s34b_b79k", image_px=224, chunk_pairs=512, min_actors=1, max_actors=64
        ),
        finetune=EdgeFinetune(
            generator="stable-diffusion-v1-5/stable-diffusion-v1-5",
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
        captions=Captions(model="llava-hf/llava-1.5-7b-hf", batch_images=16, min_actors=1, max_actors=16),
        refine=_refine(
            replace(
                _published_match(), rho=1.0, mean_weight=0.6, real_batch=1024, workers=8, cache_mib=0
            )  # as covmatch_cc3m, which has 500 pairs, too
        ),
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


def covmatch_local() -> Covmatch:
    """A laptop: procedural scenes and the tiny zoo, minutes on two cores, no network."""
    edge = edge_local()
    return Covmatch(
        data=edge.data,
        features=BETTER_HALF,
        match=replace(_local_match(), init="clip-score"),
        students=Students(protocol="both-encoders", steps=40),
        evaluation=edge.evaluation,
    )


def covmatch_flickr30k() -> Covmatch:
    """A GPU cluster: Flickr30K in Karpathy's split, NFNet-L0 and BERT, 100 pairs as published."""
    annotations = "s3://YOUR-BUCKET/flickr30k/dataset_flickr30k.json"
    return Covmatch(
        run=AUTOSCALING,
        data=Data(uri=annotations, image_root="s3://YOUR-BUCKET/flickr30k/images", split="train"),
        features=edge_cc3m().features,
        match=_published_match(),
        students=replace(
            edge_cc3m().students, protocol="both-encoders", steps=100, learning_rates=(0.03, 0.1, 0.3)
        ),
        evaluation=Evaluation(
            val=annotations, test=annotations, val_split="val", test_split="test", max_pairs=1000, seeds=5
        ),
    )


def covmatch_coco() -> Covmatch:
    """A GPU cluster: COCO in Karpathy's split, 500 pairs as published."""
    flickr = covmatch_flickr30k()
    annotations = "s3://YOUR-BUCKET/coco/dataset_coco.json"
    return replace(
        flickr,
        data=replace(flickr.data, uri=annotations, image_root="s3://YOUR-BUCKET/coco/images"),
        match=replace(flickr.match, pairs=500, iterations=20_000, rho=1.0, mean_weight=0.6),
        students=replace(flickr.students, steps=400),
        evaluation=replace(flickr.evaluation, val=annotations, test=annotations, max_pairs=5000),
    )


def covmatch_cc3m() -> Covmatch:
    """A GPU cluster: CC3M as img2dataset writes it, 500 pairs, real batches streamed to eight workers."""
    edge, coco = edge_cc3m(), covmatch_coco()
    return replace(
        coco,
        data=edge.data,
        match=replace(coco.match, real_batch=1024, workers=8, cache_mib=0),
        evaluation=edge.evaluation,
    )


def vlcp_local() -> Vlcp:
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
        # CutMix weighs labels by area, which says nothing of an object that covers a few percent of its scene
        classifiers=Classifiers(width=32, steps=100, learning_rates=(0.05,), cutmix=0.0),
        evaluation=LabelledEvaluation(test=LABELLED_TEST_SCENES),
    )


def vlcp_imagenette() -> Vlcp:
    """A GPU cluster: ImageNette as an image folder, Stable Diffusion 1.5, LLaVA's descriptions, 10 images a class."""
    edge = edge_cc3m()
    return Vlcp(
        run=edge.run,
        data=Data(uri="s3://YOUR-BUCKET/imagenette2/train/"),
        features=edge.features,
        describe=Describe(
            source="vlm",
            class_names="s3://YOUR-BUCKET/imagenette2/classes.txt",
            model=edge.captions.model,
            image_px=336,
            chunk_images=32,
            max_actors=16,
        ),
        finetune=Finetune(
            generator="stable-diffusion-v1-5/stable-diffusion-v1-5",
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
        classifiers=Classifiers(
            model="resnet-ap-10",
            image_px=224,
            steps=4000,  # 2,000 epochs of 100 images
            cutmix=1.0,
        ),
        evaluation=LabelledEvaluation(
            test="s3://YOUR-BUCKET/imagenette2/val/",
            max_pairs=4000,
        ),
    )


def vlcp_imagenet1k() -> Vlcp:
    """A GPU cluster: ImageNet-1K as an image folder, otherwise as ImageNette."""
    imagenette = vlcp_imagenette()
    return replace(
        imagenette,
        data=replace(imagenette.data, uri="s3://YOUR-BUCKET/imagenet/train/"),
        describe=replace(
            imagenette.describe, class_names="s3://YOUR-BUCKET/imagenet/classes.txt", max_actors=64
        ),
        finetune=replace(imagenette.finetune, steps=80_000, workers=8, accumulate=2, batch_pairs=64),
        prototypes=replace(imagenette.prototypes, max_actors=64),
        synthesis=replace(imagenette.synthesis, max_actors=64),
        classifiers=replace(imagenette.classifiers, model="resnet-18", steps=300_000),
        evaluation=replace(
            imagenette.evaluation,
            test="s3://YOUR-BUCKET/imagenet/val/",
            max_pairs=50_000,
        ),
    )


def precompute_local() -> Precompute:
    """A laptop: the tiny CLIP on procedural scenes."""
    return _precompute(edge_local())


def precompute_cc3m() -> Precompute:
    """A GPU cluster: ViT-B/32 on CC3M."""
    return _precompute(edge_cc3m())


def _precompute(edge: Edge) -> Precompute:
    return Precompute(run=edge.run, data=edge.data, features=_of_all_pairs(edge.features))


def _of_all_pairs(features: Features) -> Features:
    """For jobs that match nothing."""
    return replace(features, clip_score_fraction=1.0)


def evaluate_local() -> Evaluate:
    """A laptop: tiny students on procedural scenes."""
    return _evaluate(edge_local(), "runs/edge_cc3m-local/distilled")


def evaluate_cc3m() -> Evaluate:
    """A GPU cluster: NFNet and BERT students on CC3M."""
    return _evaluate(edge_cc3m(), "s3://YOUR-BUCKET/runs/edge_cc3m/distilled")


def _evaluate(edge: Edge, distilled: str) -> Evaluate:
    return Evaluate(
        run=edge.run,
        set=distilled,
        data=edge.data,
        features=_of_all_pairs(edge.features),
        students=edge.students,
        evaluation=edge.evaluation,
    )
