"""Processes that die, hang or find no room: Ray makes up for it, or the run stops with one sentence."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext

from mmdd_ray.cli import main
from mmdd_ray.config import Features, Finetune
from mmdd_ray.engine import cluster
from mmdd_ray.engine.actor_pool import BatchActor, Rows, read_batches, run_batches
from mmdd_ray.engine.cluster import ActorPool
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.store import Store

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

ROWS = [{"index": index} for index in range(8)]


def pool(num_gpus: float = 0) -> ActorPool:
    return {"compute": ActorPoolStrategy(min_size=1, max_size=1), "num_cpus": 0.5, "num_gpus": num_gpus}


class Doubler(BatchActor):
    """Doubles. For each file ``start-…`` or ``work-…`` in a folder its process is killed once there, for each
    ``load-…`` its constructor raises once, and while there is ``hang``, it hangs.
    """

    def __init__(self, store: Store, orders: Path) -> None:
        super().__init__(store)
        self._orders = orders
        self._obey("start")
        for order in self._orders.glob("load-*"):
            order.unlink()
            raise StorageError("storage failed while reading s3://bucket/model")

    def work(self, number: int, rows: Rows) -> pa.Table:
        self._obey("work")
        if (self._orders / "hang").exists():
            threading.Event().wait()
        return pa.Table.from_pylist([{"doubled": 2 * row["index"]} for row in rows])

    def _obey(self, where: str) -> None:
        for order in self._orders.glob(f"{where}-*"):
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def double(tmp_path: Path, *orders: str, num_gpus: float = 0) -> list[int]:
    """What the pool makes of the rows."""
    folder, store = tmp_path / "orders", Store(str(tmp_path / "made"))
    folder.mkdir(exist_ok=True)
    for name in orders:
        (folder / name).touch()
    run_batches(
        "double",
        ROWS,
        Doubler,
        batch_rows=2,
        unit="rows",
        store=store,
        pool=pool(num_gpus),
        orders=folder,
    )
    return read_batches(store)["doubled"].to_pylist()


def stopped(capsys: pytest.CaptureFixture[str], tmp_path: Path, *orders: str, num_gpus: float = 0) -> str:
    """What a job whose pool ends with an error shows."""
    assert main(lambda: double(tmp_path, *orders, num_gpus=num_gpus) and None) == 1
    return capsys.readouterr().err


DOUBLED = [2 * row["index"] for row in ROWS]


def test_actors_that_die_are_replaced(ray_cluster: None, tmp_path: Path) -> None:
    assert double(tmp_path, "start-0", "load-0", "load-1", "work-0") == DOUBLED
    assert not list((tmp_path / "orders").iterdir())


def test_actors_that_never_get_to_work_stop_the_run(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = [f"load-{number}" for number in range(10)]
    shown = stopped(capsys, tmp_path, *attempts)
    assert "error: storage failed while reading s3://bucket/model; run the same command again" in shown
    left = list((tmp_path / "orders").iterdir())
    assert len(left) == len(attempts) - cluster.ACTOR_RETRIES - 1
    for order in left:
        order.unlink()
    assert double(tmp_path) == DOUBLED


def test_a_task_that_hangs_stops_the_run_with_a_sentence(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 15.0)
    shown = stopped(capsys, tmp_path, "hang")
    assert "error: no progress for run.stall_minutes" in shown
    assert "Traceback" not in shown
    (tmp_path / "orders" / "hang").unlink()
    assert double(tmp_path) == DOUBLED


def test_a_stage_that_waits_for_machines_says_for_which(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DataContext.get_current(), "execution_no_progress_timeout_s", 20.0)
    monkeypatch.setattr("mmdd_ray.engine.progress.SILENT_S", 3.0)
    assert (
        "double       waits for machines: no room for 1 x 0.5 CPU and 1 GPU on this cluster, which has 2 CPUs and "
        "0 GPUs now, in use or not" in stopped(capsys, tmp_path, num_gpus=1)
    )


@dataclass(frozen=True)
class Sections:
    features: Features = field(default_factory=Features)
    finetune: Finetune = field(default_factory=Finetune)


def test_an_actor_that_no_machine_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 4
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    cluster.check_machines(Sections())
    with pytest.raises(UserError, match=r"finetune\.gpus_per_worker=2, but no machine .* more than 1 GPUs"):
        cluster.check_machines(Sections(finetune=Finetune(gpus_per_worker=2)))
    monkeypatch.setitem(cluster._growth, "GPU", 16)  # larger ones may come
    cluster.check_machines(Sections(finetune=Finetune(gpus_per_worker=2)))


HOG = """
import os, sys, time
import psutil

memory = psutil.virtual_memory()
share = (memory.total - memory.available + 3 * 2**30) / memory.total
os.environ.update(RAY_memory_usage_threshold=str(share), RAY_memory_monitor_refresh_ms="100")

from mmdd_ray import cli
from mmdd_ray.engine.cluster import connected
from mmdd_ray.config import Run
from mmdd_ray.storage.store import Store

def hold():
    held = []
    while True:
        held.append(b"1" * (100 * 2**20))
        time.sleep(0.05)

def job():
    with connected(Run(num_cpus=1), Store(sys.argv[1])):
        import ray

        ray.get(ray.remote(max_retries=5)(hold).remote())

raise SystemExit(cli.main(job))
"""


@pytest.mark.chaos
def test_a_task_too_large_for_its_machine_stops_the_run(tmp_path: Path) -> None:
    """Ray kills what takes more than its machine has, and would start it again for ever."""
    command = [sys.executable, "-c", HOG, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 1, ended.stderr[-3000:]
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("error: a machine ran out of memory, again and again; lower the batches")
    assert "Traceback" not in ended.stderr


RECLAIMED = """
import subprocess, sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from mmdd_ray.config import Training
from mmdd_ray.storage.store import Store
from mmdd_ray.engine.ray_train import Placement, train

folder, ray_cli, notice = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "notice"
size = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
machines = [cluster.add_node(num_cpus=2, **size) for _ in range(2)]
ray.init(address=cluster.address)

def reclaim():
    while not list(folder.glob("checkpoints/checkpoint_*")):
        time.sleep(0.1)
    (machine,) = [one for one in machines if one.node_id == (folder / "machine").read_text()]
    if notice:
        said = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds 5"
        where = ["--address", cluster.address, "--node-id", machine.node_id]
        subprocess.run([ray_cli, "drain-node", *where, *said.split()], check=True)
        time.sleep(5)
    cluster.remove_node(machine, allow_graceful=False)

def work(worker, job):
    state = worker.restored("state.pt") or {"step": 0}
    began = state["step"]
    (folder / "machine").write_text(ray.get_runtime_context().get_node_id())
    def steps():
        for state["step"] in range(began + 1, 41):
            time.sleep(0.5)
            yield {"step": state["step"], "total": 0.0}
    worker.run_steps(steps(), lambda: {"state.pt": dict(state)})
    return {"began": began}

threading.Thread(target=reclaim, daemon=True).start()
training = Training(max_failures=0)
placement = Placement(section="finetune", training=training, memory_setting="x", steps=40, checkpoint_steps=2)
print(train(work, None, placement, store=Store(str(folder))), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.chaos
@pytest.mark.parametrize("notice", ["notice", "none"])
def test_a_machine_that_is_taken_back_with_a_notice_is_no_failure(tmp_path: Path, notice: str) -> None:
    """With no failure allowed: Ray counts machines that are drained for their cloud apart from those that are lost."""
    command = [
        sys.executable,
        "-c",
        RECLAIMED,
        str(tmp_path),
        str(Path(sys.executable).parent / "ray"),
        notice,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    if notice == "notice":
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert re.search(r"'began': [1-9]", ended.stdout), ended.stdout
    else:
        assert ended.returncode == 1, ended.stdout
        assert "WorkerGroupError" in ended.stderr
