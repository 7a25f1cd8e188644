"""Files appear whole or not at all, and a store means the same place in every process and working folder."""

import os
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from mmdd_ray.storage.store import TEMPORARY, Store


@pytest.fixture(params=["disk", "s3"])
def store(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return Store(str(tmp_path / "store"))
    request.getfixturevalue("s3_server")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # downloads of this test stay in its folder
    bucket = f"bucket-{os.urandom(4).hex()}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(bucket)
    return Store(f"s3://{bucket}/store")


def test_what_is_written_is_read(store):
    table = pa.table({"key": ["a", "b"], "score": pa.array([0.5, 1.5], pa.float32())})
    store.write_bytes("deep/er/raw", b"\x00\xff")
    store.write_json("sizes.json", {"n": np.int64(3), "mean_D": np.array([1.0, 2.0]), "caption": "ü"})
    store.write_parquet("rows.parquet", table)
    assert store.read_bytes("deep/er/raw") == b"\x00\xff"
    assert store.read_json("sizes.json") == {"n": 3, "mean_D": [1.0, 2.0], "caption": "ü"}
    assert store.read_parquet("rows.parquet").equals(table)
    assert store.read_parquet("rows.parquet", columns=["score"]).equals(table.select(["score"]))
    assert store.files() == ["deep/er/raw", "rows.parquet", "sizes.json"]
    assert store.files("deep") == ["deep/er/raw"]
    assert store.sizes("deep") == {"deep/er/raw": 2}
    assert store.entries() == ["deep", "rows.parquet", "sizes.json"]
    assert store.child("deep").exists("er/raw")
    store.remove("deep")
    assert not store.exists("deep/er/raw")
    assert store.files("deep") == []


def test_a_failed_write_leaves_the_old_file(store):
    store.write_bytes("file", b"old")
    with pytest.raises(RuntimeError, match="half"), store.create("file") as file:  # noqa: PT012
        file.write(b"new, but only")
        raise RuntimeError("half way")
    assert store.read_bytes("file") == b"old"
    assert store.files() == ["file"]


def test_a_file_is_not_there_while_it_is_written(store):
    with store.create("file") as file:
        file.write(b"half")
        assert not store.exists("file")
        assert store.files() == []
    assert store.read_bytes("file") == b"half"


def test_a_pickled_store_is_the_same_place_in_another_folder(store, tmp_path, monkeypatch):
    store.write_bytes("file", b"x")
    pickled = pickle.dumps(store)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).read_bytes("file") == b"x"


def test_a_relative_path_is_resolved_where_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = Store("runs/a")
    monkeypatch.chdir("elsewhere")
    store.write_bytes("file", b"x")
    assert (tmp_path / "runs" / "a" / "file").read_bytes() == b"x"
    assert Store(f"file://{tmp_path}/runs/a").read_bytes("file") == b"x"


def test_an_uploaded_folder_replaces_the_old_one_and_is_fetched_whole(store, tmp_path):
    for version, names in enumerate(
        [["config.json", "unet/weights", "unet/more"], ["config.json", "unet/weights"]]
    ):
        folder = tmp_path / f"model-{version}"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{name} {version}")
        store.upload_folder(folder, "model")
        fetched = store.fetch("model")
        found = {
            str(file.relative_to(fetched)): file.read_text() for file in fetched.rglob("*") if file.is_file()
        }
        assert found == {name: f"{name} {version}" for name in names}
    assert store.fetch("model/config.json").read_text() == "config.json 1"
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        store.fetch("nothing-here")


def test_a_marker_of_a_folder_is_no_file(s3_server):
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    s3.mkdir("marked-bucket")
    store = Store("s3://marked-bucket/run")
    store.write_bytes("models/unet/weights", b"1")
    for marker in ("models/", "models/unet/"):
        s3.call_s3("put_object", Bucket="marked-bucket", Key=f"run/{marker}", Body=b"")
    assert store.files("models") == store.files() == ["models/unet/weights"]
    assert (store.fetch("models") / "unet" / "weights").read_bytes() == b"1"


def test_a_checksum_tells_contents_apart(store):
    store.write_bytes("a", b"same")
    store.write_bytes("b", b"same")
    store.write_bytes("c", b"other")
    assert store.checksum("a") == store.checksum("b") != store.checksum("c")


def test_temporaries_of_a_killed_process_are_invisible_and_removed(tmp_path):
    store = Store(str(tmp_path))
    store.write_bytes("stage/file", b"x")
    (tmp_path / "stage" / f"{TEMPORARY}1").write_bytes(b"half")
    (tmp_path / f"{TEMPORARY}2").mkdir()
    (tmp_path / f"{TEMPORARY}2" / "weights").write_bytes(b"half")
    assert store.files() == ["stage/file"]
    store.remove_temporaries()
    assert [path.name for path in tmp_path.rglob("*")] == ["stage", "file"]


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    store = Store(str(tmp_path))
    old = os.umask(0o022)
    try:
        store.write_bytes("file", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644  # colleagues may read a run


def test_an_unknown_scheme_is_the_users_mistake():
    with pytest.raises(ValueError, match="nosuch"):
        Store("nosuch://bucket/run")
