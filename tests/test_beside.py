"""Real pairs beside what was drawn for their captions: figures, order, and what is read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.images import encode_png
from mmdd_ray.evaluation.agreement import Agreement
from mmdd_ray.evaluation.report import beside
from mmdd_ray.evaluation.report.beside import beside_real
from mmdd_ray.evaluation.report.gallery import MAX_LETTERS
from mmdd_ray.features.store import FeatureStore, feature_table
from mmdd_ray.storage.store import Store

ROWS = 20


def unit_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.normal(size=(n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain(level: int, width: int = 32, height: int = 32) -> bytes:
    return encode_png(np.full((height, width, 3), level, np.uint8))


def level_of(png: bytes) -> int:
    return int(np.array(Image.open(io.BytesIO(png)).convert("L")).mean())


def test_agreement_is_the_plain_cosine_of_each_text() -> None:
    rng = np.random.default_rng(0)
    text, real, drawn = (unit_rows(rng, 9) for _ in range(3))
    found = Agreement.of(text, real.astype(np.float16), drawn)
    cosines = [[float(np.dot(t, i)) for t, i in zip(text, images, strict=True)] for images in (real, drawn)]
    assert_allclose(found.real_N, cosines[0], atol=2e-3)
    assert_allclose(found.drawn_N, cosines[1], atol=1e-6)
    better = sum(d > r for r, d in zip(*cosines, strict=True))
    assert found.figures() == {
        "prompts": 9,
        "real": pytest.approx(sum(cosines[0]) / 9, abs=2e-3),
        "drawn": pytest.approx(sum(cosines[1]) / 9),
        "drawn_better": pytest.approx(100 * better / 9),
    }
    assert found.worst_real(4) == sorted(range(9), key=cosines[0].__getitem__)[:4]
    assert len(found.worst_real(20)) == 9


def test_equally_good_images_are_no_better_and_stay_in_their_order() -> None:
    same = Agreement(np.array([0.5, 0.2, 0.5, 0.2]), np.array([0.5, 0.2, 0.5, 0.2]))
    assert same.figures()["drawn_better"] == 0
    assert same.worst_real(4) == [1, 3, 0, 2]


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Data, FeatureStore, np.ndarray]:
    """Parquet data of plain images, whose grey level is ten times the row number, and the store of their features."""
    rng, store = np.random.default_rng(1), Store(str(tmp_path / "features"))
    images = unit_rows(rng, ROWS)
    for shard, rows in (("a", range(ROWS // 2)), ("b", range(ROWS // 2, ROWS))):
        keys = [f"k{row}" for row in rows]
        table = {
            "key": keys,
            "image": [plain(10 * row) for row in rows],
            "caption": [f"no. {row}" for row in rows],
        }
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "data" / f"{shard}.parquet")
        pairs = pa.table(
            {
                "index": range(len(rows)),
                "key": keys,
                "captions": [[caption] for caption in table["caption"]],
                "label": [None] * len(rows),
            }
        )
        texts = unit_rows(rng, len(rows))
        store.write_parquet(
            f"pairs/{shard}/00000.parquet", feature_table(pairs, shard, images[list(rows)], texts)
        )
    return Data(uri=str(tmp_path / "data" / "*.parquet")), FeatureStore(store), images


def drawings(sources: list[int], text_ND: np.ndarray, image_ND: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"no. {row}",
            "source_key": f"{'ab'[row >= ROWS // 2]}/k{row}",
            "image": plain(255 - row),
            "image_feature": image_D,
            "text_feature": text_D,
        }
        for row, text_D, image_D in zip(sources, text_ND, image_ND, strict=True)
    ]


@pytest.mark.ray
def test_the_worst_real_pairs_come_first_each_with_its_own_images(
    ray_cluster: None, dataset: tuple[Data, FeatureStore, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, features, real_ND = dataset
    rng = np.random.default_rng(2)
    sources = [3, 17, 9, 12, 3]  # two prompts of one image
    drawn = drawings(sources, unit_rows(rng, 5), unit_rows(rng, 5))
    read: list[list[tuple[str, int]]] = []
    fetch = beside.fetch_pairs
    monkeypatch.setattr(beside, "fetch_pairs", lambda d, asked: read.append(asked) or fetch(d, asked))
    figures, shown = beside_real(drawn, features, data, shown=4)
    scores = [
        float(row["text_feature"] @ real_ND[source]) for row, source in zip(drawn, sources, strict=True)
    ]
    order = sorted(range(5), key=scores.__getitem__)[:4]
    assert [one.caption for one in shown] == [f"no. {sources[number]}" for number in order]
    for one, number in zip(shown, order, strict=True):
        assert one.real is not None
        assert level_of(one.real) == 10 * sources[number]
        assert level_of(one.drawn) == 255 - sources[number]
        assert one.real_score == pytest.approx(scores[number], abs=2e-3)
        assert one.drawn_score == pytest.approx(
            float(drawn[number]["text_feature"] @ drawn[number]["image_feature"])
        )
    assert figures["prompts"] == 5
    assert figures["real"] == pytest.approx(np.mean(scores), abs=2e-3)
    asked = {(("a", source) if source < 10 else ("b", source - 10)) for source in (sources[n] for n in order)}
    assert [set(addresses) for addresses in read] == [asked]


@pytest.mark.ray
def test_data_that_have_changed_leave_a_gap_and_long_captions_are_cut(
    ray_cluster: None, dataset: tuple[Data, FeatureStore, np.ndarray], tmp_path: Path
) -> None:
    data, features, _ = dataset
    rng = np.random.default_rng(3)
    drawn = drawings([1, 2, 4], unit_rows(rng, 3), unit_rows(rng, 3))
    long = "x" * 5000
    drawn[0]["prompt"] = long
    own = tmp_path / "features" / features.files[0]
    rows = [
        {**row, "captions": [long]} if row["key"] == "k1" else row for row in pq.read_table(own).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(own)), own)
    table = pq.read_table(tmp_path / "data" / "a.parquet")
    changed = [{**row, "key": "another"} if row["key"] == "k2" else row for row in table.to_pylist()]
    changed[4]["image"] = b"no image"
    pq.write_table(pa.Table.from_pylist(changed, table.schema), tmp_path / "data" / "a.parquet")
    before = beside_real(drawn, features, data)
    shown = {one.caption[:5]: one for one in before[1]}
    assert [shown[name].real is None for name in ("xxxxx", "no. 2", "no. 4")] == [False, True, True]
    assert shown["xxxxx"].caption == "x" * (MAX_LETTERS - 1) + "…"

    (tmp_path / "data" / "a.parquet").unlink()
    after = beside_real(drawn, features, data)
    assert after[0] == before[0]  # figures come from the features
    assert [one.real for one in after[1]] == [None] * 3


@pytest.mark.ray
def test_a_large_photograph_is_shown_whole_and_small(
    ray_cluster: None, dataset: tuple[Data, FeatureStore, np.ndarray], tmp_path: Path
) -> None:
    data, features, _ = dataset
    table = pq.read_table(tmp_path / "data" / "a.parquet").to_pylist()
    table[5]["image"] = plain(50, width=1200, height=600)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data" / "a.parquet")
    rng = np.random.default_rng(4)
    _, (one,) = beside_real(drawings([5], unit_rows(rng, 1), unit_rows(rng, 1)), features, data)
    assert one.real is not None
    assert Image.open(io.BytesIO(one.real)).size == (160, 80)
