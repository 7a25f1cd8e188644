"""The time of another row: does it grow with the data? Moments, coresets and prompts from 10,000 to 1,000,000 rows.

    python benchmarks/speed_growth.py --folder FOLDER

A store of random features of as many rows as the largest size is written to FOLDER, 2 KB a row, and deleted again. Each
timing has a process of its own, after one that brings the files into memory. The seconds between two sizes over the
rows between them are the time of another row; the ratio is that of the first two sizes over that of the last two.

The source path, which `make scale` measures, is not in it.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from feature_stores import write_features
from scale import measure
from speed import Ratio, Speed, record

from mmdd_ray.storage.store import Store

ROWS = {
    "tiny": (10_000, 20_000, 30_000),
    "cpu": (10_000, 100_000, 1_000_000),
    "gpu": (10_000, 100_000, 1_000_000),
}
MOST = 1.1  # times the time of another row at the smaller sizes


@dataclass(kw_only=True)
class GrowthSpeed(Speed):
    """Times how moments, coresets and prompts grow with the rows."""

    repetitions: int = 3
    """How often each task is timed at each size."""
    folder: Path | None = None
    """Where the store is written; default: the temporary folder."""
    tasks: tuple[str, ...] = ("moments", "herding", "k-center", "clip-score", "prompts")
    """What is timed."""


def main() -> None:
    asked = tyro.cli(GrowthSpeed)
    folder, sizes = Path(tempfile.mkdtemp(dir=asked.folder)), ROWS[asked.size]
    seconds: dict[str, dict[int, list[float]]] = {task: {rows: [] for rows in sizes} for task in asked.tasks}
    try:
        write_features(Store(str(folder / "features")), max(sizes))
        for task in asked.tasks:
            measure(task, folder, max(sizes))
            for _ in range(asked.repetitions):
                for rows in sizes:
                    seconds[task][rows].append(measure(task, folder, rows).seconds)
    finally:
        shutil.rmtree(folder)
    small, middle, large = sizes

    def growth(task: str) -> tuple[float, ...]:
        timings = zip(*(seconds[task][rows] for rows in sizes), strict=True)
        return tuple(((b - a) / (middle - small)) / ((c - b) / (large - middle)) for a, b, c in timings)

    ratios = [
        Ratio(
            f"growth: {task}, a row up to {middle:,} over one up to {large:,}",
            growth(task),
            round(1 / MOST, 2),
        )
        for task in asked.tasks
    ]
    record("growth", asked, ratios, seconds=seconds)


if __name__ == "__main__":
    main()
