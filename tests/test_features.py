"""The feature stage: what it stores, what it counts, and that a killed run resumes to the same bytes."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmdd_ray.config import Data, Features
from mmdd_ray.data import shapes
from mmdd_ray.features.chunks import read_chunks, read_ipc
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.store import FeatureStore, feature_table, image_features, table_moments, text_features
from mmdd_ray.run import RunDir

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
    """Three shards of 20: one image of the second is no image, and the third repeats two keys of the first."""
    folder = tmp_path / "shards"
    folder.mkdir()
    pairs = list(shapes.pairs(0, 60, seed=11))
    pairs[25]["image"] = b"not an image"
    for copy, original in ((45, 3), (59, 19)):
        pairs[copy]["key"] = pairs[original]["key"]
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
    np.testing.assert_allclose(table_moments(table).vl, expected.vl, rtol=1e-6)


def test_chunks_are_cut_by_row_number_and_count_what_they_refuse(shards: Path) -> None:
    from mmdd_ray.data.shards import list_shards

    data = Data(uri=str(shards / "*.tar"))
    second = list_shards(data)[1]
    chunks = list(read_chunks(second, data, image_px=8, chunk_pairs=8))
    assert [chunk.rows_in for chunk in chunks] == [8, 8, 4]
    assert [chunk.is_last for chunk in chunks] == [False, False, True]
    assert [reason for chunk in chunks for _, reason in chunk.rejects] == ["not an image"]
    row = chunks[0].to_row()
    assert read_ipc(row["pairs"])["index"].to_pylist() == [0, 1, 2, 3, 4, 6, 7]
    assert len(read_ipc(row["pairs"])["image"][0].as_py()) == 8 * 8 * 3


@pytest.mark.ray
def test_stage_counts_rejects_and_its_moments_are_those_of_what_it_stored(
    ray_cluster: None, shards: Path, tmp_path: Path
) -> None:
    stage, store = run_stage(shards, tmp_path / "run")
    assert (stage.manifest["rows_in"], stage.manifest["rows_out"]) == (60, 57)
    rejects = store.read_parquet("rejects.parquet").to_pylist()
    assert sorted((r["shard"], r["reason"]) for r in rejects) == [
        ("00001", "not an image"),
        ("00002", "duplicate key"),
        ("00002", "duplicate key"),
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
    assert len(set(keys)) == 57

    # A run that was killed before its last shard was committed reads only that one again.
    before = {name: store.read_bytes(name) for name in store.files("features")}
    resumed, again = run_stage(shards, tmp_path / "other")
    for name in ("manifest.json", "moments.safetensors", "duplicates.parquet", "shards/00002.json"):
        resumed.store.remove(name)
    resumed.store.remove("pairs/00002")
    kept = Path(resumed.store.path("pairs/00000/00000.parquet"))
    written_at = kept.stat().st_mtime_ns
    run_stage(shards, tmp_path / "other")
    assert kept.stat().st_mtime_ns == written_at
    after = {name: again.read_bytes(name) for name in again.files("features")}
    assert before.keys() == after.keys()
    assert all(
        before[name] == after[name] for name in before if not name.endswith(("manifest.json", "started.json"))
    )


@pytest.mark.ray
def test_a_mostly_broken_source_stops_the_run(ray_cluster: None, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of the first 60 rows.*data\.max_reject_ratio=0\.01"):
        run_stage(shards, tmp_path / "run", max_reject_ratio=0.01)
