"""How time and memory grow with the data, up to CC3M: moments, coresets and prompts of features, and the source path.

    python benchmarks/scale.py --folder FOLDER

Writes a feature store of random features as the feature stage lays it out, and shards of procedural scenes of which one
in a hundred is broken, below FOLDER (14 GB, deleted in the end). Every measurement has a process of its own; its memory
is looked at five times a second, and counts without the pages of files, which the system takes back when it needs them.
Prints a table, and writes docs/scale.json and docs/scale.png; exits with status 1 when memory is not flat or time not
linear. Killed, the same command goes on with what is there; delete FOLDER/scale to give it up.
"""

import json
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from feature_stores import CHUNK_ROWS, DIM, SHARD_ROWS, shards_of, write_features
from markdown_table import markdown_table

from mmdd_ray.config import Data, Features, Run
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.features.coresets import clip_score, herding, k_center, k_means, kept_rows
from mmdd_ray.features.moments import MomentsSum
from mmdd_ray.features.store import FEATURES, FeatureStore, add_table, chunk_file
from mmdd_ray.storage.store import Store

PICKS, CLUSTERS = 20, 500
BROKEN_EVERY = 100
MOST_MEMORY, MOST_TIME = 1.25, 1.5  # of the largest size beside the one before: in all, and for each row
ROW_BYTES = {
    "herding": 110,
    "k-center": 110,
}  # that memory may grow by: scores, and products with likely picks
ROOT = Path(__file__).parents[1]
MIB = 2**20


@dataclass
class Scale:
    """Measures how time and memory grow."""

    folder: Path
    """Where stores and shards are written, and deleted again."""
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000, 3_300_000)
    """Rows of the feature store, in whole shards of 10,000."""
    source_rows: tuple[int, ...] = (10_000, 100_000)
    """Pairs of the source path."""
    out: Path = ROOT / "docs"
    """Folder of scale.json and scale.png."""


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    task: str
    rows: int
    seconds: float
    memory_mib: float
    """Most that all its processes held at once, without pages of files."""
    read_mib: float
    """MiB read from stored files."""


# ---- what is measured: each gives the bytes that it has read


def moments(folder: Path, rows: int) -> int:
    """Sums the moments of shards, as the feature stage does."""
    store = Store(str(folder / "features"))
    total, read = MomentsSum(), 0
    for shard, own in shards_of(rows):
        for number in range(-(-own // CHUNK_ROWS)):
            name = chunk_file(shard, number)
            read += store.sizes(name)[name]
            add_table(total, store.read_parquet(name, FEATURES))
    assert total.moments().count == rows
    return read


def herding_picks(folder: Path, rows: int) -> int:
    """Picks of herding by joint features."""
    herding(_features(folder, rows).joint_features(), PICKS)
    return rows * 2 * DIM * 2


def k_center_picks(folder: Path, rows: int) -> int:
    """Picks of k-center by joint features."""
    k_center(_features(folder, rows).joint_features(), PICKS, seed=0)
    return rows * 2 * DIM * 2


def clip_score_picks(folder: Path, rows: int) -> int:
    """Picks of clip-score from the better half."""
    score_N = _features(folder, rows).clip_scores()
    assert len(clip_score(score_N, PICKS, seed=0, kept=kept_rows(rows, 0.5))) == PICKS
    return rows * 2 * DIM * 2


def prompts(folder: Path, rows: int) -> int:
    """A caption for each k-means cluster of text features."""
    features = _features(folder, rows)
    chosen = k_means(features.caption_features(), CLUSTERS, seed=0)
    assert len(features.captions_at(np.sort(chosen))) == CLUSTERS
    return rows * DIM * 2


def source(folder: Path, rows: int) -> int:
    """The feature stage over tars, with tiny-clip on this machine's cores; broken images are counted."""
    from mmdd_ray.engine.cluster import connected
    from mmdd_ray.engine.run_dir import RunDir
    from mmdd_ray.features.precompute import precompute

    data = Data(uri=f"{folder}/shards-{rows}/*.tar")
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        settings = Run(dir=run_dir + "/run")
        with RunDir.open(settings.dir, "scale", "source", data) as run, connected(settings, run.store):
            stage = run.stage("features", lambda stage: precompute(stage, run.store, data, Features()))
    assert stage.manifest["rows_in"] == rows
    assert stage.manifest["rejects"] == {"not an image": rows // BROKEN_EVERY}
    return sum(file.stat().st_size for file in (folder / f"shards-{rows}").glob("*.tar"))


TASKS: dict[str, Callable[[Path, int], int]] = {
    "moments": moments,
    "herding": herding_picks,
    "k-center": k_center_picks,
    "clip-score": clip_score_picks,
    "prompts": prompts,
    "source": source,
}


class _FirstRows(FeatureStore):
    """The first rows of a feature store."""

    def __init__(self, store: Store, rows: int) -> None:
        super().__init__(store)
        self.files = [
            chunk_file(shard, number)
            for shard, own in shards_of(rows)
            for number in range(-(-own // CHUNK_ROWS))
        ]


def _features(folder: Path, rows: int) -> FeatureStore:
    return _FirstRows(Store(str(folder / "features")), rows)


# ---- what it is measured on


def write_source(folder: Path, rows: int) -> None:
    """Shards of 500 scenes, of which one in a hundred is no image."""
    shards = folder / f"shards-{rows}"
    write_shards(Store(str(shards)), rows, seed=1, layout="webdataset", rows_per_shard=500)
    broken = 0
    for file in sorted(shards.glob("*.tar")):
        content = bytearray(file.read_bytes())
        at = content.find(b"\x89PNG")
        for sample in range(500):
            if sample % BROKEN_EVERY == 0:
                content[at : at + 4] = b"junk"
                broken += 1
            at = content.find(b"\x89PNG", at + 4)
        file.write_bytes(content)
    assert broken == rows // BROKEN_EVERY


def prepare(asked: Scale, folder: Path) -> None:
    """Writes what is measured on, unless it is there."""
    written, rows = folder / "written.json", [[*asked.rows], [*asked.source_rows]]
    if not written.exists():
        write_features(Store(str(folder / "features")), max(asked.rows))
        for count in asked.source_rows:
            write_source(folder, count)
        written.write_text(json.dumps(rows))
    elif json.loads(written.read_text()) != rows:
        raise SystemExit(f"{folder} was written for other rows; delete it first")


# ---- measuring


def measure_all(asked: Scale, folder: Path) -> list[Measured]:
    """Measures what is left to measure; gives all."""
    done = folder / "measured.jsonl"
    found = [Measured(**json.loads(line)) for line in done.read_text().splitlines()] if done.exists() else []
    measured = {(one.task, one.rows) for one in found}
    for task in TASKS:
        for rows in asked.source_rows if task == "source" else asked.rows:
            if (task, rows) not in measured:
                found.append(measure(task, folder, rows))
                line = json.dumps(asdict(found[-1]))
                print(line, flush=True)
                with done.open("a") as lines:
                    lines.write(line + "\n")
    return found


def measure(task: str, folder: Path, rows: int) -> Measured:
    """Runs a task in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, folder, rows, sender))
    process.start()
    sender.close()  # here: a task that fails ends the wait
    assert process.pid is not None
    held: list[int] = []
    done = threading.Event()

    def watch(root: psutil.Process) -> None:
        while not done.wait(0.2):
            held.append(_anonymous_bytes(root))

    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid),))
    watcher.start()
    try:
        seconds, read = receiver.recv()
    finally:
        done.set()
        watcher.join()
        process.join()
    return Measured(task, rows, round(seconds, 2), round(max(held) / MIB, 1), round(read / MIB, 1))


def _work(task: str, folder: Path, rows: int, sender: Any) -> None:
    tempfile.tempdir = str(folder)
    started = time.perf_counter()
    read = TASKS[task](folder, rows)
    sender.send((time.perf_counter() - started, read))


def _anonymous_bytes(root: psutil.Process) -> int:
    """Memory of a process and all its children that is no page of a file and shared by none."""
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            memory = process.memory_info()
            total += max(memory.rss - memory.shared, 0)
    except psutil.NoSuchProcess:
        pass
    return total


def grown(found: list[Measured]) -> list[str]:
    """Tasks whose memory or time for each row grows from their second largest size to their largest."""
    lines = []
    for task in TASKS:
        *_, before, last = sorted((one for one in found if one.task == task), key=lambda one: one.rows)
        by_row = ROW_BYTES.get(task, 0) * (last.rows - before.rows) / MIB
        memory = (last.memory_mib - by_row) / before.memory_mib
        time_a_row = (last.seconds / last.rows) / (before.seconds / before.rows)
        if memory > MOST_MEMORY or time_a_row > MOST_TIME:
            lines.append(
                f"{task}: from {before.rows:,} to {last.rows:,} rows memory grows {memory:.2f} times, and the time for "
                f"a row {time_a_row:.2f} times"
            )
    return lines


def draw(found: list[Measured], path: Path) -> None:
    """Two panels: seconds and memory over rows, a line for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for task in TASKS:
        own = [one for one in found if one.task == task]
        rows = [one.rows for one in own]
        time_axes.plot(rows, [one.seconds for one in own], "o-", label=task)
        memory_axes.plot(rows, [one.memory_mib for one in own], "o-", label=task)
    for axes, name in ((time_axes, "seconds"), (memory_axes, "memory, MiB")):
        axes.set(xscale="log", xlabel="rows", ylabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    time_axes.set_yscale("log")
    memory_axes.set_ylim(bottom=0)
    time_axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def table(found: list[Measured]) -> str:
    """Markdown."""
    head = ["task", "rows", "seconds", "µs a row", "memory, MiB", "read, MiB"]
    rows = [
        [
            one.task,
            f"{one.rows:,}",
            f"{one.seconds:,.1f}",
            f"{1e6 * one.seconds / one.rows:,.1f}",
            f"{one.memory_mib:,.0f}",
            f"{one.read_mib:,.0f}",
        ]
        for one in found
    ]
    return markdown_table(head, rows)


def main() -> int:
    asked = tyro.cli(Scale)
    if min(len(asked.rows), len(asked.source_rows)) < 2:
        raise SystemExit("two sizes at least are needed to see what grows")
    if any(rows % SHARD_ROWS for rows in asked.rows):
        raise SystemExit(f"rows must be multiples of {SHARD_ROWS:,}")
    folder = asked.folder.absolute() / "scale"
    prepare(asked, folder)
    found = measure_all(asked, folder)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "scale.json").write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    draw(found, asked.out / "scale.png")
    print(table(found))
    shutil.rmtree(folder)
    lines = grown(found)
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
