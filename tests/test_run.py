"""A run directory survives a kill at any moment, and refuses what would mix two runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import fsspec
import pytest

from mmdd_ray.config import Run
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import MANIFEST, RunDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import TEMPORARY

HERE = str(Path(__file__).parent)


@dataclass(frozen=True, kw_only=True)
class Finetune:
    steps: int = 100
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Settings:
    run: Run = field(default_factory=Run)
    finetune: Finetune = field(default_factory=Finetune)
    uri: str = "shapes:2000?seed=3"
    key_column: str = "key"
    hub_token: str | None = None


def reopen(folder, settings=None, job="edge"):
    return RunDir.open(str(folder), job, "local", settings or Settings())


class Body:
    """A stage's body that writes the same file each time, and counts its calls."""

    def __init__(self, content=b"features"):
        self.content, self.calls = content, 0

    def __call__(self, stage):
        self.calls += 1
        stage.store.write_bytes("part-0", self.content)
        return StageResult(rows_in=2000, rows_out=1996, rejects={"undecodable": 4}, extra={"loss": 0.5})


def test_a_done_stage_is_not_computed_again(tmp_path, capsys):
    body = Body()
    with reopen(tmp_path / "run") as run:
        first = run.stage("features", body)
    with reopen(tmp_path / "run") as run:
        second = run.stage("features", body)
    assert body.calls == 1
    assert second.manifest == first.manifest
    assert {
        name: first.manifest[name] for name in ("rows_in", "rows_out", "rejects", "extra", "resumed")
    } == {
        "rows_in": 2000,
        "rows_out": 1996,
        "rejects": {"undecodable": 4},
        "extra": {"loss": 0.5},
        "resumed": False,
    }
    assert first.manifest["started"] <= first.manifest["finished"]
    assert first.manifest["outputs"][0]["bytes"] == len(b"features")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["features", "starts"]
    assert lines[1].startswith("features     2,000 rows -> 1,996 rows (4 rejected)   ")
    assert lines[2].startswith("features     done already (")


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_run import reopen
def body(stage):
    stage.store.write_bytes("part-0", b"whole")
    with stage.store.create("part-1") as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
with reopen(sys.argv[1]) as run:
    run.stage("features", body)
"""


def test_a_killed_stage_runs_again_and_keeps_its_whole_outputs(tmp_path):
    folder = tmp_path / "run"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), HERE], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(file.name.startswith(TEMPORARY) for file in (folder / "features").iterdir())

    seen = []

    def body(stage):
        seen.extend(stage.store.files())
        stage.store.write_bytes("part-1", b"whole")
        return StageResult(rows_in=2, rows_out=2)

    with reopen(folder) as run:  # the kernel has dropped the dead process's lock
        assert not any(file.name.startswith(TEMPORARY) for file in (folder / "features").iterdir())
        stage = run.stage("features", body)
    assert seen == ["part-0", "started.json"]
    assert stage.manifest["resumed"]
    assert [output["path"] for output in stage.manifest["outputs"]] == ["part-0", "part-1"]


def test_the_start_of_a_stage_is_told_from_its_work_and_its_memory_is_noted(tmp_path):
    def body(stage):
        time.sleep(0.5)
        with progress(stage.name, total=100) as bar:
            for _ in range(10):
                time.sleep(0.02)
                bar.note_memory(1000 - bar.n)
                bar.update(10)
        return StageResult(rows_in=100, rows_out=100)

    with reopen(tmp_path / "run") as run:
        manifest = run.stage("features", body).manifest
        assert 0.3 < manifest["startup_seconds"] < manifest["seconds"] - 0.1
        assert manifest["peak_bytes"] == 1000
        chosen = run.stage("choose", Body()).manifest
        assert (chosen["startup_seconds"], chosen["peak_bytes"]) == (None, None)


def test_a_body_that_fails_leaves_no_manifest(tmp_path):
    def body(stage):
        stage.store.write_bytes("part-0", b"x")
        raise RuntimeError("out of memory")

    with reopen(tmp_path / "run") as run:
        with pytest.raises(RuntimeError, match="out of memory"):
            run.stage("features", body)
        assert run.store.files("features") == ["features/part-0", "features/started.json"]


def test_changed_settings_are_listed_with_the_remedy(tmp_path):
    old = Settings(finetune=Finetune(steps=100), uri="shapes:10")
    with reopen(tmp_path / "run", old) as run:
        run.stage("features", Body())
    new = Settings(finetune=Finetune(steps=200, sizes=(1, 2, 3)), uri="shapes:20", run=Run(seed=1))
    with pytest.raises(ValueError, match="run with other settings") as error:
        reopen(tmp_path / "run", new)
    assert str(error.value).splitlines()[1:] == [
        "  run.seed: 0 -> 1",
        "  finetune.steps: 100 -> 200",
        "  finetune.sizes: [1, 2] -> [1, 2, 3]",
        "  uri: shapes:10 -> shapes:20",
        "set run.dir to another folder, delete this one, or restore the settings above",
    ]
    reopen(tmp_path / "run", old).close()  # the failed attempt changed nothing and holds no lock


def test_a_setting_may_change_until_a_stage_has_begun_that_reads_it(tmp_path, capsys):
    reads = {"features": ("uri", "key_column")}

    def again(settings):
        return RunDir.open(str(tmp_path / "run"), "edge", "local", settings, reads)

    again(Settings()).close()
    short = Settings(finetune=Finetune(steps=7), uri="shapes:9")
    with again(short) as run:  # nothing has begun
        assert run.has_new_settings
        run.stage("features", Body())
    shorter = replace(short, finetune=Finetune(steps=3))
    body = Body()
    with again(shorter) as run:
        run.stage("features", body)
        assert run.store.read_json("settings.json")["settings"]["finetune"]["steps"] == 3
    assert not body.calls
    assert "settings that nothing has read yet: finetune.steps: 7 -> 3" in capsys.readouterr().out
    with again(shorter) as run:
        assert not run.has_new_settings
    with pytest.raises(UserError, match="with other settings:\n  uri: shapes:9 -> shapes:10"):
        again(replace(shorter, uri="shapes:10"))
    with again(shorter) as run:
        run.stage("finetune", Body())
    with pytest.raises(UserError, match="with other settings"):
        again(short)


def test_how_to_run_may_change_when_a_run_is_resumed(tmp_path):
    reopen(tmp_path / "run").close()
    elsewhere = Run(dir="other", ray_address="10.0.0.1:6379", num_cpus=7, object_store_mib=99)
    reopen(tmp_path / "run", replace(Settings(), run=elsewhere)).close()


def test_a_setting_of_another_version_is_a_change(tmp_path):
    with reopen(tmp_path / "run") as run:
        run.stage("features", Body())
    file = tmp_path / "run" / "settings.json"
    held = json.loads(file.read_text())
    del held["settings"]["finetune"]["steps"]
    held["settings"]["finetune"]["gone"] = True
    file.write_text(json.dumps(held))
    more = replace(Settings(), finetune=replace(Settings().finetune, steps=7))
    with pytest.raises(ValueError, match="other settings") as error:
        reopen(tmp_path / "run", more)
    assert "finetune.steps: (not set) -> 7" in str(error.value)
    assert "finetune.gone: true -> (not set)" in str(error.value)
    del held["settings"]["finetune"]["gone"]
    file.write_text(json.dumps(held))
    reopen(tmp_path / "run").close()  # a new setting with its default does as the version before


def test_another_job_or_foreign_files_are_refused(tmp_path):
    reopen(tmp_path / "run").close()
    with pytest.raises(ValueError, match="holds a run of the job edge"):
        reopen(tmp_path / "run", job="covmatch")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"home holds thesis\.tex but no run"):
        reopen(tmp_path / "home")


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run\.dir=.*file/run cannot be used"):
        reopen(tmp_path / "file" / "run")


def test_the_working_folder_of_a_ray_job_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="working folder of a Ray job"):
        RunDir.open("runs/mine", "edge", "local", Settings())


def test_a_job_without_a_run_directory_writes_below_the_home_folder(tmp_path, monkeypatch):
    folder = tmp_path / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with RunDir.open(None, "edge", "local", Settings()) as run:
        assert run.store.uri == str(tmp_path / "home" / "mmdd-ray" / "runs" / "edge-local")


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON"])
def test_settings_of_something_else_are_left_alone(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings\.json that is no run's"):
        RunDir.open(str(tmp_path), "edge", "local", Settings())
    assert (tmp_path / "settings.json").read_text() == content


def test_a_foreign_folder_keeps_no_trace(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"jpg")
    with pytest.raises(UserError, match=r"holds photo\.jpg but no run"):
        RunDir.open(str(tmp_path), "edge", "local", Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_the_default_folder_names_job_and_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunDir.open(None, "edge", "cc3m", Settings()) as run:
        assert run.store.uri == str(tmp_path / "runs" / "edge-cc3m")


def test_one_writer_at_a_time(tmp_path):
    with reopen(tmp_path / "run"):
        with pytest.raises(ValueError, match=f"in use by the process {os.getpid()} on "):
            reopen(tmp_path / "run")
        script = f"import sys; sys.path.insert(0, {HERE!r})\nfrom test_run import reopen\n"
        script += f"reopen({str(tmp_path / 'run')!r})"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert f"in use by the process {os.getpid()} on " in other.stderr
    reopen(tmp_path / "run").close()


@pytest.mark.parametrize(("content", "says"), [(b"short", "has 5 bytes"), (None, "is missing")])
def test_damaged_outputs_are_noticed(tmp_path, content, says):
    with reopen(tmp_path / "run") as run:
        run.stage("features", Body())
    part = tmp_path / "run" / "features" / "part-0"
    part.unlink() if content is None else part.write_bytes(content)
    with reopen(tmp_path / "run") as run, pytest.raises(ValueError, match=says):
        run.stage("features", Body())


@pytest.mark.parametrize(("content", "recomputed"), [(b"features", False), (b"other", True)])
def test_a_stage_follows_the_outputs_of_those_that_it_needs_and_no_others(tmp_path, content, recomputed):
    beside = Body(b"prompts")
    with reopen(tmp_path / "run") as run:
        features = run.stage("features", Body())
        run.stage("finetune", Body(b"weights"), [features])
        run.stage("prompts", beside)
    (tmp_path / "run" / "finetune" / "leftover").touch()
    (tmp_path / "run" / "features" / MANIFEST).unlink()
    later = Body(b"weights")
    with reopen(tmp_path / "run") as run:
        features = run.stage("features", Body(content))
        run.stage("finetune", later, [features])
        run.stage("prompts", beside)
    assert later.calls == recomputed
    assert beside.calls == 1
    assert (tmp_path / "run" / "finetune" / "leftover").exists() != recomputed


def test_an_unfinished_stage_follows_them_too(tmp_path):
    def killed(stage):
        stage.store.write_bytes("part-0", b"made from the old features")
        raise KeyboardInterrupt

    with reopen(tmp_path / "run") as run:
        features = run.stage("features", Body(b"old"))
        with pytest.raises(KeyboardInterrupt):
            run.stage("synthesis", killed, [features])
    (tmp_path / "run" / "features" / MANIFEST).unlink()
    with reopen(tmp_path / "run") as run:
        features = run.stage("features", Body(b"new"))
        stage = run.stage(
            "synthesis", lambda stage: StageResult(rows_in=0, rows_out=len(stage.store.files())), [features]
        )
    assert stage.manifest["rows_out"] == 1  # the record of its start only
    assert not stage.manifest["resumed"]


def test_a_run_of_an_older_layout_is_refused(tmp_path):
    reopen(tmp_path / "run").close()
    settings = tmp_path / "run" / "settings.json"
    saved = json.loads(settings.read_text())
    del saved["layout"]
    settings.write_text(json.dumps(saved))
    with pytest.raises(
        UserError, match=r"holds a run of another version of mmdd-ray.* set run\.dir to another"
    ):
        reopen(tmp_path / "run")


def test_a_run_on_s3_is_resumed(s3_server, monkeypatch):
    fsspec.filesystem("s3", use_listings_cache=False).mkdir("runs-bucket")
    body = Body()
    for _ in range(2):
        with RunDir.open("s3://runs-bucket/edge/1", "edge", "local", Settings()) as run:
            stage = run.stage("features", body)
    assert body.calls == 1
    assert stage.manifest["outputs"][0]["checksum"].startswith("etag:")
    with pytest.raises(ValueError, match="uri: shapes:2000"):
        RunDir.open("s3://runs-bucket/edge/1", "edge", "local", Settings(uri="x"))
    with pytest.raises(ValueError, match=r"run\.dir=s3://no-such-bucket/run cannot be used"):
        RunDir.open("s3://no-such-bucket/run", "edge", "local", Settings())


def test_settings_hold_no_credentials(tmp_path):
    settings = Settings(hub_token="hf_abc", uri="https://me:pw@host/x?X-Amz-Signature=5e&part=2")
    reopen(tmp_path / "run", settings).close()
    written = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert written["job"] == "edge"
    assert written["preset"] == "local"
    assert written["settings"]["hub_token"] == "[redacted]"
    assert written["settings"]["uri"] == "https://[redacted]@host/x?X-Amz-Signature=[redacted]&part=2"
    assert written["settings"]["key_column"] == "key"


@pytest.mark.parametrize(
    "name", ["token", "hf_token", "HF_TOKEN", "AWSAccessKeyId", "secretKey", "api-key", "db_password"]
)
def test_names_of_secrets_hide_their_value(name):
    assert redact("abc", name) == "[redacted]"
    assert redact(f"s3://b/p?{name}=abc&n=1") == f"s3://b/p?{name}=[redacted]&n=1"


@pytest.mark.parametrize(
    "name", ["key_column", "max_tokens", "tokenizer", "monkey", "token_dim", "keys", "secretary"]
)
def test_names_like_those_of_secrets_hide_nothing(name):
    assert redact("abc", name) == "abc"
    assert redact(f"shapes:20?{name}=abc") == f"shapes:20?{name}=abc"


def test_an_at_sign_in_a_path_is_no_user():
    assert redact("hf://datasets/org/name@main/x.parquet") == "hf://datasets/org/name@main/x.parquet"
    assert redact("s3://key:secret@bucket/x failed") == "s3://[redacted]@bucket/x failed"
