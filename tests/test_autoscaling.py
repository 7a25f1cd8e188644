"""Pools on a cluster that scales by itself: they grow with its machines, and give them back. Ray's fake cloud."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

BIN = Path(sys.executable).parent
HEAD_ID = "f" * 51 + "00000"  # what the fake cloud calls the head

DRIVER = """
import json, sys, threading, time
from pathlib import Path
import ray, torch
from mmdd_ray.engine.cluster import connected
from mmdd_ray.config import Data, Features, Run
from mmdd_ray.features.precompute import precompute
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.storage.store import Store

class Slow:  # until there are two GPUs; a pool grows only while chunks get done
    name = "slow"
    def load(self, device):
        return self
    def encode_images(self, images):
        if not grown.exists():
            time.sleep(2)
        return torch.ones(len(images), 2)
    def encode_texts(self, captions):
        return torch.ones(len(captions), 2)

def look():
    while not done.wait(0.5):
        seen.append(ray.cluster_resources().get("GPU", 0))
        if seen[-1] == 2:
            grown.touch()

store, grown, seen, done = Store(sys.argv[1]), Path(sys.argv[2]), [], threading.Event()
with connected(Run(max_cpus=4, max_gpus=2), store) as devices:
    threading.Thread(target=look).start()
    features = Features(chunk_pairs=10, max_actors=2)
    stage, data = StageDir("features", store, "features"), Data(uri="shapes:1500?seed=1")
    rows = precompute(stage, None, data, features, Slow()).rows_out
    deadline = time.monotonic() + 120
    while seen[-1] and time.monotonic() < deadline:
        time.sleep(1)
    done.set()
    print(json.dumps({"may_have": devices.gpus, "rows": rows, "gpus": seen}))
"""


def fake_cloud(port: int) -> dict:
    """An autoscaler's settings: a head without CPUs, up to one machine of 2 CPUs, and two with a GPU."""

    def machine(resources: dict[str, int], most: int) -> dict:
        held = {**resources, "object_store_memory": 100_000_000}
        return {"resources": held, "node_config": {}, "min_workers": 0, "max_workers": most}

    own = socket.gethostbyname(socket.gethostname())
    empty = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
    empty += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.2,
        "auth": {},
        "head_node_type": "ray.head.default",
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{own}:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": machine({"CPU": 2}, 1),
            "gpu": machine({"CPU": 1, "GPU": 1}, 2),
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty},
    }


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_pool_grows_to_its_maximum_and_gives_the_machines_back(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    settings, folder = tmp_path / "fake.yaml", tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    settings.write_text(yaml.safe_dump(fake_cloud(port)))
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    start = f"start --head --block --port {port} --num-cpus 0 --include-dashboard=false --temp-dir {folder}"
    head = subprocess.Popen(
        [BIN / "ray", *start.split(), f"--autoscaling-config={settings}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        own = socket.gethostbyname(socket.gethostname())
        deadline = time.monotonic() + 120
        while True:  # the head answers before it can be joined
            driver = subprocess.run(
                [sys.executable, "-c", DRIVER, str(tmp_path / "made"), str(tmp_path / "grown")],
                env={**environment, "RAY_ADDRESS": f"{own}:{port}"},
                capture_output=True,
                text=True,
                timeout=480,
                check=False,
            )
            if "no Ray cluster answers" not in driver.stderr or time.monotonic() > deadline:
                break
            time.sleep(1)
        assert driver.returncode == 0, driver.stderr[-3000:]
        seen = json.loads(driver.stdout.splitlines()[-1])
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
    assert (seen["may_have"], seen["rows"]) == (2.0, 1500)
    assert (seen["gpus"][0], max(seen["gpus"]), seen["gpus"][-1]) == (0, 2, 0)
