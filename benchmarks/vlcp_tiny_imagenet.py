"""VLCP on photographs: ten classes of Tiny-ImageNet, ten images of each, and what each prototype contributes.

    python benchmarks/vlcp_tiny_imagenet.py --tiny-imagenet FOLDER --photos FOLDER

Pretrains a small CLIP, generator and captioner (`benchmarks/photo_models.py`), has the photographs described, and draws
sets with both prototypes, with either alone, and with neither. Learning rates of the classifiers are chosen on 50
training images of each class that only the pretraining sees; figures are of the val shard. The tables are written to
`benchmarks/results/tables`, from which `make results` takes them. Killed at any point, the same command goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import photo_models
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
import vlcp_arms
from fill_results import TABLES
from markdown_table import markdown_table

from mmdd_ray import cli
from mmdd_ray.config import Classifiers, Data, Features, Finetune, LabelledEvaluation, Run
from mmdd_ray.config.evaluation import LabelProtocols
from mmdd_ray.engine.cluster import connected
from mmdd_ray.engine.run_dir import RunDir
from mmdd_ray.evaluation.compare import EVALUATION
from mmdd_ray.evaluation.metrics import METRICS
from mmdd_ray.evaluation.report.panels import protocol_title
from mmdd_ray.evaluation.report.text import mean_stds
from mmdd_ray.methods.vlcp.settings import Describe, Prototypes, Vlcp, VlcpSynthesis
from mmdd_ray.storage.store import Store

CLASSES = (  # of many kinds, ImageNette's among them where Tiny-ImageNet has them or a relative
    "golden retriever",
    "tabby",
    "brown bear",
    "king penguin",
    "school bus",
    "sports car",
    "steel arch bridge",
    "orange",
    "monarch",
    "seashore",
)
IMAGE_PX = 32  # of the shards
HELD_OUT = 50  # training images of each class, for learning rates


@dataclass
class TinyImageNet:
    """Measures VLCP on ten classes of Tiny-ImageNet."""

    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    photos: Path
    """Folder of Flickr8k's shards, on which the models are trained, too."""
    out: Path = Path("runs/vlcp-tiny-imagenet")
    """Folder of the ten classes and of the run directory."""
    models: Path = Path("runs/photo-models-32")
    """Folder of the models; what is missing is trained."""
    images_per_class: int = 10
    """IPC."""
    finetune_steps: int = 400
    """Fine-tuning steps of the generator, on the ten classes and their descriptions."""
    classifier_steps: int = 300
    """Steps of every classifier."""
    seeds: int = 3
    """Classifiers of each draw of a set under "equal-budget"."""
    protocols: LabelProtocols = ("equal-budget", "hard-label", "soft-label")
    """How classifiers are trained and tested; a table each. "soft-label" has a teacher trained first."""
    teacher_steps: int = 1000
    """Steps of the teacher, on the images of the ten classes."""
    draws: int = 2
    """How often each set is drawn, from the same prototypes with other noise; random images and k-center, too."""


def models_of(asked: TinyImageNet) -> photo_models.PhotoModels:
    """The models, as large as two cores train in an hour and a half.

    `photo_models.py --image-px 32 --out runs/photo-models-32` trains longer.
    """
    return photo_models.PhotoModels(
        asked.tiny_imagenet,
        asked.photos,
        asked.models,
        image_px=IMAGE_PX,
        label_epochs=3,
        clip_steps=500,
        vae_steps=1500,
        unet_steps=900,
        unet_batch=128,
        captioner_steps=200,
    )


def ten_classes(asked: TinyImageNet) -> Path:
    """Writes the images of the ten classes as train, choose and test Parquet files; gives their folder."""
    folder = asked.out / "data"
    store = Store(str(folder))
    if not store.exists("train.parquet"):
        whole, test = (_read(asked.tiny_imagenet, split) for split in ("train", "val"))
        parts = [whole.filter(pc.equal(whole["class_name"], name)) for name in CLASSES]
        store.write_parquet("test.parquet", test)
        store.write_parquet("choose.parquet", pa.concat_tables(part.slice(0, HELD_OUT) for part in parts))
        store.write_parquet("train.parquet", pa.concat_tables(part.slice(HELD_OUT) for part in parts))
    return folder


def _read(folder: Path, split: str) -> pa.Table:
    table = pq.read_table(sorted(folder.glob(f"tiny-imagenet32-{split}-*.parquet")))
    return table.filter(pc.is_in(table["class_name"], pa.array(CLASSES)))


def settings_of(asked: TinyImageNet) -> Vlcp:
    folder, models = asked.out.absolute() / "data", asked.models.absolute()
    return Vlcp(
        run=Run(dir=str(asked.out.absolute() / "run")),
        data=Data(uri=f"{folder}/train.parquet", caption_columns=("class_name",)),
        features=Features(clip=f"local-dir:{models}/clip", image_px=IMAGE_PX, max_actors=2),
        describe=Describe(
            source="vlm",
            model=str(models / "captioner"),
            image_px=IMAGE_PX,
            prefix="a photo of a {class_name}, ",
            max_new_tokens=30,
            max_actors=2,
        ),
        finetune=Finetune(
            generator=str(models / "sd"),
            image_px=IMAGE_PX,
            steps=asked.finetune_steps,
            batch_pairs=64,
            parameters="full",
            optimizer="adamw",
            learning_rate=3e-4,
            ema_decay=0.99,
        ),
        prototypes=Prototypes(images_per_class=asked.images_per_class),
        synthesis=VlcpSynthesis(inference_steps=25, negative_prompt=""),
        classifiers=Classifiers(
            width=64,
            steps=asked.classifier_steps,
            learning_rates=(0.01, 0.05),
            teacher_steps=asked.teacher_steps,
        ),
        evaluation=LabelledEvaluation(
            val=f"{folder}/choose.parquet",
            test=f"{folder}/test.parquet",
            baselines=("random", "herding", "k-center", "full"),
            seeds=asked.seeds,
            draws=asked.draws,
            protocols=asked.protocols,
        ),
    )


def measure(asked: TinyImageNet) -> dict[str, Any]:
    """Runs what is left; gives the evaluation."""
    ten_classes(asked)
    settings = settings_of(asked)
    with (
        RunDir.open(settings.run.dir, "vlcp_tiny_imagenet", "benchmark", settings) as run,
        connected(settings.run, run.store),
    ):
        made = vlcp_arms.prepare(run, settings)
        found: dict[str, Any] = vlcp_arms.judge(run, made, settings).store.read_json(EVALUATION)
    return found


def table(panel: Mapping[str, Any]) -> str:
    """A Markdown table of one protocol: accuracy in percent, mean ± standard deviation over the classifiers of a draw,
    and that between the means of draws where there are several."""
    best = panel["protocol"]["published"]
    chosen = "top-1, best look" if best else "top-1 on the images that choose the rate"
    head = ["set", "images", "top-1", "top-5", chosen]
    rows = []
    for name, one in panel["sets"].items():
        scores = [mean_stds(one["metrics"][metric]) for metric in METRICS["classification"]]
        last = mean_stds(one["best_look"]["top-1"]) if best else f"{max(one['on_val'].values()):.1f}"
        rows.append([name, f"{one['images']:,}", *scores, last])
    chances = (f"{panel['chance'][metric]:.1f}" for metric in METRICS["classification"])
    rows.append(["chance", "", *chances, ""])
    return markdown_table(head, rows)


def main() -> None:
    asked = tyro.cli(TinyImageNet)
    for model, figures in photo_models.pretrain(models_of(asked)).items():
        print(f"{model}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
    found = measure(asked)
    shown = "\n\n".join(
        f"*{protocol_title(one['protocol'])}*, {one['models']}:\n\n{table(one)}"
        for one in (found, *found["others"])
    )
    (TABLES / "vlcp-tiny-imagenet.md").write_text(f"{shown}\n")
    print(f"\n{shown}")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
