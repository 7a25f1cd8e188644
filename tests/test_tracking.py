"""Trackers get losses, stages, scores and pictures once, and nothing that they do changes or stops a run."""

import io
import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from event_files import Events, crc32c
from PIL import Image

from mmdd_ray.config import Run
from mmdd_ray.engine import trackers, tracking
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import LOSSES, RunDir, StageDir, StageResult
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.engine.trackers.tracker import About, Point
from mmdd_ray.engine.tracking import TRACKING, Tracking, picture
from mmdd_ray.errors import UserError
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.execute import check

STEPS = 6
BLOCK, FULL, LAST = 32_768, 1, 4  # of LevelDB's logs


@dataclass(frozen=True, kw_only=True)
class Settings:
    run: Run = field(default_factory=Run)
    hub_token: str = "hf_secret"


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (10, 200, 30)).save(file, format="png")
    return file.getvalue()


def losses(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "total": 1 / step, "rate": 0.5} for step in steps]


def train(stage: StageDir, live: Sequence[int] = ()) -> StageResult:
    """A training whose driver hears of some of the steps."""
    for record in losses(*live):
        progress.note_record(record | {"peak_bytes": 10**9})
    stage.store.write_parquet(LOSSES, pa.Table.from_pylist(losses(*range(1, STEPS + 1))))
    stage.store.write_bytes("weights", b"w")
    return StageResult(rows_in=40, rows_out=12)


def go(uri: str, name: str | None = None, live: Sequence[int] = (), fails: bool = False) -> StageDir:
    """A run of one stage and its results, the way a job does it."""
    settings = Settings()
    with (
        RunDir.open(uri, "toy", "local", settings) as run,
        Tracking(run, name, About("toy-local", resolved(settings))) as tracked,
    ):
        stage = run.stage("finetune", lambda stage: train(stage, live))
        if fails:
            raise KeyboardInterrupt
        results = [Point("scores/toy", 0, {"ir@1": 12.5, "ir@1 std": 0.5}), picture("pictures/set", png())]
        tracked.tell("results", "1", results)
    return stage


def test_the_checksum_of_a_record_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("live", [(), (1, 2, 3), tuple(range(1, STEPS + 1))])
def test_event_files_have_each_step_once_and_stages_scores_and_pictures(
    tmp_path: Path, live: Sequence[int]
) -> None:
    go(str(tmp_path / "run"), live=live)
    found = Events(tmp_path / "run" / "tensorboard")
    assert sorted(found.scalars["finetune/total"]) == [
        (step, pytest.approx(1 / step)) for step in range(1, STEPS + 1)
    ]
    assert "finetune/peak_bytes" not in found.scalars
    assert found.scalars["stages/finetune/rows_in"] == [(0, 40)]
    assert found.scalars["stages/finetune/rows_out"] == [(0, 12)]
    assert found.scalars["scores/toy/ir_1"] == [(0, 12.5)]
    assert found.scalars["scores/toy/ir_1_std"] == [(0, 0.5)]
    shown = Image.open(io.BytesIO(found.pictures["pictures/set"]))
    assert (shown.size, shown.getpixel((0, 0))) == ((4, 3), (10, 200, 30))


def test_what_a_tracker_has_seen_is_not_sent_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        go(uri, fails=True)
    assert "scores/toy/ir_1" not in Events(tmp_path / "run" / "tensorboard").scalars
    for _ in range(2):
        go(uri)
    found = Events(tmp_path / "run" / "tensorboard")
    assert len(found.scalars["finetune/total"]) == STEPS
    assert len(found.scalars["scores/toy/ir_1"]) == 1
    assert len(found.files) == 2  # one for each attempt that had something to send
    (tmp_path / "run" / TRACKING).write_text("damaged")
    go(uri)
    assert len(Events(tmp_path / "run" / "tensorboard").scalars["finetune/total"]) == 2 * STEPS


def test_event_files_reach_an_object_store(s3_server: str, tmp_path: Path) -> None:
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("tracked-bucket")
    go("s3://tracked-bucket/run")
    fsspec.filesystem("s3", use_listings_cache=False).get(
        "tracked-bucket/run/tensorboard", str(tmp_path / "copy"), recursive=True
    )
    found = Events(tmp_path / "copy")
    assert len(found.scalars["finetune/total"]) == STEPS
    assert found.pictures["pictures/set"]


def test_a_stage_is_the_same_with_and_without_a_tracker(tmp_path: Path) -> None:
    tracked = go(str(tmp_path / "tracked"), live=(1, 2))
    with RunDir.open(str(tmp_path / "plain"), "toy", "local", Settings()) as run:
        plain = run.stage("finetune", train)
    assert tracked.fingerprint == plain.fingerprint
    assert [output["path"] for output in tracked.manifest["outputs"]] == [LOSSES, "weights"]


class Broken:
    """A tracker that fails at the second thing that it gets."""

    key = "k"

    def __init__(self, about: About, key: str | None) -> None:
        self.got = 0

    def log(self, points: Sequence[Point]) -> None:
        self.got += 1
        if self.got > 1:
            raise ConnectionError("no route to s3://me:pw@host")

    def picture(self, name: str, png: bytes) -> None:
        raise AssertionError("it has failed before")

    def flush(self) -> None: ...
    def close(self, finished: bool) -> None: ...


class Stuck(Broken):
    """A tracker that never answers."""

    def log(self, points: Sequence[Point]) -> None:
        time.sleep(3600)


def use(monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Any]) -> None:
    monkeypatch.setattr(tracking, "open_tracker", lambda name, about, key: kind(about, key))


def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Broken)
    stage = go(str(tmp_path / "run"), "wandb", live=range(1, STEPS + 1))
    assert stage.manifest["rows_out"] == 12
    said = capsys.readouterr().err
    assert (
        said
        == "warning: wandb failed and gets nothing more: ConnectionError no route to s3://[redacted]@host\n"
    )
    assert len(Events(tmp_path / "run" / "tensorboard").scalars["finetune/total"]) == STEPS


def test_a_tracker_that_never_answers_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Stuck)
    monkeypatch.setattr(tracking, "LAST_S", 0.3)
    began = time.monotonic()
    go(str(tmp_path / "run"), "wandb")
    with pytest.raises(KeyboardInterrupt):
        go(str(tmp_path / "other"), "wandb", fails=True)
    assert time.monotonic() - began < 10
    assert capsys.readouterr().err == "warning: wandb did not take everything within 0 s\n"


def test_losses_that_cannot_be_read_are_said_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(stage: StageDir) -> StageResult:
        stage.store.write_bytes(LOSSES, b"no parquet")
        return StageResult(rows_in=1, rows_out=1)

    with (
        RunDir.open(str(tmp_path / "run"), "toy", "local", Settings()) as run,
        Tracking(run, None, About("toy", {})),
    ):
        run.stage("finetune", body)
    assert "warning: finetune was not tracked: ArrowInvalid" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_missing_is_found_before_any_work(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    settings: Any = edge_local()
    with pytest.raises(
        UserError, match=f"run.track={name}, but {name} is not installed; type `pip install {name}`"
    ):
        check(replace(settings, run=replace(settings.run, track=name)))


def test_mlflow_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "distilling")
    uri = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        go(uri, "mlflow", live=(1, 2), fails=True)
    client = mlflow.MlflowClient(f"file:{tmp_path}/mlflow")
    key = json.loads((tmp_path / "run" / TRACKING).read_text())["mlflow"]["key"]
    assert client.get_run(key).info.status == "KILLED"
    go(uri, "mlflow")
    (found,) = client.search_runs([client.get_experiment_by_name("distilling").experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (key, "toy-local", "FINISHED")
    curve = client.get_metric_history(key, "finetune/total")
    assert sorted((one.step, one.value) for one in curve) == [
        (step, 1 / step) for step in range(1, STEPS + 1)
    ]
    assert found.data.metrics["scores/toy/ir_1"] == 12.5
    assert found.data.metrics["stages/finetune/rows_out"] == 12
    assert found.data.params["run.seed"] == "0"
    assert found.data.params["hub_token"] == "[redacted]"
    shown = Path(client.download_artifacts(key, "pictures/set.png", str(tmp_path)))
    assert Image.open(shown).size == (4, 3)

    client.delete_run(key)  # on the server, by hand
    go(uri, "mlflow")
    (again,) = client.search_runs([found.info.experiment_id])
    assert again.info.run_id != key
    assert len(client.get_metric_history(again.info.run_id, "finetune/total")) == STEPS


def test_a_tracker_that_cannot_begin_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:7")
    with pytest.raises(
        UserError, match=r"run\.track=mlflow cannot begin: .*; set it up, or leave out run\.track"
    ):
        go(str(tmp_path / "run"), "mlflow")


def log_records(content: bytes, first: int) -> Iterator[bytes]:
    """The records of a LevelDB log, of whose first block so many bytes are a header."""
    at, parts = 0, b""
    while at + 7 <= len(content):
        if (left := BLOCK - (first + at) % BLOCK) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""


def test_weights_and_biases_writes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    go(str(tmp_path / "run"), "wandb", live=(1, 2))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = [Record.FromString(content) for content in log_records(file.read_bytes()[7:], first=7)]
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in found
        if one.HasField("history")
    ]
    curve = [(row["finetune/step"], row["finetune/total"]) for row in rows if "finetune/total" in row]
    assert sorted(curve) == [(step, pytest.approx(1 / step)) for step in range(1, STEPS + 1)]
    assert [row["scores/toy/ir@1"] for row in rows if "scores/toy/ir@1" in row] == [12.5]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/pictures/set_*.png"))


def test_trackio_has_one_run_for_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    uri = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        go(uri, "trackio", live=(1, 2), fails=True)
    go(uri, "trackio")
    (name,) = SQLiteStorage.get_runs("mmdd-ray")
    rows = SQLiteStorage.get_logs("mmdd-ray", name)
    curve = [(row["step"], row["finetune/total"]) for row in rows if "finetune/total" in row]
    assert sorted(curve) == [(step, pytest.approx(1 / step)) for step in range(1, STEPS + 1)]
    assert [row["scores/toy/ir@1"] for row in rows if "scores/toy/ir@1" in row] == [12.5]
    assert any("pictures/set" in row for row in rows)
