"""What fits on a cluster, and that actors always leave a CPU to the tasks that feed them."""

import os
import subprocess
import sys
import time

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from mmdd_ray import cli
from mmdd_ray.config import Run
from mmdd_ray.engine import cluster
from mmdd_ray.storage.store import Store

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("cpus", "gpus", "gpus_per_actor", "num_cpus", "num_gpus", "fit"),
    [
        (2, 0, 1.0, 1.0, 0, 1),  # a laptop runs the pool on its CPUs
        (1, 0, 1.0, 0.5, 0, 1),
        (16, 0, 0.0, 1.0, 0, 15),
        (16, 1, 1.0, 1.0, 1.0, 1),
        (2, 1, 0.5, 0.5, 0.5, 2),
        (96, 8, 0.5, 1.0, 0.5, 16),
        (8, 8, 1.0, 0.87, 1.0, 8),  # 7 CPUs for 8 actors
        (64, 8, 2.0, 1.0, 2.0, 4),
        (64, 8, 0.0, 1.0, 0, 63),
    ],
)
def test_actors_fit_and_leave_a_cpu_free(monkeypatch, cpus, gpus, gpus_per_actor, num_cpus, num_gpus, fit):
    monkeypatch.setattr(cluster, "devices", lambda: cluster.Devices(cpus=cpus, gpus=gpus, gpu_types=()))
    each = cluster.actor_resources(gpus_per_actor)
    assert each == {"num_cpus": num_cpus, "num_gpus": num_gpus}
    assert cluster.pool_size(None, gpus_per_actor) == fit
    assert cluster.pool_size(1000, gpus_per_actor) == fit
    assert cluster.pool_size(1, gpus_per_actor) == 1
    assert fit * each["num_cpus"] <= max(cpus - 1, 0.5)


def test_devices_are_those_of_the_connected_cluster(ray_cluster, tmp_path):
    # connected already: joins that, and leaves it running
    with cluster.connected(Run(num_cpus=7), Store(str(tmp_path))) as devices:
        assert devices == cluster.Devices(cpus=2.0, gpus=0.0, gpu_types=())
    assert cluster.devices() == devices


def test_tasks_that_wait_for_others_are_told_from_those_that_no_machine_can_hold(ray_cluster, tmp_path):
    end = tmp_path / "end"

    @ray.remote(num_cpus=2)
    def work() -> None:
        while not end.exists():
            time.sleep(0.1)

    def tells(expected: str) -> None:
        deadline = time.monotonic() + 60
        while (found := cluster.missing()) != expected:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    size = "on this cluster, which has 2 CPUs and 0 GPUs now"
    tasks = [work.remote() for _ in range(2)]
    gang = None
    try:
        tells(f"a turn: 1 x 2 CPU {size}")
        gang = placement_group([{"CPU": 2}, {"CPU": 1}])  # each of which some machine could hold
        tells(f"machines: no room for 1 x 2 CPU, 1 x 1 CPU {size}, in use or not")
    finally:
        end.touch()
        ray.get(tasks)
        if gang:
            remove_placement_group(gang)


@pytest.mark.parametrize("misses", [1, 2])
def test_a_ray_that_is_late_has_another_try(monkeypatch, capsys, misses):
    tries = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) <= misses:
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    status = cli.main(lambda: cluster._start_local(Run(), {}))
    assert len(tries) == 2
    if misses == 1:
        assert status == 0
    else:
        assert status == 1
        assert capsys.readouterr().err.startswith("error: Ray did not start on this machine")


def test_processes_have_a_thread_for_each_cpu_whatever_the_shell_says() -> None:
    """Sums over more threads round otherwise, and the same settings are to give the same bytes."""
    code = (
        "import ray; from mmdd_ray.config import Run; from mmdd_ray.engine.cluster import connect\n"
        "connect(Run(num_cpus=1, object_store_mib=80)); import os\n"
        "threads = ray.remote(lambda: __import__('torch').get_num_threads())\n"
        "print(ray.get(threads.remote()), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.split() == ["1", "2"]


def test_an_address_of_another_kind_is_the_users_mistake(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ValueError, match=r"run\.ray_address=http://127\.0\.0\.1:8265 is no host:port"):
        cluster.connect(Run())


TWO_MACHINES = """
import sys
from ray.cluster_utils import Cluster
from mmdd_ray import config
from mmdd_ray.engine import cluster
from mmdd_ray.storage.store import Store

machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
machines.add_node(num_cpus=1)
for folder in sys.argv[1:]:
    try:
        with cluster.connected(config.Run(ray_address=machines.address), Store(folder)):
            print("seen")
    except ValueError as error:
        print(error)
machines.shutdown()
"""


@pytest.mark.timeout(300)
def test_a_run_directory_that_a_machine_does_not_see_is_refused(tmp_path):
    missing = tmp_path / "missing"
    shown = subprocess.run(
        [sys.executable, "-c", TWO_MACHINES, str(tmp_path), str(missing)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    ).stdout
    assert shown.splitlines()[0] == "seen"
    assert f"run.dir={missing} is not seen by 1 of the cluster's 2 machines" in shown


def test_runs_that_are_to_have_no_network_have_none(offline):
    if not offline:
        pytest.skip("this system lets no user make a namespace without a network")
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    failed = subprocess.run(
        [*offline, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "Network is unreachable" in failed.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_answers_fails_at_once(address):
    script = (
        "from mmdd_ray import config; from mmdd_ray.engine import cluster; "
        f"cluster.connect(config.Run(ray_address={address!r}))"
    )
    failed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"UserError: run.ray_address={address}: no Ray cluster answers there" in failed.stderr


VERBOSE = """
import sys
from mmdd_ray.config import Run
from mmdd_ray.engine.cluster import connected
from mmdd_ray.storage.store import Store
with connected(Run(num_cpus=1, verbose=sys.argv[1] == "-v"), Store(sys.argv[2])):
    import ray.data
    ray.data.range(2).materialize()
"""


@pytest.mark.parametrize("asked", ["", "-v"])
def test_logs_of_ray_are_shown_on_request(asked, tmp_path):
    shown = subprocess.run(
        [sys.executable, "-c", VERBOSE, asked, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0, shown.stderr
    for log in ("Started a local Ray instance", "execution finished"):
        assert (log in shown.stderr) == (asked == "-v"), shown.stderr
