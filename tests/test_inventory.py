"""What is known of a source from its head."""

import json
from pathlib import Path

from mmdd_ray.config import Data
from mmdd_ray.data.inventory import HEAD_ROWS, look_at
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.storage.store import Store


def test_a_source_is_known_from_its_head(tmp_path: Path) -> None:
    write_shards(Store(str(tmp_path / "tars")), 1700, seed=1, layout="webdataset", rows_per_shard=850)
    write_shards(Store(str(tmp_path / "parquet")), 300, seed=1, layout="parquet", rows_per_shard=100)
    tars = look_at(Data(uri=str(tmp_path / "tars")))
    assert not tars.exact
    assert abs(tars.rows - 1700) < 0.05 * 1700
    assert (tars.shards, tars.captions_per_row) == (2, 5)
    assert tars.bytes == sum(file.stat().st_size for file in (tmp_path / "tars").glob("*.tar"))
    assert tars.holds.startswith(".json, .")
    assert "; JSON keys " in tars.holds
    parquet = look_at(Data(uri=str(tmp_path / "parquet")))
    assert abs(parquet.rows - 300) < 0.05 * 300
    assert "columns " in parquet.holds

    # img2dataset counted them, or they are few
    for shard in ("00000", "00001"):
        stats = {"count": 1000, "successes": 850}
        (tmp_path / "tars" / f"{shard}_stats.json").write_text(json.dumps(stats))
    counted = look_at(Data(uri=str(tmp_path / "tars")))
    assert (counted.rows, counted.exact) == (1700, True)
    write_shards(Store(str(tmp_path / "few")), 40, seed=1, layout="webdataset", rows_per_shard=HEAD_ROWS)
    few = look_at(Data(uri=str(tmp_path / "few")))
    assert (few.rows, few.exact) == (40, True)


def test_an_empty_shard_and_a_limit_leave_a_source_known(tmp_path: Path) -> None:
    write_shards(Store(str(tmp_path)), 40, seed=1, layout="webdataset", rows_per_shard=20)
    (tmp_path / "000.tar").write_bytes(b"\0" * 10240)  # sorted first
    whole = look_at(Data(uri=str(tmp_path)))
    assert abs(whole.rows - 40) <= 6
    limited = look_at(Data(uri=str(tmp_path), limit=25))
    assert limited.rows == 25
    assert limited.bytes is not None
    assert whole.bytes is not None
    assert limited.bytes < whole.bytes


def test_folders_tell_all_their_classes(tmp_path: Path) -> None:
    for number in range(HEAD_ROWS + 20):
        image = tmp_path / f"class{number:04d}" / "0.png"
        image.parent.mkdir()
        image.write_bytes(b"x")
    assert look_at(Data(uri=str(tmp_path))).classes == HEAD_ROWS + 20
