"""The feature stage: what it stores, what it counts, and that a killed run resumes to the same bytes."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from time import sleep

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from numpy.testing import assert_array_equal

from mmdd_ray.config import Data, Features
from mmdd_ray.data import shapes
from mmdd_ray.data.inventory import about_source
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.engine.cluster import ActorPool
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.run_dir import RunDir, StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.features.chunks import read_chunks, read_ipc
from mmdd_ray.features.coresets import joint_features, pair_scores
from mmdd_ray.features.moments import Moments, MomentsSum
from mmdd_ray.features.rejects import ROWS_TO_JUDGE, RejectBudget, RejectList
from mmdd_ray.features.shard_pool import ChunkActor, map_shards
from mmdd_ray.features.store import (
    FeatureStore,
    add_table,
    feature_table,
    image_features,
    shard_files,
    text_features,
)
from mmdd_ray.features.vectors import vector_column, vectors
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
FEATURES = Features(chunk_pairs=16)


def write_tar(path: Path, pairs: list[dict]) -> None:
    with tarfile.open(path, "w") as archive:
        for pair in pairs:
            for suffix, content in (("png", pair["image"]), ("txt", pair["captions"][0].encode())):
                member = tarfile.TarInfo(f"{pair['key']}.{suffix}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 20: one image of the second is no image, and the third repeats two pairs of the first."""
    folder = tmp_path / "shards"
    folder.mkdir()
    pairs = list(shapes.pairs(0, 60, seed=11))
    pairs[25]["image"] = b"not an image"
    for copy, original in ((45, 3), (59, 19)):
        pairs[copy] |= {"image": pairs[original]["image"], "captions": pairs[original]["captions"]}
    pairs[50]["key"] = pairs[10]["key"]  # as of another download
    for number in range(3):
        write_tar(folder / f"{number:05d}.tar", pairs[20 * number : 20 * number + 20])
    return folder


def run_stage(shards: Path, run_dir: Path, features: Features = FEATURES, **data: object):
    from mmdd_ray.features.precompute import precompute

    source = Data(uri=str(shards / "*.tar"), **data)  # type: ignore[arg-type]
    with RunDir.open(str(run_dir), "features", "test", source) as run:
        stage = run.stage("features", lambda stage: precompute(stage, run.store, source, features))
        return stage, run.store


def test_feature_table_keeps_which_caption_belongs_to_which_image() -> None:
    rng = np.random.default_rng(0)
    pairs = pa.table(
        {"index": [0, 1], "key": ["a", "b"], "captions": [["x", "y", "z"], ["w"]], "label": [None, 7]}
    )
    image, text = rng.normal(size=(2, 4)), rng.normal(size=(4, 4))
    table = feature_table(pairs, "00000", image, text)
    np.testing.assert_array_equal(image_features(table), image.astype(np.float16))
    np.testing.assert_array_equal(text_features(table), text.astype(np.float16))
    assert [len(own) for own in table["text"].to_pylist()] == [3, 1]
    repeated = image.astype(np.float16)[[0, 0, 0, 1]]
    expected = Moments.of(repeated, text.astype(np.float16))
    total = MomentsSum()
    add_table(total, table)
    np.testing.assert_allclose(total.moments().vl, expected.vl, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_vectors_are_stored_as_they_are(tmp_path: Path, dtype: type[np.floating], rows: int) -> None:
    values = np.random.default_rng(0).normal(size=(rows, 5)).astype(dtype)
    store = Store(str(tmp_path))
    store.write_parquet("v.parquet", pa.table({"v": vector_column(values)}))
    column = store.read_parquet("v.parquet")["v"]
    np.testing.assert_array_equal(vectors(column, dtype), values)
    np.testing.assert_array_equal(vectors(column.slice(2, 3), dtype), values[2:5])
    assert [np.frombuffer(row, dtype).tolist() for row in column.to_pylist()] == values.tolist()


def test_what_is_read_of_all_rows_is_in_their_order(tmp_path: Path) -> None:
    rng, store = np.random.default_rng(0), Store(str(tmp_path))
    texts, joint, captions, images, firsts = [], [], [], [], []
    for shard in ("a", "b"):
        for number in range(2):
            own = [[f"{shard}{number}{row}-{i}" for i in range(1 + row % 3)] for row in range(5)]
            pairs = pa.table(
                {
                    "index": range(5),
                    "key": [f"{shard}{number}{row}" for row in range(5)],
                    "captions": own,
                    "label": [0, 0, 7, 0, 7],
                }
            )
            image, text = rng.normal(size=(5, 4)), rng.normal(size=(sum(map(len, own)), 4))
            store.write_parquet(
                f"pairs/{shard}/{number:05d}.parquet", feature_table(pairs, shard, image, text)
            )
            texts.append(text.astype(np.float16))
            sums = [
                sum(part) for part in np.split(texts[-1].astype(np.float32), np.cumsum([*map(len, own)])[:-1])
            ]
            joint.append(joint_features(image.astype(np.float16), np.array(sums)))
            images.append(image.astype(np.float16))
            firsts.append(texts[-1][np.cumsum([0, *map(len, own)])[:-1]])
            captions += [
                (caption, f"{shard}/{caption[:3]}") for captions_of in own for caption in captions_of
            ]
    # as whole chunks of repeated rows are left
    store.write_parquet("pairs/b/00002.parquet", store.read_parquet("pairs/b/00001.parquet").slice(0, 0))
    features = FeatureStore(store)
    assert list(features.addresses) == [(shard, row) for shard in "ab" for _ in range(2) for row in range(5)]
    assert features.addresses[-3:] == [("b", 2), ("b", 3), ("b", 4)]
    assert_array_equal(np.concatenate(features.caption_features()), np.concatenate(texts))
    np.testing.assert_allclose(np.concatenate(features.joint_features()), np.concatenate(joint), atol=2e-3)
    images_ND, labels = np.concatenate(images), [0, 0, 7, 0, 7] * 4
    assert_array_equal(features.clip_scores(), pair_scores(images_ND, np.concatenate(firsts)))
    of_class = {7: rng.normal(size=4).astype(np.float32), 0: rng.normal(size=4).astype(np.float32)}
    expected = pair_scores(images_ND, np.stack([of_class[label] for label in labels]))
    assert_array_equal(features.clip_scores(of_class), expected)
    asked = rng.permutation(len(captions))
    assert features.captions_at(asked) == [captions[number] for number in asked]
    assert features.captions_at(asked[:0]) == []
    assert FeatureStore(store.child("empty")).caption_features() == []


def test_images_are_found_by_shard_key_and_caption_and_features_read_only_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, store = np.random.default_rng(0), Store(str(tmp_path))
    images = rng.normal(size=(12, 4)).astype(np.float16)
    for number in range(4):
        rows, shard = range(3 * number, 3 * number + 3), "ab"[number // 2]
        pairs = pa.table(
            {
                "index": [10 + row for row in rows],
                "key": [f"k{row % 6}" for row in rows],  # those of the two shards are the same
                "captions": [["x", f"of {row}"] for row in rows],
                "label": [None] * 3,
            }
        )
        table = feature_table(pairs, shard, images[rows], np.zeros((6, 4)))
        store.write_parquet(f"pairs/{shard}/{number % 2:05d}.parquet", table)
    reads: list[tuple[str, list[str] | None]] = []
    read = Store.read_parquet

    def noted(self: Store, name: str, columns: list[str] | None = None) -> pa.Table:
        reads.append((name.removeprefix("pairs/").removesuffix(".parquet"), columns))
        return read(self, name, columns)

    monkeypatch.setattr(Store, "read_parquet", noted)
    found = FeatureStore(store).images_of([("b/k2", "x"), ("b/k0", "of 6"), ("b/k2", "x"), ("b/k0", "of 0")])
    assert {name: image.address for name, image in found.items()} == {
        ("b/k2", "x"): ("b", 18),
        ("b/k0", "of 6"): ("b", 16),
    }
    assert_array_equal(found["b/k2", "x"].feature, images[8])
    assert_array_equal(found["b/k0", "of 6"].feature, images[6])
    assert [name for name, columns in reads if columns == ["key", "captions"]] == ["b/00000", "b/00001"]
    assert [name for name, columns in reads if columns == ["index", "image"]] == ["b/00000"]
    assert FeatureStore(store).images_of([]) == {}


def test_chunks_are_cut_by_row_number_and_count_what_they_refuse(shards: Path) -> None:
    data = Data(uri=str(shards / "*.tar"))
    second = list_shards(data)[1]
    chunks = list(read_chunks(second, data, image_px=8, chunk_pairs=8))
    assert [chunk.rows_in for chunk in chunks] == [8, 8, 4]
    assert [chunk.is_last for chunk in chunks] == [False, False, True]
    assert [reason for chunk in chunks for _, reason in chunk.rejects] == ["not an image"]
    row = chunks[0].to_row()
    assert read_ipc(row["pairs"])["index"].to_pylist() == [0, 1, 2, 3, 4, 6, 7]
    assert len(read_ipc(row["pairs"])["image"][0].as_py()) == 8 * 8 * 3


def digest(shard: Shard, data: Data, chunk_pairs: int = 8) -> str:
    return list(read_chunks(shard, data, image_px=8, chunk_pairs=chunk_pairs))[-1].digest


def test_the_fingerprint_is_of_all_that_is_read_and_of_nothing_else(shards: Path, tmp_path: Path) -> None:
    data = Data(uri=str(shards / "*.tar"))
    found = [digest(shard, data) for shard in list_shards(data)]
    assert len(set(found)) == 3
    elsewhere = Data(uri=str(shutil.copytree(shards, tmp_path / "elsewhere")))
    assert [digest(shard, elsewhere, chunk_pairs=5) for shard in list_shards(elsewhere)] == found
    pairs = list(shapes.pairs(0, 20, seed=11))
    changes = ({"image": b"another"}, {"key": "another"}, {"captions": ["another"]})
    for number, change in enumerate(changes):
        write_tar(tmp_path / f"{number}.tar", [*pairs[:7], pairs[7] | change, *pairs[8:]])
        (shard,) = list_shards(changed := Data(uri=str(tmp_path / f"{number}.tar")))
        assert digest(shard, changed) != found[0]


@pytest.mark.ray
def test_what_was_never_downloaded_is_told(
    ray_cluster: None, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of img2dataset: the second shard was cut after 20 of 23 rows, that of the third says nothing."""
    for shard, record in (("00000", (40, 20)), ("00001", (35, 23)), ("00002", ("many", 3))):
        stats = dict(zip(("count", "successes"), record, strict=True))
        (shards / f"{shard}_stats.json").write_text(json.dumps(stats))
    from mmdd_ray.features.precompute import precompute

    data = Data(uri=f"{shards}/{{00000..00003}}.tar", max_reject_ratio=0.3)
    with RunDir.open(str(tmp_path / "run"), "features", "test", data) as run:
        stage = run.stage("features", lambda stage: precompute(stage, run.store, data, FEATURES))
    assert "1 files are not there: 00003.tar" in capsys.readouterr().out
    source = stage.manifest["extra"]["source"]
    assert {name: value for name, value in source.items() if name != "fingerprint"} == {
        "shards": 3,
        "missing_files": ["00003.tar"],
        "recorded_shards": 2,
        "listed": 75,
        "downloaded": 43,
    }
    assert stage.manifest["rows_in"] == 63
    assert stage.manifest["rejects"]["missing row of img2dataset's count"] == 3
    assert about_source(source) == [
        "43 of 75 listed pairs of 2 of 4 shards were downloaded (57.3 %)",
        "1 files of the range are not there: 00003.tar",
        f"fingerprint {source['fingerprint']}",
    ]


@pytest.mark.ray
def test_stage_counts_rejects_and_its_moments_are_those_of_what_it_stored(
    ray_cluster: None, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, store = run_stage(shards, tmp_path / "run")
    assert (stage.manifest["rows_in"], stage.manifest["rows_out"]) == (60, 57)
    rejects = store.read_parquet("rejects.parquet").to_pylist()
    assert sorted((r["shard"], r["reason"]) for r in rejects) == [
        ("00001", "not an image"),
        ("00002", "duplicate pair"),
        ("00002", "duplicate pair"),
    ]
    features = FeatureStore(stage.store)
    tables = list(features.tables())
    image = np.concatenate([image_features(table) for table in tables]).astype(np.float64)
    text = np.concatenate([text_features(table) for table in tables]).astype(np.float64)
    moments = features.moments("tiny-clip")
    assert moments.count == len(image) == len(features.addresses) == 57
    reference = (image - image.mean(0)).T @ (text - text.mean(0)) / 57
    np.testing.assert_allclose(moments.cross_covariance, reference, atol=1e-7)
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert len(set(keys)) == 56  # two shards may have the same key
    digests = features.image_digests()
    assert len(set(digests.tolist())) == len(digests) == 57

    # The moments of a shard are those of its chunks, summed in their order: to the bit, so that resuming is exact.
    for shard in ("00000", "00001"):
        stored = [t for t in tables if t["shard"][0].as_py() == shard]
        total = MomentsSum()
        for table in stored:
            add_table(total, table)
        kept_moments = stage.store.read_bytes(f"shards/{shard}.safetensors")
        assert kept_moments == total.moments().to_bytes("", "float16"), shard

    # A run that was killed before two shards were committed reads only those again, and keeps a chunk of theirs.
    before = {name: store.read_bytes(name) for name in store.files("features")}
    monkeypatch.setattr("mmdd_ray.features.shard_pool.MAX_COMMITS", 1)  # each waits for the one before
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    killed = Store(str(tmp_path / "other/features"))
    for name in ("manifest.json", "moments.safetensors", "duplicates.parquet"):
        killed.remove(name)
    for name in ("shards/00001.json", "shards/00002.json", "pairs/00001/00001.parquet", "pairs/00002"):
        killed.remove(name)
    kept = [tmp_path / f"other/features/pairs/{name}/00000.parquet" for name in ("00000", "00001")]
    written_at = [file.stat().st_mtime_ns for file in kept]
    _, again = run_stage(shards, tmp_path / "other")
    assert [file.stat().st_mtime_ns for file in kept] == written_at
    after = {name: again.read_bytes(name) for name in again.files("features")}
    assert before.keys() == after.keys()
    others = [name for name in before if not name.endswith(("manifest.json", "started.json"))]
    assert {name: before[name] for name in others} == {name: after[name] for name in others}


@pytest.mark.ray
def test_a_mostly_broken_source_stops_the_run(ray_cluster: None, shards: Path, tmp_path: Path) -> None:
    message = (
        r"^data\.uri: 1 of the first 60 rows were refused \(1 not an image\).*data\.max_reject_ratio=0\.01"
    )
    with pytest.raises(ValueError, match=message) as stopped:
        run_stage(shards, tmp_path / "run", max_reject_ratio=0.01)
    rejects = tmp_path / "run" / "rejects.parquet"
    assert str(rejects) in str(stopped.value)
    assert [row["reason"] for row in pq.read_table(rejects).to_pylist()] == ["not an image"]


@pytest.mark.job
def test_a_refusal_after_ray_has_begun_is_one_sentence_and_nothing_else(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image %d" % number)
    job = [sys.executable, "jobs/precompute.py", "--data.uri", str(tmp_path / "data"), "--run.num_cpus", "1"]
    run = subprocess.run(
        [*job, "--run.dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") <= 2, run.stderr
    assert "error: data.uri: 6 of the first 6 rows were refused (6 not an image)" in run.stderr


@pytest.mark.ray
def test_duplicates_of_other_shards_count_as_refused(ray_cluster: None, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 of the first 60 rows.*\(2 duplicate pair, 1 not an image\)"):
        run_stage(shards, tmp_path / "run", max_reject_ratio=0.02)  # one of 60 is below it, three are not


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_an_object_store_smaller_than_the_data_changes_nothing(ray_cluster: None, tmp_path: Path) -> None:
    from mmdd_ray.features.precompute import precompute

    source = Data(uri="shapes:600?seed=4")
    features = Features(image_px=224, chunk_pairs=200)  # 90 MB of pixels in all
    with RunDir.open(str(tmp_path / "roomy"), "features", "test", source) as run:
        run.stage("features", lambda stage: precompute(stage, run.store, source, features))
    where = f"--run.dir {tmp_path}/full --run.object_store_mib 80 --run.num_cpus 2 --data.uri {source.uri}"
    settings = [*where.split(), "--features.image_px", "224", "--features.chunk_pairs", "200"]
    job = [sys.executable, "jobs/precompute.py", "local", *settings]
    subprocess.run(job, cwd=ROOT, check=True, capture_output=True, timeout=250)
    moments = [
        (tmp_path / run / "features" / "moments.safetensors").read_bytes() for run in ("roomy", "full")
    ]
    assert moments[0] == moments[1]


# ---- how many rows may be refused


def tally(folder: Path, total_rows: int | None) -> RejectBudget:
    run = Store(str(folder))
    return RejectBudget("data.uri", 0.1, RejectList(run.child("features"), run), total_rows)


def refused(count: int) -> list[tuple[str, str, str]]:
    return [("00000", str(number), "blank caption") for number in range(count)]


def test_a_bad_shard_that_is_read_first_does_not_stop_a_good_source(tmp_path: Path) -> None:
    for total_rows in (100_000, None):
        good = tally(tmp_path, total_rows)
        good.add(10_000, refused(10_000))
        good.add(90_000, [])
        good.judge()
    assert not (tmp_path / "rejects.parquet").exists()


@pytest.mark.parametrize(("total_rows", "stops_at"), [(100_000, 10_001), (None, ROWS_TO_JUDGE // 10 + 1)])
def test_a_source_stops_as_soon_as_the_rows_to_come_cannot_mend_it(
    tmp_path: Path, total_rows: int | None, stops_at: int
) -> None:
    broken = tally(tmp_path, total_rows)
    broken.add(stops_at - 1, refused(stops_at - 1))
    with pytest.raises(ValueError, match=rf"{stops_at:,} of the first {stops_at:,} rows were refused"):
        broken.add(1, refused(1))
    assert len(pq.read_table(tmp_path / "rejects.parquet")) == stops_at


def test_a_short_source_is_judged_at_its_end(tmp_path: Path) -> None:
    short = tally(tmp_path, None)
    short.add(10, refused(2))
    with pytest.raises(ValueError, match=r"2 of the first 10 rows were refused \(2 blank caption\)"):
        short.judge()


# ---- too little memory


def who() -> type[ChunkActor]:
    """Writes which process has worked off a chunk; made here, so that workers need not import this module."""

    class Who(ChunkActor):
        def work(self, shard: str, number: int, pairs: pa.Table, images_BHWC: np.ndarray) -> pa.Table:
            sleep(0.2)
            return pa.table({"index": pairs["index"], "pid": [os.getpid()] * len(pairs)})

    return Who


def test_a_chunk_that_was_written_is_kept_if_it_is_of_the_same_pairs(tmp_path: Path) -> None:
    def written(uri: str, is_written: bool) -> int:
        data = Data(uri=uri)
        (chunk,) = read_chunks(list_shards(data)[0], data, image_px=8, chunk_pairs=4)
        chunk.is_written = is_written
        who()(Store(str(tmp_path)))(pa.Table.from_pylist([chunk.to_row()]))
        (file,) = tmp_path.rglob("*.parquet")
        return file.stat().st_mtime_ns

    first = written("shapes:2?seed=1", is_written=False)
    assert written("shapes:2?seed=1", is_written=True) == first
    other = written("shapes:2?seed=2", is_written=True)
    assert other > first
    assert written("shapes:2?seed=2", is_written=False) > other


@pytest.mark.ray
def test_chunks_of_one_shard_are_shared_out_among_the_actors(ray_cluster: None, tmp_path: Path) -> None:
    """One after the other, so that progress is counted by chunk, too."""
    data = Data(uri="shapes:16")
    stage = StageDir("describe", Store(str(tmp_path)), "describe")
    pool: ActorPool = {"num_cpus": 0.5, "num_gpus": 0, "compute": ray.data.ActorPoolStrategy(size=2)}
    seen = map_shards(stage, list_shards(data), data, who(), image_px=8, chunk_pairs=2, pool=pool)
    assert [rows for rows, _ in seen] == [2] * 8
    tables = [stage.store.read_parquet(file) for file in shard_files(stage.store)]
    assert len({table["pid"][0].as_py() for table in tables}) == 2


def test_a_full_gpu_names_the_setting_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdd_ray.features.encoder import ClipSource, FeatureEncoder

    def full(images: np.ndarray) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    encoder = FeatureEncoder(Store(str(tmp_path)), ClipSource("tiny-clip"))
    monkeypatch.setattr(encoder.encoder, "encode_images", full)
    data = Data(uri="shapes:2")
    (chunk,) = read_chunks(list_shards(data)[0], data, image_px=8, chunk_pairs=4)
    with pytest.raises(UserError, match=r"^the GPU ran out of memory; lower features\.chunk_pairs"):
        encoder(pa.Table.from_pylist([chunk.to_row()]))


@pytest.mark.parametrize("allocate", [lambda: np.empty(2**50, np.uint8), lambda: torch.empty(2**50)])
def test_a_full_machine_names_the_setting_to_lower(allocate: Callable[[], object]) -> None:
    message = r"^the machine ran out of memory; lower features\.chunk_pairs"
    with pytest.raises(UserError, match=message), out_of_memory("features.chunk_pairs"):
        allocate()


def test_other_errors_of_a_gpu_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="device-side assert"), out_of_memory("features.chunk_pairs"):
        raise RuntimeError("device-side assert triggered")
