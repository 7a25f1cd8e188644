"""Fixtures that several test files share: one local Ray, one S3 server, the real data where it is at hand."""

import multiprocessing
import os
import runpy
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Ray, OpenMP and botocore read these when they are imported, which happens after this file.
os.environ.update(
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),  # otherwise Ray writes a token file into the home folder
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # 15 would starve the workers beside any other process
    AWS_EC2_METADATA_DISABLED="true",  # no search for an instance role
)


WHOLE_RUNS = {"test_covmatch.py", "test_edge.py", "test_vlcp.py"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several processes the longest files come first, so that all end at about the same time."""
    if hasattr(config, "workerinput"):  # of xdist
        items.sort(key=lambda item: item.path.name not in WHOLE_RUNS)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of 2 CPUs for the whole session."""
    import ray

    folder = tempfile.mkdtemp(
        prefix="ray-", dir="/tmp"
    )  # socket paths end at 107 bytes: tmp_path is too long
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        logging_level="WARNING",
        _temp_dir=folder,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A compiler that changes nothing in place of torch's own, which takes minutes; an entry for each graph."""
    import torch

    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        found.append(1)
        return graph

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compile_module(part, backend=backend))
    return found


@pytest.fixture(scope="session")
def two_ranks() -> Callable[..., object]:
    """Calls a function with each of two ranks and `args`, in processes of their own that need not import first."""
    import torch

    multiprocessing.set_forkserver_preload(
        ["mmdd_ray.models.generators.stable_diffusion", "mmdd_ray.models.students", "ray.data"]
    )
    return partial(torch.multiprocessing.start_processes, nprocs=2, start_method="forkserver")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port that nothing listens on."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def s3_server(free_port: Callable[[], int]) -> Iterator[str]:
    """A local S3 server (moto); the environment points every S3 client of this process to it."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"{endpoint}/moto-api/data.json")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            yield endpoint
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def hub_server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[str, Path]]:
    """Address and folder of a model hub on loopback (hub_server.py); its log is `log` in that folder."""
    port, folder = free_port(), tmp_path / "hub"
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "hub_server.py", folder, str(port), folder / "log"],
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{endpoint}/api/health")
        yield endpoint, folder
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def offline() -> list[str]:
    """Before a command, it has no network but its own loopback. Empty where the system does not let users do that."""
    before = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        subprocess.run([*before, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return before


@pytest.fixture
def job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs ``jobs/<name>.py`` with these arguments in this process; its exit status and what it wrote to stderr."""

    def call(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def kill_at(tmp_path: Path) -> Callable[[Sequence[str], Path, str], None]:
    """Starts a command and sends SIGKILL to it and all its children once the folder has a file of this pattern."""

    def call(command: Sequence[str], folder: Path, pattern: str) -> None:
        log = tmp_path / "killed.log"
        with log.open("w") as lines:
            process = subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines, start_new_session=True)
        deadline = time.monotonic() + 600
        try:
            while not list(folder.glob(pattern)):
                assert process.poll() is None, f"it ended before that: {log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"{folder} never had {pattern}"
                time.sleep(0.02)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return call


class GraphBytes:
    """While it is entered, counts the bytes that autograd holds for backward passes; ``peak`` is the most of them."""

    def __init__(self) -> None:
        self.held = self.peak = 0

    def __enter__(self) -> "GraphBytes":
        import torch

        counter = self

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                counter.held += self.size
                counter.peak = max(counter.peak, counter.held)

            def __del__(self) -> None:
                counter.held -= self.size

        self._hooks = torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


@pytest.fixture
def graph_bytes() -> type[GraphBytes]:
    """``with graph_bytes() as graph: …``, then ``graph.peak``."""
    return GraphBytes


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets, or a skip."""
    folder = Path(os.environ.get("MMDD_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MMDD_REAL_DATA to its folder")
    return folder
