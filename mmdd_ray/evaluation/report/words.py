"""Words of the report: the names of sets, and what charts and tables show, by task; a method adds its own."""

from mmdd_ray.data.pair import safe_name

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
AUDIT_STAGE, AUDIT, COPIES = "audit", "audit.json", "copies.png"
MOST_SHOWN = 500
"""Pairs of a set that a page shows at most."""
NEAREST_IMAGES = "nearest_images.parquet"
FULL, CHANCE = "full", "chance"
BASELINES = ("random", "herding", "k-center", "clip-score", "prompts", FULL)
LABELS = {
    "random": "Random real data",
    "herding": "Herding",
    "k-center": "k-center",
    "clip-score": "CLIP-score filter",
    "prompts": "Class names as prompts",
    FULL: "Full data",
    CHANCE: "Chance",
}
IN_SENTENCES = {
    "random": "random real {unit}",
    "herding": "herding",
    "clip-score": "random {unit} that a CLIP-score filter kept",
    "prompts": "{unit} drawn from class names",
    FULL: "the full data",
}
"""Baselines within a sentence, where that is another text than their label."""

EXTRA_TITLE = "Beyond retrieval"
EXTRA_NOTE = (
    "Zero-shot: images whose class has the nearest prompts; top-k: is among the k nearest. Linear probe: images that a "
    "linear classifier of the students' image features recognises, fitted to the other images of the same source. "
    "Compositional: images whose caption is nearer than a hard negative, by kind of negative, and their mean."
)
"""The table of what students are asked beyond the main test."""

TEXTS = {
    "losses": "Losses",
    "refinement": "Refinement",
    "quality": "Quality of the synthetic pairs",
    "quality_note": "",
    "examples_note": "",
    "extra": EXTRA_TITLE,
    "extra_note": EXTRA_NOTE,
}
"""Titles and notes where a method has no others."""

QUALITY_LABELS = {
    "recall": "Captions that find their own image, by CLIP, %",
}
"""Figures of the quality of a set whose names say too little: its recall is not that of students."""

TASK_TEXTS = {
    "retrieval": {
        "title": "Retrieval on the test pairs",
        "main": "mean recall",
        "unit": "pairs",
        "loss": "training loss",
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


def set_name(method: object) -> str:
    """The method of a manifest, which may be anybody's text, as a name for files and tables."""
    name = safe_name(str(method).lower())
    return "distilled" if name in (*BASELINES, CHANCE) else name
