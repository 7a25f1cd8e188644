"""The procedural dataset: the same everywhere, and captions that say exactly what is drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from mmdd_ray.data import shapes


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
