"""The procedural dataset: the same everywhere, and captions that say exactly what is drawn."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data import shapes
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shapes_shards import Layout, write_shards
from mmdd_ray.data.shards import list_shards
from mmdd_ray.errors import UserError
from mmdd_ray.storage.store import Store


def test_a_slice_is_the_same_wherever_it_is_drawn() -> None:
    whole = list(shapes.pairs(0, 12, seed=4))
    assert whole[5:9] == list(shapes.pairs(5, 9, seed=4))
    assert whole[0]["image"] != next(shapes.pairs(0, 1, seed=5))["image"]
    assert len({pair["key"] for pair in whole}) == 12


def test_the_main_object_is_drawn_where_and_as_it_says() -> None:
    for index in range(200):
        scene = shapes.scene(index, seed=9)
        pixels = np.asarray(scene.render(256)).astype(int)
        main = scene.objects[0]
        x, y = int(main.x * 256), int(main.y * 256)
        if main.shape == "ring":  # its centre is empty
            x += int(0.75 * main.radius * 256)
        assert np.abs(pixels[y, x] - main.rgb).max() <= 12, (index, main)
        row, column = divmod(shapes.CELLS.index(main.cell), 3)
        assert (int(main.y * 3), int(main.x * 3)) == (row, column)


@pytest.mark.parametrize("labelled", [False, True])
def test_every_caption_says_all_of_it(labelled: bool) -> None:
    for index in range(200):
        scene = shapes.scene(index, seed=2, labelled=labelled)
        captions = scene.captions()
        assert len(set(captions)) == shapes.CAPTIONS_PER_IMAGE
        for caption in captions:
            words = caption.replace(",", "").replace(":", "").split()
            assert scene.background in words
            for item in scene.objects:
                sizes = shapes.SYNONYMS[item.size]
                names = shapes.SYNONYMS.get(item.shape, (item.shape,))
                assert any(f"{s} {item.colour} {n}" in caption for s in sizes for n in names), (item, caption)
            colours = [word for word in words if word in shapes.COLOURS]
            assert sorted(colours) == sorted(item.colour for item in scene.objects)


def test_relations_are_true() -> None:
    seen = set()
    for index in range(400):
        scene = shapes.scene(index, seed=3)
        for caption in scene.captions():
            if "the first " not in caption:
                continue
            relation = caption.split("the first ")[1].split(" the second")[0]
            seen.add(relation)

            def place(item: shapes.Object, text: str = caption) -> int:
                names = shapes.SYNONYMS.get(item.shape, (item.shape,))
                return min(
                    at
                    for size in shapes.SYNONYMS[item.size]
                    for name in names
                    if (at := text.find(f"{size} {item.colour} {name}")) >= 0
                )

            if len({(o.size, o.colour, o.shape) for o in scene.objects}) < len(scene.objects):
                continue  # two objects of one description
            first, second = sorted(scene.objects, key=place)[:2]
            match relation:
                case "above":
                    assert first.y < second.y
                case "below":
                    assert first.y > second.y
                case "left of":
                    assert first.x < second.x
                case "right of":
                    assert first.x > second.x
    assert seen == {"above", "below", "left of", "right of"}


def test_labelled_scenes_hold_one_object_and_its_class() -> None:
    for pair in shapes.pairs(0, 30, seed=7, labelled=True):
        colour, shape = shapes.CLASS_NAMES[pair["label"]].split()
        names = shapes.SYNONYMS.get(shape, (shape,))
        assert any(f"{colour} {name}" in pair["captions"][0] for name in names)
    assert next(shapes.pairs(0, 1, seed=7))["label"] is None


def test_images_have_the_size_asked_for() -> None:
    for px in (32, 96):
        pair = next(shapes.pairs(0, 1, seed=1, image_px=px))
        assert Image.open(io.BytesIO(pair["image"])).size == (px, px)


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
@pytest.mark.parametrize("labelled", [False, True])
def test_written_shards_read_back_as_what_was_drawn(tmp_path: Path, layout: Layout, labelled: bool) -> None:
    names = write_shards(
        Store(str(tmp_path)),
        7,
        seed=3,
        image_px=16,
        labelled=labelled,
        layout=layout,
        rows_per_shard=3,
    )
    data = Data(uri=str(tmp_path))
    shards = list_shards(data)
    assert [Path(shard.uri).name for shard in shards] == names
    rows = [list(iter_shard(shard, data)) for shard in shards]
    assert [len(of_shard) for of_shard in rows] == [3, 3, 1]
    assert [
        (row.key, row.image, row.captions, row.label, row.reject) for of_shard in rows for row in of_shard
    ] == [
        (pair["key"], pair["image"], pair["captions"], pair["label"], None)
        for pair in shapes.pairs(0, 7, seed=3, image_px=16, labelled=labelled)
    ]


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_shards_written_twice_are_the_same_bytes(tmp_path: Path, layout: Layout) -> None:
    stores = [Store(str(tmp_path / name)) for name in ("a", "b", "b")]  # the third replaces the second
    for store in stores:
        names = write_shards(store, 5, seed=1, layout=layout, rows_per_shard=2)
    assert stores[0].entries() == stores[1].entries() == names
    assert all(stores[0].read_bytes(name) == stores[1].read_bytes(name) for name in names)


def test_a_written_tar_is_laid_out_as_img2dataset_does(tmp_path: Path) -> None:
    [name] = write_shards(Store(str(tmp_path)), 2, seed=1, labelled=True, layout="webdataset")
    pair = next(shapes.pairs(0, 1, seed=1, labelled=True))
    with tarfile.open(tmp_path / name) as archive:
        members = archive.getmembers()
        content = {member.name: archive.extractfile(member).read() for member in members[:3]}  # type: ignore[union-attr]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    record = {name: pair[name] for name in ("key", "captions", "label")} | {"caption": pair["captions"][0]}
    assert json.loads(content.pop(f"{pair['key']}.json")) == record
    assert content == {
        f"{pair['key']}.png": pair["image"],
        f"{pair['key']}.txt": pair["captions"][0].encode(),
    }


def test_shards_are_not_written_beside_others_or_with_nothing_in_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_shards(store, 4, seed=1, layout="webdataset", rows_per_shard=2)
    for settings in ({"layout": "parquet"}, {"layout": "webdataset", "rows_per_shard": 4}):
        with pytest.raises(UserError, match=r"already holds other shards, e\.g\. 0000\d\.tar"):
            write_shards(store, 4, seed=1, **settings)
    for settings, complaint in (
        ({"rows": 0}, "rows=0"),
        ({"rows_per_shard": 0}, "rows_per_shard=0"),
        ({"layout": "zip"}, "layout='zip' must be one of webdataset, parquet"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(UserError, match=complaint):
            write_shards(store, **{"rows": 4, "seed": 1, "layout": "webdataset", **settings})
