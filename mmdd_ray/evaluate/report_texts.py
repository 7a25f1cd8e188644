"""Words of the report: the names of sets, and what charts and tables show, by method and by task."""

from mmdd_ray.data.schema import safe_name

FULL, CHANCE = "full", "chance"
BASELINES = ("random", "herding", "k-center", "clip-score", "prompts", FULL)
REFINED = "EDGE refined by CovMatch"
LABELS = {
    "edge": "EDGE",
    safe_name(REFINED.lower()): REFINED,
    "covmatch": "CovMatch",
    "vlcp": "VLCP",
    "random": "Random real data",
    "herding": "Herding",
    "k-center": "k-center",
    "clip-score": "Best by CLIP score",
    "prompts": "Class names as prompts",
    FULL: "Full data",
    CHANCE: "Chance",
}

QUALITY_NOTE = (
    "Alignment: CLIP cosine of image and caption, the higher the better. Similarity: mean cosine between different "
    "samples, lower where they are more diverse. Recall: percent of the captions whose own image is the nearest."
)
TEXTS = {
    "edge": {
        "losses": "Fine-tuning of the generator",
        "quality": "Quality of the synthetic pairs",
        "quality_note": QUALITY_NOTE,
        "examples_note": "The first caption is the real one that the image was drawn from; any others were written for "
        "the image.",
    },
    "vlcp": {
        "losses": "Fine-tuning of the generator",
        "examples_note": "The caption is the prompt: the text prototype, a description of a real image, unless "
        "text prototypes were left out.",
    },
    REFINED.lower(): {
        "losses": "Fine-tuning of the generator",
        "refinement": "Refinement: matching, and InfoNCE of encoders that are trained",
        "quality": "Quality of the synthetic pairs, as they were drawn",
        "quality_note": QUALITY_NOTE,
        "examples_note": "The first caption is the one that the pair began as, a real one or one that was written for "
        "the image; the second line, the words that are nearest to the text that was learnt.",
    },
    "covmatch": {
        "losses": "Matching, and InfoNCE of encoders that are trained",
        "quality": "What batches miss of the whole data",
        "quality_note": "Distance between the moments of a real batch and those of all pairs that are matched, "
        "under the initial encoders, relative to the norm of the latter. The images of a batch are shifted by chance, "
        "too.",
        "examples_note": "The first caption is the one that the pair began as, the second line the words that are "
        "nearest to the text that was learnt.",
    },
}
"""What charts and tables are of, by method; sets of others are shown as EDGE's are."""

TASK_TEXTS = {
    "retrieval": {
        "title": "Retrieval on the test pairs",
        "main": "mean recall",
        "unit": "pairs",
        "loss": "InfoNCE loss",
        "note": "IR@k: captions that find their image among the first k. TR@k: images that find one of their captions "
        "among the first k. Mean recall is the mean of the six.",
    },
    "classification": {
        "title": "Accuracy on the test images",
        "main": "top-1 accuracy",
        "unit": "images",
        "loss": "cross-entropy",
        "note": "Top-k: images whose class is among the k that the classifier finds likeliest.",
    },
}
"""How students were tested."""
