"""The fate of runs that lose workers, actors, machines and drivers, in every stage of every method.

    python benchmarks/chaos.py --out runs/chaos

First each method runs undisturbed. Then, in each round, a run of each method meets one fault in every stage, at a
random moment of it: SIGKILL to a process that works off a task, to one that holds an actor, to the driver, or to a
machine of a cluster of two (another takes its place). A driver that is gone, or has given up, is started again with the
same command, as a user would. The faults of a stage change from round to round.

A run has survived when its distilled set has the bytes of the undisturbed one. Prints a table, and exits with status 1
when a run was lost. Killed itself, the same command goes on with the rounds that are left; after the last one it begins
anew.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import tyro
from markdown_table import markdown_table
from ray.cluster_utils import Cluster

from mmdd_ray.engine.environment import set_environment
from mmdd_ray.engine.run_dir import MANIFEST, STARTED

ROOT = Path(__file__).parents[1]
MACHINES, MACHINE = 2, {"num_cpus": 1, "object_store_memory": 200 * 2**20}
LOOK_EVERY_S = 0.02
SILENCE_S = 600  # a run that has not ended so long after its last fault is lost
NOBODY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # whose loss is that of the machine
ACTOR = re.compile(
    r"ray::(MapWorker|_?[A-Z]\w*(\.|$))"
)  # ray::Class.method; a task is ray::function, or Map(…)

Fault = Literal["task", "actor", "machine", "driver"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

STUDENTS = """--evaluation.seeds 1 --evaluation.max_pairs 40 --evaluation.baselines random --students.steps 4
    --students.learning_rates 0.1"""
SCENES = "--data.uri shapes:400?seed=1"
METHODS = {
    "edge_cc3m": f"""{SCENES} {STUDENTS} --features.chunk_pairs 64
        --finetune.steps 12 --finetune.checkpoint_steps 2 --finetune.batch_pairs 8 --synthesis.pairs 24
        --captions.per_image 2
        --synthesis.candidates_per_image 2 --synthesis.clip_score_fraction 0.75
        --synthesis.batch_images 6 --synthesis.inference_steps 10
        --features.clip_score_fraction 0.5 --refine.iterations 12 --refine.real_batch 16
        --refine.checkpoint_iterations 2 --refine.real_moments batches --refine.encoder_updates""",
    "covmatch_flickr30k": f"""{SCENES} {STUDENTS} --features.chunk_pairs 64 --match.pairs 12 --match.iterations 12
        --match.real_batch 16 --match.restart_iterations 4 --match.checkpoint_iterations 2
        --match.real_moments whole --match.encoder_updates""",
    "vlcp_imagenette": """--data.uri shapes:400?seed=1&labelled=1 --features.chunk_pairs 64 --finetune.steps 6
        --finetune.checkpoint_steps 1 --prototypes.images_per_class 2 --prototypes.chunk_images 64
        --synthesis.inference_steps 10 --synthesis.batch_images 12 --classifiers.steps 6 --classifiers.width 16
        --evaluation.seeds 1 --evaluation.max_pairs 60 --evaluation.baselines random""",
}


@dataclass
class Chaos:
    """Breaks runs, and looks at what becomes of them."""

    out: Path = Path("runs/chaos")
    """Folder of the runs and of the records."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Jobs to break."""
    rounds: int = len(FAULTS)
    """Disturbed runs of each method; with four, every stage meets every fault."""
    seed: int = 0
    """Seed of the moments at which faults strike."""


@dataclass
class Struck:
    """A fault that struck."""

    stage: str
    fault: Fault
    what: str
    """Title of the process."""
    seconds: float
    """Into the stage."""


@dataclass
class Outcome:
    """The outcome of a disturbed run."""

    method: str
    round: int
    struck: list[Struck] = field(default_factory=list)
    restarts: int = 0
    """How often the driver was started again."""
    said: list[str] = field(default_factory=list)
    """Last lines of drivers that gave up by themselves."""
    seconds: float = 0.0
    ended: Literal["same bytes", "other bytes", "hung", "gave up"] = "hung"


class Machines:
    """A Ray cluster on this machine: a head without CPUs, where drivers run, and machines that may be lost."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": 200 * 2**20,
                "include_dashboard": False,
                "temp_dir": tempfile.mkdtemp(prefix="ray-", dir="/tmp"),
            },
        )
        self._nodes = [self._cluster.add_node(**MACHINE) for _ in range(MACHINES)]
        self.address: str = self._cluster.address

    def lose(self, rng: random.Random) -> str:
        """Kills one with all that runs on it, and adds another."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        lost = len(_workers(node))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(**MACHINE))
        return f"{lost} processes"

    def workers(self) -> dict[psutil.Process, str]:
        """The processes of tasks and actors, and their titles."""
        nodes = [self._cluster.head_node, *self._nodes]
        return {process: title for node in nodes for process, title in _workers(node).items()}

    def close(self) -> None:
        self._cluster.shutdown()


def _workers(node: Any) -> dict[psutil.Process, str]:
    found = []
    for started in node.all_processes.get("raylet", []):
        try:
            found += psutil.Process(started.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
    titles = {process: _title(process) for process in found}
    return {process: title for process, title in titles.items() if title.startswith("ray::")}


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


@contextmanager
def machines() -> Iterator[Machines]:
    # losses are noticed after three seconds, not after thirty
    os.environ |= {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_worker_niceness": "0",
    }
    set_environment()
    made = Machines()
    try:
        yield made
    finally:
        made.close()


def start(method: str, run_dir: Path, address: str, log: Path) -> subprocess.Popen[bytes]:
    """Starts the driver of a run, or starts it again."""
    command = [
        sys.executable,
        f"jobs/{method}.py",
        "local",
        "--run.dir",
        str(run_dir),
        *METHODS[method].split(),
    ]
    with log.open("ab") as lines:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address}, stdout=lines, stderr=lines
        )


def checksum(run_dir: Path) -> str:
    return json.loads((run_dir / "distilled" / MANIFEST).read_text())["checksum"]


def running_stage(run_dir: Path) -> str | None:
    """The stage that has started and is not done."""
    started = (file.parent for file in run_dir.glob(f"*/{STARTED}"))
    return next((folder.name for folder in started if not (folder / MANIFEST).exists()), None)


def undisturbed(method: str, out: Path, address: str) -> tuple[str, dict[str, float]]:
    """Checksum of a run that nothing happens to, and the seconds of its stages."""
    run_dir, log = out / method, out / f"{method}.log"
    if start(method, run_dir, address, log).wait():
        raise SystemExit(f"error: the undisturbed run of {method} failed; look at {log}")
    manifests = [json.loads(file.read_text()) for file in run_dir.glob(f"*/{MANIFEST}")]
    return checksum(run_dir), {one["stage"]: one["seconds"] for one in manifests if "stage" in one}


def strike(
    fault: Fault, since: float, cluster: Machines, driver: subprocess.Popen[bytes], rng: random.Random
) -> str:
    """Lets the fault strike; gives what it hit, or nothing where there was nothing to hit.

    Processes that were started after ``since``, seconds since the epoch, are hit first: others may be left over from
    earlier stages.
    """
    if fault == "machine":
        return cluster.lose(rng)
    if fault == "driver":
        driver.kill()
        return "driver"
    titles = {p: title for p, title in cluster.workers().items() if title not in NOBODY and p.is_running()}
    fit = [process for process, title in titles.items() if bool(ACTOR.match(title)) == (fault == "actor")]
    if not fit:
        return ""
    hit = rng.choice([process for process in fit if process.create_time() > since] or fit)
    hit.kill()
    return titles[hit]


def disturb(
    method: str,
    number: int,
    expected: str,
    seconds: dict[str, float],
    out: Path,
    cluster: Machines,
    seed: int,
) -> Outcome:
    """A run with one fault in each stage."""
    run_dir, log = out / f"{method}-{number}", out / f"{method}-{number}.log"
    rng, began = random.Random(f"{seed} {method} {number}"), time.monotonic()
    outcome = Outcome(method, number)
    faults = {
        stage: (FAULTS[(place + number) % len(FAULTS)], rng.uniform(0, seconds[stage]))
        for place, stage in enumerate(seconds)
    }
    driver = start(method, run_dir, cluster.address, log)
    seen: dict[str, float] = {}
    quiet_since = time.monotonic()
    try:
        while time.monotonic() - quiet_since < SILENCE_S:
            if (status := driver.poll()) is not None:
                if status == 0:
                    outcome.ended = "same bytes" if checksum(run_dir) == expected else "other bytes"
                    break
                if status > 0:  # it ended by itself
                    outcome.said.append(
                        f"{status}: {log.read_text(errors='replace').strip().splitlines()[-1]}"
                    )
                if outcome.restarts > len(seconds):
                    outcome.ended = "gave up"
                    break
                outcome.restarts += 1
                driver = start(method, run_dir, cluster.address, log)
            stage = running_stage(run_dir)
            if stage in faults:
                since = seen.setdefault(stage, time.time())
                into = time.time() - since
                fault, at = faults[stage]
                if into >= at and (what := strike(fault, since, cluster, driver, rng)):
                    outcome.struck.append(Struck(stage, fault, what, round(into, 2)))
                    del faults[stage]
                    quiet_since = time.monotonic()
            time.sleep(LOOK_EVERY_S)
    finally:
        driver.kill()
        driver.wait()
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def measure(asked: Chaos) -> list[dict[str, Any]]:
    """Runs the rounds that are left; gives the outcomes of all."""
    out = asked.out.absolute()
    records = out / "outcomes.jsonl"
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    have = {(one["method"], one["round"]) for one in done}
    wanted = {(method, number) for method in asked.methods for number in range(asked.rounds)}
    if wanted and wanted <= have:  # only what is measured again goes
        for left in (path for method in asked.methods for path in out.glob(f"{method}*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        done = [one for one in done if one["method"] not in asked.methods]
        have -= wanted
        records.write_text("".join(f"{json.dumps(one)}\n" for one in done))
    out.mkdir(parents=True, exist_ok=True)
    with machines() as cluster:
        for method in asked.methods:
            expected, seconds = undisturbed(method, out, cluster.address)
            for number in range(asked.rounds):
                if (method, number) in have:
                    continue
                outcome = disturb(method, number, expected, seconds, out, cluster, asked.seed)
                with records.open("a") as lines:
                    print(json.dumps(asdict(outcome)), file=lines)
                done.append(asdict(outcome))
                print(
                    f"{method} {number}: {len(outcome.struck)} faults, {outcome.restarts} restarts, "
                    f"{outcome.seconds:.0f} s, {outcome.ended}",
                    flush=True,
                )
    return done


def table(done: list[dict[str, Any]]) -> str:
    """A Markdown table: faults by method and kind, and how the runs ended."""
    head = ["method", "runs", *FAULTS, "faults", "driver gave up and went on", "same bytes"]
    rows = []
    for method in [*METHODS, "all"]:
        own = [one for one in done if method in (one["method"], "all")]
        kinds = Counter(struck["fault"] for one in own for struck in one["struck"])
        survived = sum(one["ended"] == "same bytes" for one in own)
        said = sum(len(one["said"]) for one in own)
        counts = [len(own), *(kinds[fault] for fault in FAULTS), kinds.total(), said, survived]
        rows.append([method, *map(str, counts)])
    return markdown_table(head, rows)


def main() -> int:
    done = measure(tyro.cli(Chaos))
    print(f"\n{table(done)}")
    lost = [one for one in done if one["ended"] != "same bytes"]
    for one in lost:
        print(f"lost: {one['method']} {one['round']}: {one['ended']}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
