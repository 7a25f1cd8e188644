"""Behaviour that all formats share: labels, limits, names, storage that fails, Ray, and real data."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from source_files import Members, fates, jpeg, pair, read, tar_bytes, write_images, write_parquet, write_tar

from mmdd_ray.config import Data
from mmdd_ray.data.images import decode_image
from mmdd_ray.data.pair import PAIR_SCHEMA, Row, safe_name
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.errors import StorageError, UserError


def test_labelled_images_need_no_caption_where_none_is_needed(tmp_path):
    """As ImageNet stands on hubs: tars of jpg and cls, Parquet of image and label."""
    image = jpeg()
    members: Members = [
        ("a.jpg", image),
        ("a.cls", b"7\n"),
        ("b.jpg", image),
        ("b.cls", b"owl"),
        ("c.jpg", image),
    ]
    tar = write_tar(tmp_path / "0.tar", [*members, ("d.jpg", image), ("d.cls", b"3"), ("d.txt", b" ")])
    parquet = write_parquet(
        tmp_path / "0.parquet", {"image": [image] * 2, "label": pa.array([4, None], pa.int64())}
    )
    rows = read(Data(uri=tar, needs_captions=False))
    assert fates(rows) == [
        ("a", None),
        ("b", "label is not an integer"),
        ("c", "neither label nor caption"),
        ("d", None),
    ]
    assert [(row.label, row.captions) for row in rows if row.reject is None] == [(7, ["7"]), (3, ["3"])]
    rows = read(Data(uri=parquet, needs_captions=False))
    assert [(row.label, row.captions, row.reject) for row in rows] == [
        (4, ["4"], None),
        (None, [], "neither label nor caption"),
    ]
    named = write_tar(tmp_path / "2.tar", [*pair("e"), ("e.cls", b"owl"), *pair("f"), ("f.cls", b"-2")])
    assert [(row.label, row.reject) for row in read(Data(uri=named))] == [(None, None), (-2, None)]
    assert [row.label for row in read(Data(uri=named, label_column=""))] == [None, None]
    for uri in (parquet, write_tar(tmp_path / "1.tar", members)):
        with pytest.raises(UserError, match="caption"):
            list_shards(Data(uri=uri))


def every_format(folder: Path) -> Iterator[Data]:
    """A small dataset of each kind, several shards each, with a refused row in the tars."""
    (folder / "tars").mkdir()
    for n in range(3):
        write_tar(folder / "tars" / f"{n}.tar", [*pair(f"a{n}"), (f"b{n}.txt", b"no image"), *pair(f"c{n}")])
    (folder / "parquet").mkdir()
    for n in range(2):
        columns = {"image": [b"%d" % i for i in range(5)], "text": ["a dog"] * 5}
        write_parquet(folder / "parquet" / f"{n}.parquet", columns, row_group_size=2)
    write_images(folder / "images", *(f"cat/{n}.jpg" for n in range(7)))
    yield Data(uri=str(folder / "tars"))
    yield Data(uri=str(folder / "parquet"))
    yield Data(uri=str(folder / "images"), rows_per_shard=3)
    yield Data(uri="shapes:7", rows_per_shard=3)


def test_a_limit_keeps_exactly_the_first_rows(tmp_path):
    for data in every_format(tmp_path):
        rows = read(data)
        for limit in (1, 3, 4, 6, len(rows), len(rows) + 5):
            assert read(replace(data, limit=limit)) == rows[:limit]


def test_only_reads_the_same_rows_as_a_filter(tmp_path):
    for data in every_format(tmp_path):
        for only in ({0}, {2}, {0, 2}, {1, 99}, set()):
            assert read(data, only) == [row for row in read(data) if row.index in only]


def test_listing_is_repeatable_and_names_are_unique(tmp_path):
    for data in every_format(tmp_path):
        shards = list_shards(data)
        assert shards == list_shards(data)
        assert len({shard.name for shard in shards}) == len(shards) > 1


def test_safe_names_stay_in_their_folder_and_apart():
    texts = [
        "../../etc/passwd",
        "a/b",
        "a_b",
        "a.b",
        "",
        ".",
        "..",
        "C:\\x",
        "\ud800",
        "é",
        "e",
        "-rf",
        "x" * 300,
    ]
    texts.append("x" * 299)
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in names
    )
    assert all(0 < len(name) <= 100 and name[0] != "-" for name in names)
    assert safe_name("1000268201_693b08cb0e") == "1000268201_693b08cb0e"


class FlakyFiles(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of each file, the first ``failures`` downloads break with status 500."""

    failures: dict[str, int]

    def do_GET(self) -> None:
        if self.failures.get(self.path, 0) > 0:
            self.failures[self.path] -= 1
            self.send_error(500)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[[dict[str, int]], str]]:
    """Starts an HTTP server of tmp_path with the given failures by path; returns its address."""
    servers = []

    def start(failures: dict[str, int]) -> str:
        handler = type("Handler", (FlakyFiles,), {"failures": failures})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_failing_storage_is_an_error_to_retry_and_not_damage(tmp_path, serve, kind):
    write_tar(tmp_path / "0.tar", pair("a"))
    write_parquet(tmp_path / "0.parquet", {"image": [b"a"], "text": ["b"]})
    failures: dict[str, int] = {}
    data = Data(uri=f"{serve(failures)}/0.{kind}")
    [shard] = list_shards(data)
    failures[f"/0.{kind}"] = 1
    with pytest.raises(StorageError, match=r"storage failed while reading http://.*500"):
        list(iter_shard(shard, data))
    failures[f"/0.{kind}"] = 1
    with pytest.raises(ValueError, match=r"data.uri=http://.* cannot be read .*500"):
        list_shards(data)
    assert [row.reject for row in iter_shard(shard, data)] == [None]


def test_missing_s3_credentials_are_one_sentence(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"data.uri=s3://pairs/x.tar cannot be read .*credentials"):
        list_shards(Data(uri="s3://pairs/x.tar"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.ray
def test_ray_reads_every_row_once_through_damage_and_failing_storage(ray_cluster, serve, tmp_path):
    from mmdd_ray.data.sources import BLOCK_BYTES, fetch_pairs, read_pairs

    whole = tar_bytes([member for n in range(300) for member in pair(f"k{n}", level=n)])
    (tmp_path / "0.tar").write_bytes(whole)
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(tmp_path / "2.tar", [*pair("a"), ("b.txt", b"no image"), *pair("c")])
    failures: dict[str, int] = {}
    data = Data(uri=f"{serve(failures)}/{{0..2}}.tar")
    expected = read(data)
    assert {row.reject for row in expected} == {None, "truncated tar", "missing image"}

    dataset = read_pairs(data)
    failures |= {f"/{n}.tar": 1 for n in range(3)}
    rows = [Row(**row) for row in dataset.iter_rows()]
    assert sum(failures.values()) == 0
    assert sorted(rows, key=lambda row: (row.shard, row.index)) == expected
    assert dataset.schema().base_schema == PAIR_SCHEMA

    asked = [("2", 2), ("0", 299), ("2", 0), ("0", 299)]
    assert [row.key for row in fetch_pairs(data, asked)] == ["c", "k299", "a", "k299"]
    with pytest.raises(ValueError, match="no row 300 in a shard '0'"):
        fetch_pairs(data, [("0", 300)])

    large = [member for n in range(40) for member in ((f"{n}.jpg", b"0" * 2**20), (f"{n}.txt", b"a dog"))]
    blocks = read_pairs(Data(uri=write_tar(tmp_path / "large.tar", large))).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    block_bytes = [block.nbytes for block in blocks]
    assert sum(block_bytes) > 40 * 2**20
    assert max(block_bytes) < 1.1 * BLOCK_BYTES
    assert len(block_bytes) == 3


@pytest.mark.real
def test_flickr8k_reads_whole(real_data):
    rows = read(Data(uri=str(real_data / "flickr8k" / "flickr8k-val-000.tar")))
    assert len(rows) == 1000
    assert {(len(row.captions), row.reject) for row in rows} == {(5, None)}
    images = [decode_image(row.image or b"", max_pixels=10**6) for row in rows[:50]]
    assert {image.shape for image in images} == {(128, 128, 3)}


@pytest.mark.real
def test_tiny_imagenet_reads_whole_with_labels(real_data):
    uri = str(real_data / "tiny-imagenet32" / "*-val-*.parquet")
    rows = read(Data(uri=uri, caption_columns=("class_name",)))
    assert len(rows) == 10_000
    assert {row.reject for row in rows} == {None}
    assert np.bincount([row.label for row in rows]).tolist() == [50] * 200
    assert len({(row.label, *row.captions) for row in rows}) == 200
