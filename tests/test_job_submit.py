"""A job that is sent to a running cluster with `ray job submit`, as the README says it; stopped, and shot at."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import psutil
import pytest

from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STORE_BYTES = 300_000_000


def wait_until(met: Callable[[], object], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


class Machines:
    """A cluster of `ray start`, whose head has a job server."""

    def __init__(self, home: Path, free_port: Callable[[], int], head_cpus: int) -> None:
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self._free_port = free_port
        self._gcs_port, port = free_port(), free_port()
        self._folders: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = f"http://127.0.0.1:{port}"
        head = ["--head", "--port", str(self._gcs_port)]
        self._start(*head, "--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), cpus=head_cpus)
        wait_until(self._answers, "the job server answers", 120)

    def _start(self, *arguments: str, cpus: int = 2) -> subprocess.Popen[bytes]:
        size = ["--num-cpus", str(cpus), "--object-store-memory", str(STORE_BYTES)]
        agent = ["--dashboard-agent-listen-port", str(self._free_port())]
        # each machine unpacks working folders in its own, and removes them when it is new
        self._folders.append(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        process = subprocess.Popen(
            [BIN / "ray", "start", "--block", *arguments, *size, *agent, "--temp-dir", self._folders[-1]],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(process)
        return process

    def _answers(self) -> bool:
        token = self.environment["RAY_AUTH_TOKEN"]
        request = urllib.request.Request(
            f"{self.address}/api/version", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            urllib.request.urlopen(request, timeout=2).close()
        except OSError:
            assert self._processes[0].poll() is None, "ray start failed"
            return False
        return True

    def add(self) -> subprocess.Popen[bytes]:
        """Starts another machine, of two CPUs."""
        own = socket.gethostbyname(socket.gethostname())
        machine = self._start("--address", f"{own}:{self._gcs_port}")
        processes = psutil.Process(machine.pid)
        wait_until(lambda: any("raylet/raylet" in title(p) for p in processes.children()), "it joins", 120)
        return machine

    def lose(self, machine: subprocess.Popen[bytes]) -> None:
        """Kills a machine, with all that runs on it; something does."""
        processes = psutil.Process(machine.pid).children(recursive=True)
        titles = [title(process) for process in processes]
        assert any(one.startswith("ray::") and "IDLE" not in one for one in titles), titles
        machine.kill()  # before what it would start again
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        machine.wait()

    def submit(self, *job: str, name: str | None = None) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, which waits for the end; with a `name` it does not."""
        own = ("--submission-id", name, "--no-wait") if name else ()
        submit = [BIN / "ray", "job", "submit", "--address", self.address, *own, "--working-dir", "."]
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run(
                [*submit, "--", "python", *job],
                cwd=ROOT,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            # the agent that runs jobs comes up some time after the server that takes them
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(1)

    def job(self, verb: str, name: str) -> str:
        """What `ray job status`, `stop` or `logs` prints."""
        command = [BIN / "ray", "job", verb, "--address", self.address, name]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        ).stdout

    def close(self) -> None:
        for machine in self._processes:
            with suppress(psutil.NoSuchProcess):  # of those that were lost
                for process in psutil.Process(machine.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            machine.kill()  # asked to end, it would wait half a minute for its tasks
            machine.wait()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machines(
    request: pytest.FixtureRequest, tmp_path: Path, free_port: Callable[[], int]
) -> Iterator[Machines]:
    """A head with the given number of CPUs."""
    started = Machines(tmp_path, free_port, request.param)
    yield started
    started.close()


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("machines", [2], indirect=True)
def test_a_submitted_job_leaves_its_run_in_the_home_folder(machines: Machines, tmp_path: Path) -> None:
    submitted = machines.submit("jobs/precompute.py", "local", "--data.uri", "shapes:60?seed=1")
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert "60 rows, 60 usable images, 60 pairs" in submitted.stdout
    run_dir = tmp_path / "mmdd-ray" / "runs" / "precompute-local"
    assert json.loads((run_dir / "features" / "manifest.json").read_text())["rows_out"] == 60
    failed = machines.submit("jobs/precompute.py", "local", "--data.uri", "no/such.tar")
    assert failed.returncode != 0
    assert "error: data.uri=no/such.tar" in failed.stdout


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machines", [0], indirect=True)  # the head does no work but that of drivers
def test_a_submitted_run_survives_a_stop_and_the_loss_of_its_machine_and_its_driver(
    s3_server: str, machines: Machines, tmp_path: Path
) -> None:
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("job-bucket")
    write_shards(Store("s3://job-bucket/shards"), 200, seed=1, layout="webdataset", rows_per_shard=50)
    small = """
        local --data.uri s3://job-bucket/shards/{00000..00003}.tar --finetune.steps 12 --finetune.checkpoint_steps 2
        --captions.per_image 2
        --finetune.batch_pairs 8 --synthesis.pairs 24 --synthesis.candidates_per_image 2 --synthesis.batch_images 6
        --synthesis.inference_steps 10 --evaluation.seeds 1 --evaluation.max_pairs 40 --students.steps 4
        --evaluation.val shapes:40?seed=2 --evaluation.test shapes:40?seed=3
    """.split()  # noqa: SIM905
    edge = ("jobs/edge_cc3m.py", *small)
    whole = ["--run.num_cpus", "2", "--run.dir", str(tmp_path / "whole")]
    undisturbed = subprocess.run(
        [sys.executable, *edge, *whole], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]

    machine = machines.add()
    run = Store("s3://job-bucket/run")

    def submit(name: str) -> None:
        submitted = machines.submit(*edge, "--run.dir", run.uri, name=name)
        assert submitted.returncode == 0, submitted.stderr[-3000:]

    def wait_for(name: str) -> None:
        wait_until(lambda: run.files(name), f"{name} in the run directory")

    def ends(name: str, how: str) -> None:
        ended = re.compile(rf"Job '{name}' (succeeded|failed|was stopped)")
        wait_until(lambda: ended.search(machines.job("status", name)), f"{name} ends", 600)
        assert f"Job '{name}' {how}" in machines.job("status", name), machines.job("logs", name)[-3000:]

    submit("first")
    wait_for("features")
    machines.job("stop", "first")
    ends("first", "was stopped")

    submit("second")
    wait_for("finetune/checkpoints")
    machines.lose(machine)
    machines.add()
    wait_for("synthesize")
    (driver,) = (
        process
        for process in psutil.process_iter()
        if title(process).startswith("python jobs/edge_cc3m.py") and run.uri in title(process)
    )
    driver.kill()
    ends("second", "failed")
    assert not run.exists("synthesize/manifest.json")

    submit("third")
    ends("third", "succeeded")
    made = [store.read_json("distilled/manifest.json") for store in (run, Store(str(tmp_path / "whole")))]
    assert made[0]["checksum"] == made[1]["checksum"]
    assert "finetune     done already" in machines.job("logs", "third")
