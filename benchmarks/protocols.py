"""Sets under the published protocols beside ours, at a size for two cores.

    python benchmarks/protocols.py --tiny-imagenet FOLDER

- Pairs: EDGE's local preset on the procedural world, under `equal-budget`, `lors-frozen-text` and
  `covmatch-both-encoders`.
- Labels: ten classes of Tiny-ImageNet, five real images of each, chosen by herding, k-center and at random, under
  `equal-budget`, `hard-label` and `soft-label`, whose teacher is trained on the 4,500 images first.

Some ten minutes each on two idle cores. Killed at any point, the same command goes on. The tables are written to
`benchmarks/results/tables`, from which `make results` takes them.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from fill_results import TABLES
from markdown_table import markdown_table
from vlcp_tiny_imagenet import TinyImageNet, ten_classes

from mmdd_ray import cli
from mmdd_ray.evaluation.metrics import MAIN_METRIC, METRICS
from mmdd_ray.evaluation.report.panels import of_other_protocols, protocol_title
from mmdd_ray.evaluation.report.text import mean_stds, metric_label, set_label
from mmdd_ray.evaluation.report.words import REPORT_JSON
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
IMAGES_PER_CLASS = 5


@dataclass
class Protocols:
    """Measures sets under several protocols."""

    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    out: Path = Path("runs/protocols")
    """Folder of the ten classes and of the run directories."""


def first_images(folder: Path) -> Path:
    """A set to judge: the first images of each class among those that no other set is chosen from."""
    file = folder / "first.parquet"
    if not file.exists():
        table = pq.read_table(folder / "choose.parquet")
        labels = sorted(set(table["label"].to_pylist()))
        own = [table.filter(pc.equal(table["label"], label)).slice(0, IMAGES_PER_CLASS) for label in labels]
        pq.write_table(pa.concat_tables(own), file)
    return file


def labels_command(asked: Protocols) -> list[str]:
    folder = ten_classes(TinyImageNet(asked.tiny_imagenet, asked.tiny_imagenet, asked.out))
    return (
        f"evaluate_labelled local --run.dir {asked.out}/run --set {first_images(folder)} "
        f"--data.uri {folder}/train.parquet --data.caption_columns class_name "
        f"--evaluation.test {folder}/test.parquet --evaluation.baselines random herding k-center full "
        "--evaluation.protocols equal-budget hard-label soft-label --classifiers.width 32 --classifiers.steps 300 "
        "--classifiers.teacher_steps 1000"
    ).split()


def pairs_command(asked: Protocols) -> list[str]:
    return (
        f"edge_cc3m local --run.dir {asked.out}/pairs --evaluation.baselines random clip-score "
        "--evaluation.protocols equal-budget lors-frozen-text covmatch-both-encoders"
    ).split()


def run(job: str, *arguments: str) -> dict[str, Any]:
    """The report of a job, which is run as far as it is not done."""
    subprocess.run([sys.executable, f"{ROOT}/jobs/{job}.py", *arguments], check=True)
    return Store(arguments[arguments.index("--run.dir") + 1]).read_json(REPORT_JSON)


def tables(report: Mapping[str, Any]) -> str:
    """A table of each protocol."""
    main = MAIN_METRIC[report["task"]]
    parts = []
    for panel in (report, *of_other_protocols(report)):
        best = panel["best_looks"]
        head = ["set", *map(metric_label, METRICS[report["task"]])]
        head += [f"{metric_label(main)}, best look"] * bool(best)
        rows = []
        for name, scores in panel["scores"].items():
            cells = [mean_stds(scores[metric]) for metric in METRICS[report["task"]]]
            looked = [mean_stds(best[name][main]) if name in best else ""] * bool(best)
            rows.append([set_label(name, report), *cells, *looked])
        parts.append(
            f"*{protocol_title(panel['protocol'])}*, {panel['models']}:\n\n{markdown_table(head, rows)}"
        )
    return "\n\n".join(parts)


def main() -> None:
    asked = tyro.cli(Protocols)
    for name, command in (
        ("protocols-labels", labels_command(asked)),
        ("protocols-pairs", pairs_command(asked)),
    ):
        shown = tables(run(*command))
        (TABLES / f"{name}.md").write_text(f"{shown}\n")
        print(f"\n{shown}\n", flush=True)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
