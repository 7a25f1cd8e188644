"""Object stores that throttle, break connections, refuse, or are killed in the middle of an upload."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from mmdd_ray.config import Data
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.data.shards import list_shards
from mmdd_ray.engine.run_dir import RunDir
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.methods.precompute.presets import local as precompute_local
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
SECRET = "wJalrXUtnFEMI-a-secret-that-nobody-may-see"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FORBIDDEN = b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist.</Message></Error>"


class Gate:
    """Before a WSGI application; ``judge`` gets the number and the environment of each request, and may spoil it."""

    def __init__(self, application: Any) -> None:
        self.requests = 0
        self.judge: Callable[[int, dict[str, Any]], str] = lambda number, request: "pass"
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        verdict = self.judge(self.requests, environ)
        if verdict == "pass":
            return self._application(environ, start_response)
        if verdict == "break":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError  # what the server takes for a client that has gone
        if verdict == "hang":
            time.sleep(60)
        # an answer before the body was read leaves client and server waiting for each other
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, body = ("403 Forbidden", FORBIDDEN) if verdict == "forbid" else ("503 Slow Down", SLOW_DOWN)
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        # a body that follows a HEAD would be taken for the next answer of the connection
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class Silent(WSGIRequestHandler):
    def log(self, *args: Any, **kwargs: Any) -> None:
        pass


def backend() -> Any:
    """What moto's S3 of this process holds."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gate]:
    """A local S3 behind a gate, with the bucket ``bucket``; the environment points to it."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    backend().reset()
    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
    yield gate
    gate.judge = lambda number, request: "pass"
    server.shutdown()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def now_and_then(number: int, request: dict[str, Any]) -> str:
    """Every seventh request is throttled, every eleventh breaks off."""
    return "slow" if number % 7 == 0 else "break" if number % 11 == 0 else "pass"


def test_throttling_and_broken_connections_are_waited_out(gate: Gate, tmp_path: Path) -> None:
    write_shards(Store(str(tmp_path / "tars")), 60, seed=1, layout="webdataset", rows_per_shard=20)
    store = Store("s3://bucket/run")
    gate.judge = now_and_then
    for number in range(6):
        store.write_bytes(f"deep/{number:02d}", bytes([number]) * 1000)
    assert store.files() == [f"deep/{number:02d}" for number in range(6)]
    assert [store.read_bytes(name)[0] for name in store.files()] == list(range(6))
    store.upload_folder(tmp_path / "tars", "tars")
    assert sorted(p.name for p in store.fetch("tars").glob("*.tar")) == [
        "00000.tar",
        "00001.tar",
        "00002.tar",
    ]
    store.remove("deep")
    assert store.entries() == ["tars"]
    data = Data(uri="s3://bucket/run/tars/{00000..00002}.tar")
    rows = [row for shard in list_shards(data) for row in iter_shard(shard, data)]
    assert [row.reject for row in rows] == [None] * 60
    assert gate.requests > 40


def test_a_store_that_always_throttles_is_given_up(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    # of botocore, and s3fs tries that again; 5 take four times as long
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = Store("s3://bucket/run")
    store.write_bytes("file", b"x")
    gate.judge = lambda number, request: "slow"
    for doing in (
        lambda: store.write_bytes("other", b"y"),
        lambda: store.read_bytes("file"),
        lambda: store.exists("other"),
        store.files,
    ):
        started = time.monotonic()
        # the answer to a HEAD has no body to say more than its status
        saying = r"^storage failed while \w.* s3://bucket/run.*: .*(rate|Service Unavailable)"
        with pytest.raises(StorageError, match=saying):
            doing()
        assert time.monotonic() - started < 60
    gate.judge = lambda number, request: "pass"
    assert store.files() == ["file"]


def only_with_key(number: int, request: dict[str, Any]) -> str:
    return "pass" if "Credential=testing/" in request.get("HTTP_AUTHORIZATION", "") else "forbid"


def test_refused_credentials_and_missing_buckets_are_one_sentence(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Data(uri="shapes:4")
    with pytest.raises(UserError, match=r"^run\.dir=s3://no-bucket/run cannot be used: .*bucket"):
        RunDir.open("s3://no-bucket/run", "job", "local", settings)
    gate.judge = only_with_key
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    refused = []
    for open_it in (
        lambda: RunDir.open("s3://bucket/run", "job", "local", settings),
        lambda: list_shards(Data(uri="s3://bucket/x/*.tar")),
    ):
        with pytest.raises(UserError, match=r"Forbidden|Access|key") as caught:
            open_it()
        refused.append(str(caught.value))
    assert refused[0].startswith("run.dir=s3://bucket/run cannot be used: ")
    assert refused[1].startswith("data.uri=s3://bucket/x/*.tar cannot be read")
    assert not any(SECRET in sentence or "\n" in sentence for sentence in refused)


UPLOAD = """
import os
from mmdd_ray.storage.store import Store
with Store("s3://bucket/run").create("weights") as file:
    file.write(os.urandom(120 << 20))
    print("uploading", flush=True)
print("done", flush=True)
"""


@pytest.mark.timeout(120)
def test_an_upload_that_was_killed_is_no_object(gate: Gate) -> None:
    parts = []

    def second_part_hangs(number: int, request: dict[str, Any]) -> str:
        if part := re.search(r"partNumber=(\d+)", request.get("QUERY_STRING", "")):
            parts.append(int(part[1]))
            return "pass" if len(parts) == 1 else "hang"
        return "pass"

    gate.judge = second_part_hangs
    process = subprocess.Popen([sys.executable, "-c", UPLOAD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "uploading\n"
    deadline = time.monotonic() + 60
    while len(parts) < 2:
        assert time.monotonic() < deadline, "the upload has no parts"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.stdout.read() == ""
    process.wait()
    gate.judge = lambda number, request: "pass"
    assert Store("s3://bucket/run").files() == []


def test_a_listing_has_more_than_one_page(gate: Gate) -> None:
    names = [f"shards/{number:05d}.json" for number in range(1100)]
    for name in names:
        backend().put_object("bucket", f"run/{name}", b"{}")
    assert Store("s3://bucket/run").files() == names


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_through_a_bad_day_of_its_store_is_the_same_run(
    gate: Gate, ray_cluster: None, tmp_path: Path
) -> None:
    from mmdd_ray.features.precompute import precompute

    write_shards(Store(str(tmp_path / "tars")), 150, seed=1, layout="webdataset", rows_per_shard=50)
    Store("s3://bucket").upload_folder(tmp_path / "tars", "tars")
    settings = precompute_local()
    data = replace(settings.data, uri=str(tmp_path / "tars"))
    with RunDir.open(str(tmp_path / "good"), "any", "local", settings) as run:
        good = run.stage("features", lambda stage: precompute(stage, run.store, data, settings.features))

    gate.judge = now_and_then
    job = [
        sys.executable,
        "jobs/precompute.py",
        "local",
        "--run.dir",
        "s3://bucket/run",
        "--run.num_cpus",
        "2",
    ]
    result = subprocess.run(
        [*job, "--data.uri", "s3://bucket/tars/*.tar"], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    gate.judge = lambda number, request: "pass"
    assert result.returncode == 0, result.stderr[-3000:]
    assert SECRET not in result.stdout + result.stderr
    store = Store("s3://bucket/run")
    assert not any(SECRET.encode() in store.read_bytes(name) for name in store.files())
    manifest = store.read_json("features/manifest.json")
    assert (manifest["rows_in"], manifest["rows_out"]) == (150, 150)
    assert manifest["extra"] == good.manifest["extra"]
    assert store.read_bytes("features/moments.safetensors") == good.store.read_bytes("moments.safetensors")


TRAINING = """
import sys, time

from mmdd_ray import cli
from mmdd_ray.engine.cluster import connected
from mmdd_ray.config import Run, Training
from mmdd_ray.storage.store import Store
from mmdd_ray.engine.ray_train import Placement, train

def work(worker, job):
    state = worker.restored("state.pt") or {"step": 0}
    def steps():
        for state["step"] in range(state["step"] + 1, 13):
            time.sleep(0.1)
            yield {"step": state["step"], "total": 0.0}
    worker.run_steps(steps(), lambda: {"state.pt": dict(state)})
    return {"step": state["step"]}

def job():
    training = Training(max_failures=int(sys.argv[1]))
    placement = Placement(section="finetune", training=training, memory_setting="x", steps=12, checkpoint_steps=2)
    with connected(Run(num_cpus=2), store := Store("s3://bucket/run")):
        print(train(work, None, placement, store=store))

raise SystemExit(cli.main(job))
"""


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_checkpoints_of_a_training_through_a_bad_day_of_their_store(gate: Gate) -> None:
    gate.judge = now_and_then
    command = [sys.executable, "-c", TRAINING]
    went_on = subprocess.run([*command, "3"], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert went_on.returncode == 0, went_on.stderr[-3000:]
    assert "{'step': 12}" in went_on.stdout

    Store("s3://bucket/run").remove("checkpoints")
    for spoilt in (
        "checkpoint_manager",
        "state.pt",
    ):  # which Ray Train looks for as it starts; which a worker writes
        gate.judge = lambda _, request, spoilt=spoilt: "slow" if spoilt in request["PATH_INFO"] else "pass"
        given_up = subprocess.run([*command, "0"], cwd=ROOT, capture_output=True, text=True, timeout=250)
        assert given_up.returncode == 1, given_up.stderr[-3000:]
        said = given_up.stderr.splitlines()[-1]
        assert re.match(r"error: storage failed: .*run the same command again to resume$", said), (
            given_up.stderr
        )
        assert SECRET not in given_up.stdout + given_up.stderr
