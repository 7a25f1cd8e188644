"""Which pairs agree by CLIP, against NumPy, and what a run does with the share of them that is matched."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mmdd_ray.config import Data, Features
from mmdd_ray.data import shapes
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.engine.run_dir import RunDir, StageDir
from mmdd_ray.features.agreement import Agreeing, pair_numbers, score_table, threshold
from mmdd_ray.features.coresets import pair_scores
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.precompute import precompute, summary
from mmdd_ray.features.store import FeatureStore, image_features, text_features
from mmdd_ray.storage.store import Store

FEATURES = Features(chunk_pairs=16, clip_score_fraction=0.3)


def test_scores_that_are_no_numbers_have_no_threshold() -> None:
    with pytest.raises(ValueError, match="features without a cosine"):
        threshold([np.array([0.5, np.nan], np.float32)], 0.5)


@pytest.mark.parametrize(("fraction", "kept"), [(0.5, 500), (0.07, 70), (1.0, 1000), (1e-9, 1)])
def test_the_threshold_is_that_of_all_pairs_sorted(fraction: float, kept: int) -> None:
    scores = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    found = threshold([scores[:300], scores[300:300], scores[300:]], fraction)
    assert found == np.sort(scores)[::-1][kept - 1]
    assert (scores >= found).sum() == kept


def test_agreeing_pairs_are_found_by_row_and_caption() -> None:
    counts, rows = np.array([3, 0, 1, 2]), np.array([5, 6, 9, 1_000_000])
    pairs = pair_numbers(rows, counts)
    scores = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.4], np.float32)
    agreeing = Agreeing.of({"a": score_table(pairs, scores), "b": score_table(pairs[:1], scores[1:2])}, 0.4)
    assert_array_equal(agreeing.are_in("a", pairs), scores >= 0.4)
    assert not agreeing.are_in("b", pairs).any()
    assert not agreeing.are_in("c", pairs).any()
    assert (agreeing.n_pairs, agreeing.n_images) == (4, 2)
    captions = ["x", "y", "z"]
    told = [
        agreeing.captions({"shard": "a", "index": row, "captions": captions}) for row in (5, 9, 1_000_000)
    ]
    assert told == [["x", "z"], [], ["x", "y"]]
    assert agreeing.captions({"shard": "c", "index": 5, "captions": captions}) == []


@pytest.fixture(scope="module")
def scored(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Path, StageDir]:
    """40 scenes of five captions in two shards, a third that repeats the first, and their features."""
    folder = tmp_path_factory.mktemp("agreement")
    write_shards(Store(str(folder / "data")), 40, seed=1, layout="webdataset", rows_per_shard=20)
    shutil.copy(folder / "data" / "00000.tar", folder / "data" / "00002.tar")
    data = Data(uri=f"{folder}/data/*.tar", max_reject_ratio=0.5)
    return data, folder, features_in(folder / "run", data, FEATURES)


def features_in(run_dir: Path, data: Data, features: Features) -> StageDir:
    with RunDir.open(str(run_dir), "features", "test", data) as run:
        return run.stage("features", lambda stage: precompute(stage, run.store, data, features))


def pairs_of(store: Store) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Float64 features of all stored pairs, image by image, and their captions."""
    tables = list(FeatureStore(store).tables())
    image = np.concatenate([np.repeat(image_features(table), 5, axis=0) for table in tables])
    text = np.concatenate([text_features(table) for table in tables])
    captions = [caption for table in tables for own in table["captions"].to_pylist() for caption in own]
    return image.astype(np.float64), text.astype(np.float64), captions


@pytest.mark.ray
def test_the_moments_are_those_of_the_pairs_that_agree_best(scored: tuple[Data, Path, StageDir]) -> None:
    _, _, stage = scored
    image, text, _ = pairs_of(stage.store)
    assert len(image) == 200  # without the 20 repeated scenes
    cosine = pair_scores(image, text)
    best = cosine >= np.sort(cosine)[-60]
    v, l = image[best] - image[best].mean(0), text[best] - text[best].mean(0)  # noqa: E741
    moments = FeatureStore(stage.store).moments("tiny-clip")
    assert moments.count == 60
    assert_allclose(moments.mean_v, image[best].mean(0), rtol=1e-6, atol=1e-8)
    assert_allclose(moments.cross_covariance, v.T @ l / 60, atol=1e-8)
    found = stage.manifest["extra"]
    assert found["pairs"] == 200
    assert found["agreement"] == {
        "fraction": 0.3,
        "threshold": cosine[best].min(),
        "pairs": 60,
        "of_pairs": 200,
    }
    assert "matched   60 pairs with a CLIP score of 0." in summary(stage)


@pytest.mark.ray
def test_features_are_the_same_whatever_share_is_matched(scored: tuple[Data, Path, StageDir]) -> None:
    data, folder, stage = scored
    whole = features_in(folder / "whole", data, replace(FEATURES, clip_score_fraction=1.0))
    assert {name for name in stage.store.files() if name not in whole.store.files()} == {
        "agreement.json",
        *(f"scores/{shard}.parquet" for shard in ("00000", "00001", "00002")),
    }
    for name in whole.store.files("pairs"):
        assert whole.store.read_bytes(name) == stage.store.read_bytes(name)
    image, text, _ = pairs_of(whole.store)
    assert_allclose(FeatureStore(whole.store).moments().vl, Moments.of(image, text).vl, atol=1e-5)


@pytest.mark.ray
def test_a_pass_that_was_killed_ends_with_the_same_moments(scored: tuple[Data, Path, StageDir]) -> None:
    data, folder, stage = scored
    shutil.copytree(folder / "run", folder / "killed")
    killed = Store(str(folder / "killed" / "features"))
    for name in ("manifest.json", "moments.safetensors", "agreement.json", "shards/00001.json"):
        killed.remove(name)
    killed.remove("scores/00001.parquet")
    again = features_in(folder / "killed", data, FEATURES)
    for name in ("moments.safetensors", "agreement.json", "scores/00001.parquet"):
        assert again.store.read_bytes(name) == stage.store.read_bytes(name)


@pytest.mark.ray
def test_real_batches_hold_the_pairs_that_agree_alone(scored: tuple[Data, Path, StageDir]) -> None:
    data, _, stage = scored
    features = FeatureStore(stage.store)
    agreeing = features.agreeing()
    image, text, captions = pairs_of(stage.store)
    cosine = pair_scores(image, text)
    best = np.flatnonzero(cosine >= np.sort(cosine)[-60])
    pairs = training_pairs(data, image_px=32, seed=0, texts=agreeing.captions)
    batches = list(pairs.iter_batches(batch_size=None, batch_format="numpy"))
    rows = [list(own) for batch in batches for own in batch["captions"]]
    assert sorted(caption for own in rows for caption in own) == sorted(captions[pair] for pair in best)
    assert len(rows) == agreeing.n_images == len(np.unique(best // 5))
    scenes = [shapes.scene(index, seed=1) for index in np.unique(best // 5)]
    shown = np.concatenate([batch["image"] for batch in batches]).astype(int)
    drawn = np.stack([np.asarray(scene.render(32)) for scene in scenes]).astype(int)
    assert sorted(shown.sum((1, 2, 3))) == sorted(drawn.sum((1, 2, 3)))
