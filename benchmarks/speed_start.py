"""How long a user waits on a laptop: for the stages of the local presets, for their start, and for `--help`.

    python benchmarks/speed_start.py
    python benchmarks/speed_start.py --before FOLDER     # beside another checkout, in turns

The start of a stage is what it takes beside its work at a steady pace, as its manifest says: processes, imports,
models. Presets of other commits may do other work, so starts are compared with them, and students where there are
as many sets.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tyro
from speed import ROOT, Ratio, Speed, record

JOBS = {"edge_cc3m": "EDGE", "covmatch_flickr30k": "CovMatch", "vlcp_imagenette": "VLCP"}
MOST_S, HELP_S = 180, 1
HELPS = 10


@dataclass(kw_only=True)
class StartSpeed(Speed):
    """Times the start of stages, and whole local presets."""

    repetitions: int = 1
    """How often every preset is run; minutes each."""
    before: Path | None = None
    """A checkout of another commit, which uses the same packages."""
    jobs: tuple[str, ...] = tuple(JOBS)
    """Whose local presets are run."""


def help_seconds() -> float:
    started = perf_counter()
    subprocess.run(
        [sys.executable, "jobs/edge_cc3m.py", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return perf_counter() - started


def stages_of(tree: Path, job: str) -> dict[str, dict[str, float]]:
    """Seconds of each stage of a local preset that computed anything, and of its start."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"jobs/{job}.py", "local", "--run.dir", f"{folder}/run"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        manifests = [json.loads(file.read_text()) for file in Path(folder, "run").glob("*/manifest.json")]
    stages = [one for one in manifests if "seconds" in one]
    return {
        one["stage"]: {
            "seconds": one["seconds"],
            "start": one["startup_seconds"] or 0.0,
            "sets": one["rows_out"],  # of the last stage
        }
        for one in stages
    }


def main() -> None:
    asked = tyro.cli(StartSpeed)
    helps = [help_seconds() for _ in range(HELPS)]
    ratios = [Ratio("start: 1 s over that of --help", tuple(HELP_S / one for one in helps), 1.0)]
    trees = {"now": ROOT} | ({"before": asked.before.absolute()} if asked.before else {})
    found: dict[str, dict[str, list[dict[str, dict[str, float]]]]] = {}
    if asked.size != "tiny":
        for job in asked.jobs:
            title = JOBS[job]
            runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
            for _ in range(asked.repetitions):
                for name, tree in trees.items():
                    runs[name].append(stages_of(tree, job))
            found[job] = runs
            seconds = [sum(stage["seconds"] for stage in run.values()) for run in runs["now"]]
            ratios.append(
                Ratio(f"start: 180 s over the stages of {title}", tuple(MOST_S / s for s in seconds), 1.0)
            )
            if asked.before:
                ratios += [*_starts(title, runs), *_students(title, runs)]
    stage = "-".join(["start", *(asked.jobs if asked.jobs != tuple(JOBS) else ())])
    record(stage, asked, ratios, help_seconds=helps, stages=found)


def _starts(title: str, runs: dict[str, list[dict[str, dict[str, float]]]]) -> list[Ratio]:
    """The starts of the other checkout over those of this one: of each stage that both have, and of all these."""
    both = [
        name for name in runs["now"][0] if name in runs["before"][0] and runs["before"][0][name]["start"] > 1
    ]

    def starts(run: dict[str, dict[str, float]], names: list[str]) -> float:
        return sum(run[name]["start"] for name in names)

    pairs = list(zip(runs["now"], runs["before"], strict=True))
    return [
        Ratio(
            f"start: of {title}'s {' and '.join(names) if len(names) == 1 else 'stages together'}, before over now",
            tuple(starts(before, names) / starts(now, names) for now, before in pairs),
            target,
        )
        for names, target in [*(([name], None) for name in both), (both, 2.0)]
    ]


def _students(title: str, runs: dict[str, list[dict[str, dict[str, float]]]]) -> list[Ratio]:
    """How often the students of a preset are faster than in the other checkout, where it compares as many sets."""
    pairs = [
        (before["evaluate"], now["evaluate"]) for before, now in zip(runs["before"], runs["now"], strict=True)
    ]
    if any(before["sets"] != now["sets"] for before, now in pairs):
        return []
    seconds = tuple(before["seconds"] / now["seconds"] for before, now in pairs)
    return [Ratio(f"start: students of {title}, before over now", seconds, 1.5)]


if __name__ == "__main__":
    main()
