"""A job that is sent to a running cluster with `ray job submit`, as the README says it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def cluster(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[str, dict[str, str]]]:
    """`ray start --head` with a job server; its address, and the environment to talk to it."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    port, folder = free_port(), tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    started = "start --head --block --port 0 --num-cpus 2 --object-store-memory 300000000 --dashboard-host 127.0.0.1"
    head = subprocess.Popen(
        [
            *(BIN / "ray", *started.split(), "--temp-dir", folder),
            *("--dashboard-port", str(port), "--dashboard-agent-listen-port", str(free_port())),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(request, timeout=2).close()
            break
        except OSError:
            assert head.poll() is None, "ray start failed"
            assert time.monotonic() < deadline
            time.sleep(0.5)
    yield address, environment
    head.terminate()
    head.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_submitted_job_leaves_its_run_in_the_home_folder(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = cluster
    job = ["python", "jobs/precompute.py", "local", "--data.uri", "shapes:60?seed=1"]
    submit = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", *job]
    deadline = time.monotonic() + 120
    while True:
        submitted = subprocess.run(
            submit, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        # the agent that runs jobs comes up some time after the server that takes them
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert "60 rows, 60 usable images, 300 pairs" in submitted.stdout
    run_dir = tmp_path / "mmdd-ray" / "runs" / "precompute-local"
    assert json.loads((run_dir / "features" / "manifest.json").read_text())["rows_out"] == 60
