"""Times what is compared in turns, and records ratios: what the speed benchmarks share.

    python benchmarks/speed.py     # what was recorded last on this hardware, as a table

Timings on a shared machine drift by tens of percent within minutes. So arms are run one after the other in every
repetition, a ratio is that of two timings of one repetition, and the median of the ratios is quoted with their range.
"""

import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import psutil
from markdown_table import markdown_table

from mmdd_ray.engine.run_dir import versions

ROOT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Speed:
    """Options of every speed benchmark."""

    size: Literal["cpu", "tiny", "gpu"] = "cpu"
    """How much is computed: minutes on a laptop, seconds in a test, or the published architectures on a GPU."""
    repetitions: int = 5
    """How often each arm is timed."""
    out: Path = ROOT / "benchmarks" / "results"
    """Folder of the record."""


@dataclass(frozen=True)
class Ratio:
    """How often an arm is faster than another one, or by how much it comes near a limit."""

    name: str
    ratios: tuple[float, ...]
    """One for each repetition."""
    target: float | None = None
    """At least; None of what is shown for comparison."""

    @property
    def middle(self) -> float:
        return median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        return None if self.target is None else self.middle >= self.target

    def __str__(self) -> str:
        spread = f"({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        verdict = {None: "", True: f"target {self.target}: met", False: f"target {self.target}: MISSED"}[
            self.is_met
        ]
        return f"{self.name:<64} {self.middle:6.2f} {spread:<18} {verdict}".rstrip()


Seconds = dict[str, list[float]]


def in_turns(arms: Mapping[str, Callable[[], object]], repetitions: int, *, warm_up: bool = True) -> Seconds:
    """Seconds of each arm in each repetition; each is run once before, unless it is not to be warmed up."""
    import torch

    if torch.get_num_threads() != 1 and not torch.cuda.is_available():
        raise SystemExit("arms are compared on one core: set OMP_NUM_THREADS=1, as make does")
    if warm_up:
        for arm in arms.values():
            arm()
    seconds: Seconds = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, arm in arms.items():
            started = perf_counter()
            arm()
            seconds[name].append(perf_counter() - started)
    return seconds


def faster(
    name: str, seconds: Seconds, ours: str, other: str, target: float | None = None, scale: float = 1
) -> Ratio:
    """How often ``ours`` is faster than ``other``, whose seconds are multiplied by ``scale`` if it did less."""
    pairs = zip(seconds[ours], seconds[other], strict=True)
    return Ratio(name, tuple(scale * theirs / own for own, theirs in pairs), target)


def record(stage: str, asked: Speed, ratios: Sequence[Ratio], **facts: Any) -> Path:
    """Prints the ratios and writes them with what they were measured on, as STAGE_HARDWARE_DATE.json; the size stands
    after the stage, unless it is that of a laptop."""
    print(f"\n{stage}, {hardware()}")
    for one in ratios:
        print(f"  {one}")
    now = datetime.now(UTC)
    found = {
        "stage": stage,
        "size": asked.size,
        "hardware": hardware(),
        "date": f"{now:%Y-%m-%d}",
        "versions": versions(),
        "ratios": [asdict(one) | {"median": one.middle, "met": one.is_met} for one in ratios],
        **facts,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    size = "" if asked.size == "cpu" else f"-{asked.size}"
    file = asked.out / f"{stage}{size}_{_slug(hardware())}_{now:%Y-%m-%d}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    return file


def hardware() -> str:
    """The GPU, or else the processor and how many cores this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = found[1].replace("(R)", "").replace("(TM)", "") if found else platform.processor()
    return f"{cores} x {name}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def table(folder: Path) -> str:
    """Markdown of the last record of each stage on this hardware."""
    files = {
        file.name.partition("_")[0]: file for file in sorted(folder.glob(f"*_{_slug(hardware())}_*.json"))
    }
    rows = []
    for file in files.values():
        for one in json.loads(file.read_text())["ratios"]:
            span = f"{min(one['ratios']):.2f} to {max(one['ratios']):.2f}"
            verdict = {None: "", True: "met", False: "**missed**"}[one["met"]]
            target = "" if one["target"] is None else f"{one['target']:g}"
            rows.append([one["name"], f"{one['median']:.2f}", span, target, verdict])
    return markdown_table(["what is compared", "median", "range", "target", ""], rows)


if __name__ == "__main__":
    print(table(ROOT / "benchmarks" / "results"))
