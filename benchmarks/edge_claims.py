"""EDGE's own claims on `shapes`, over several seeds: one table, from runs that resume.

    python benchmarks/edge_claims.py --seeds 0 1 2

Each seed is four runs of jobs/edge_cc3m.py: the preset as it is (100 pairs, two captions an image), the same with
the generator left as it is, and one caption an image at as many pairs and at as many images.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
ARMS = {
    "tuned": [],
    "untuned": ["--finetune.steps", "0", "--evaluation.baselines", "random"],
    "one caption, 100 images": ["--captions.per_image", "1", "--evaluation.baselines", "random"],
    "one caption, 50 images": [
        *("--captions.per_image", "1", "--synthesis.pairs", "50", "--evaluation.baselines", "random")
    ],
}


@dataclass
class Claims:
    """Measures EDGE's claims on the procedural dataset."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Run seeds."""
    out: Path = Path("runs/edge-claims")
    """Folder of the runs."""


def run(arm: str, seed: int, out: Path) -> dict[str, Any]:
    folder = out / f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"
    if not (folder / "report.json").exists():
        command = [sys.executable, "jobs/edge_cc3m.py", "local", "--run.dir", str(folder.absolute())]
        subprocess.run([*command, "--run.seed", str(seed), *ARMS[arm]], cwd=ROOT, check=True)
    report = json.loads((folder / "report.json").read_text())
    figures = {name: columns["distilled set"] for name, columns in report["quality"].items()}
    for name, metrics in report["recall"].items():
        figures[f"{name} IR@10"] = metrics["ir@10"]["mean"]
        figures[f"{name} mean recall"] = metrics["mean_recall"]["mean"]
    return figures


def show(name: str, values: list[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"  {name:<22} {mean(values):8.3f}{spread}   {', '.join(f'{v:.3f}' for v in values)}"


def main() -> int:
    settings = tyro.cli(Claims)
    for arm in ARMS:
        runs = [run(arm, seed, settings.out) for seed in settings.seeds]
        print(arm)
        for name in runs[0]:
            print(show(name, [figures[name] for figures in runs]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
