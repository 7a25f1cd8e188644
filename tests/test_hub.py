"""Data on the Hugging Face hub: listing, reading, faults, and the commit that a run holds on to."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from source_files import jpeg, pair, write_tar

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.errors import UserError
from mmdd_ray.methods import preset_parts
from mmdd_ray.storage import hub as hub_module

OLD, NEW = "a" * 40, "b" * 40
REPOSITORY = "hf://datasets/me/pairs"
SCRIPT = """
import json, sys
from mmdd_ray.config import Data
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import find_shards
from mmdd_ray.errors import StorageError, UserError
data = Data(uri=sys.argv[1])
try:
    found = find_shards(data)
    rows = [row for shard in found.shards for row in iter_shard(shard, data)]
    print(json.dumps({"says": found.says, "rows": [(row.shard, row.key, row.reject) for row in rows]}))
except (StorageError, UserError) as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


@dataclass
class Hub:
    """A hub on loopback with one repository."""

    folder: Path
    environment: dict[str, str]

    def add(self, commit: str, levels: range) -> None:
        """Makes this the newest commit: two tars, whose images have these levels."""
        own = self.folder / "me" / "pairs" / commit
        own.mkdir(parents=True)
        for number in range(2):
            members = [member for level in levels for member in pair(f"{number}{level}", level=level)]
            write_tar(own / f"{number:05d}.tar", members)
        (own.parent / "main").write_text(commit)

    def order(self, **fault: object) -> None:
        """Has requests for a part of a path fail."""
        (self.folder / "faults.json").write_text(json.dumps([fault]))

    def requests(self) -> list[str]:
        """The requests since the last call."""
        log = self.folder / "log"
        lines = log.read_text().splitlines()
        log.write_text("")
        return lines

    def read(self, uri: str) -> dict[str, list[object]]:
        """What is found at a URI, or the error, in a process that knows this hub."""
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, uri],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        return json.loads(run.stdout)


@pytest.fixture
def hub(tmp_path: Path, hub_server: tuple[str, Path]) -> Hub:
    endpoint, folder = hub_server
    found = Hub(folder, {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")})
    found.add(OLD, range(3))
    found.requests()
    return found


ROWS = [[f"{number:05d}", f"{number}{level}", None] for number in range(2) for level in range(3)]


@pytest.mark.parametrize("pattern", ["/{00000..00001}.tar", "/*.tar", "", f"@{OLD}/{{00000..00001}}.tar"])
def test_a_repository_reads_like_a_folder_and_is_listed_once(hub: Hub, pattern: str) -> None:
    assert hub.read(f"{REPOSITORY}{pattern}") == {"says": ["2 tars"], "rows": ROWS}
    asked = hub.requests()
    assert sum("/tree/" in line for line in asked) <= 3
    assert len(asked) < 20


def test_a_file_or_repository_that_is_not_there_is_one_sentence(hub: Hub) -> None:
    for uri in (f"{REPOSITORY}/none.tar", "hf://datasets/me/none/0.tar"):
        assert "UserError: data.uri=" in hub.read(uri)["error"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_asked_again(hub: Hub, status: int) -> None:
    hub.order(path="/resolve/", status=status, times=2)
    assert hub.read(f"{REPOSITORY}/*.tar")["rows"] == ROWS
    assert sum(str(status) in line for line in hub.requests()) == 2


def test_a_read_that_breaks_goes_on_where_it_was(hub: Hub) -> None:
    large = hub.folder / "me" / "pairs" / OLD / "large.tar"
    members = [
        member
        for n in range(5)
        for member in ((f"{n}.jpg", jpeg(n) + bytes(5 * 2**20)), (f"{n}.txt", b"a dog"))
    ]
    write_tar(large, members)
    second = 16 * 2**20  # where a block of the file begins
    hub.order(path="large.tar", status="cut", times=0)
    whole = hub.read(f"{REPOSITORY}/large.tar")
    assert whole["rows"] == [["large", str(n), None] for n in range(5)]
    ranges = [line.split()[2] for line in hub.requests() if "large.tar" in line]
    hub.order(path="large.tar", status="cut", times=3)
    assert hub.read(f"{REPOSITORY}/large.tar") == whole
    cut = [line.split()[2] for line in hub.requests() if "large.tar" in line]
    assert len(cut) == len(ranges) + 3  # each cut answer is asked for again, and nothing before it
    assert second < large.stat().st_size


@pytest.mark.long
def test_a_run_holds_on_to_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    uri = f"{REPOSITORY}/{{00000..00001}}.tar"

    def precompute(*more: str) -> subprocess.CompletedProcess[str]:
        job = [
            sys.executable,
            "jobs/precompute.py",
            "--data.uri",
            uri,
            "--run.dir",
            str(tmp_path / "run"),
            *more,
        ]
        job += ["--run.num_cpus", "2", "--data.max_reject_ratio", "1"]
        root = Path(__file__).parents[1]
        return subprocess.run(job, cwd=root, env=hub.environment, capture_output=True, text=True, timeout=300)

    assert precompute().returncode == 0
    assert json.loads((tmp_path / "run" / "commits.json").read_text()) == {"datasets/me/pairs@main": OLD}
    first = (tmp_path / "run" / "features" / "moments.safetensors").read_bytes()
    assert all(
        f"/resolve/{OLD}/" in line for line in hub.requests() if "/resolve/" in line and "main" not in line
    )
    hub.add(NEW, range(7, 9))
    (tmp_path / "run" / "features" / "manifest.json").unlink()
    (tmp_path / "run" / "features" / "shards" / "00001.json").unlink()
    again = precompute()
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "features" / "moments.safetensors").read_bytes() == first


def test_cc3m_needs_no_data_of_ones_own() -> None:
    data, evaluation = preset_parts.CC3M, preset_parts.CC3M_EVALUATION
    assert isinstance(data, Data)
    assert isinstance(evaluation, Evaluation)
    for uri in (data.uri, evaluation.val, evaluation.test):
        assert uri.startswith("hf://datasets/pixparse/cc3m-wds/")


def test_an_address_is_pinned_whatever_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub_module, "_commit_of", lambda uri, *named: asked.append(named) or NEW)
    commits: dict[str, str] = {}
    for revision in ("", "@v1", "@refs/convert/parquet", "@refs%2Fconvert%2Fparquet"):
        found = hub_module.pinned(f"hf://datasets/a/b{revision}/x/{{0..1}}.tar", commits)
        assert found == f"hf://datasets/a/b@{NEW}/x/{{0..1}}.tar"
    assert [revision for _, revision in asked] == ["main", "v1", "refs/convert/parquet"]
    held = f"hf://datasets/a/b@{OLD}/x.tar"
    assert [hub_module.pinned(uri, commits) for uri in (held, "s3://a/b")] == [held, "s3://a/b"]
    with pytest.raises(UserError, match="no address on the Hugging Face hub"):
        hub_module.pinned("hf://buckets/a", commits)
