"""Captions with hard negatives: of scenes, where truth is known, and from files as SugarCrepe publishes them."""

import io
import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data import shapes
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.contrasts import list_contrasts
from mmdd_ray.data.formats.scenes import scenes_of, shapes_spec
from mmdd_ray.data.hard_negatives import KINDS, contrasts
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.probes.sets import ContrastSet

THING = re.compile(
    rf"a ({'|'.join(shapes.SIZES)}) ({'|'.join(shapes.COLOURS)}) ({'|'.join(shapes.SHAPES)})"
    rf"(?: (?:at|in) the ({'|'.join(sorted(shapes.CELLS, key=len, reverse=True))}))?"
)
RELATION = re.compile(r"the (first|second) (above|below|left of|right of) the (first|second)")
GAP = 0.2  # centres of two rows or columns are 0.28 apart, and moved by up to 0.02 each


def is_true(caption: str, scene: shapes.Scene) -> bool:
    """Whether the objects that are drawn can be what the words of the caption say, by their coordinates."""
    if f"{scene.background} background" not in caption:
        return False
    said = THING.findall(caption)
    relation = RELATION.search(caption)
    for meant in permutations(scene.objects, len(said)):
        attributes = [(item.size, item.colour, item.shape) for item in meant]
        places = all(
            cell in ("", shapes.CELLS[3 * int(3 * item.y) + int(3 * item.x)])
            for item, (*_, cell) in zip(meant, said, strict=True)
        )
        if attributes == [tuple(one[:3]) for one in said] and places and stands(meant, relation):
            return True
    return False


def stands(meant: tuple[shapes.Object, ...], relation: re.Match[str] | None) -> bool:
    if relation is None:
        return True
    subject, word, other = relation.groups()
    one, two = (meant[("first", "second").index(which)] for which in (subject, other))
    down, right = two.y - one.y, two.x - one.x
    return {"above": down, "below": -down, "left of": right, "right of": -right}[word] > GAP


def test_captions_are_true_and_negatives_are_false() -> None:
    kinds: Counter[str] = Counter()
    for index in range(400):
        scene = shapes.scene(index, seed=6)
        found = contrasts(scene)
        assert found == contrasts(scene)
        for one in found:
            assert is_true(one.caption, scene), one
            assert not is_true(one.negative, scene), one
            kinds[one.kind] += 1
    assert set(kinds) == set(KINDS)
    assert kinds["replace-colour"] == 400  # every scene has a colour to replace
    assert min(kinds.values()) > 100


def test_negatives_differ_in_what_their_kind_says() -> None:
    changed = {"colour": set(shapes.COLOURS), "shape": set(shapes.SHAPES), "size": set(shapes.SIZES)}
    relations = {"above", "below", "left", "right"}
    for index in range(200):
        for one in contrasts(shapes.scene(index, seed=8)):
            words, other = (Counter(text.replace(",", "").split()) for text in (one.caption, one.negative))
            gone, come = set(words - other), set(other - words)
            if one.kind.startswith("swap"):
                assert words == other
                assert one.caption != one.negative
            elif one.kind == "replace-relation":
                assert (len(gone), len(come)) == (1, 1)
                assert gone | come <= relations
            else:
                attribute = changed[one.kind.removeprefix("replace-")]
                assert (len(gone), len(come)) == (1, 1)
                assert gone | come <= attribute


def test_objects_that_look_alike_make_no_relation_false() -> None:
    # two small red circles: "the first above the second" holds whichever way round
    scene = next(
        found
        for index in range(10**5)
        if len((found := shapes.scene(index, seed=1)).objects) == 2
        and len({(item.size, item.colour, item.shape) for item in found.objects}) == 1
    )
    kinds = {one.kind for one in contrasts(scene)}
    assert kinds == {"replace-colour", "replace-shape", "replace-size"}


@pytest.mark.parametrize("uri", ["shapes:5?seed=3&px=16&world=clean", "shapes:5?seed=3&px=16&wrong=1"])
def test_contrasts_of_scenes_have_their_pictures(uri: str) -> None:
    found = list_contrasts(uri, None, 4)
    assert (len(found.images), found.of_images, found.rejects) == (4, 5, [])
    _, draw = shapes_spec(uri)
    read, lost = ContrastSet.read(found.images, image_px=16, max_pixels=10**6, max_bytes=10**6)
    stored, _ = ContrastSet.read(
        [type(one)(one.name, lambda pair=pair: pair["image"], one.contrasts) for one, pair in
         zip(found.images, draw(0, 4), strict=True)],
        image_px=16, max_pixels=10**6, max_bytes=10**6,
    )  # fmt: skip
    assert lost == []
    assert np.array_equal(read.images, stored.images)
    drawn = scenes_of(uri).draw(2)
    named = getattr(drawn, "named", drawn)
    assert found.images[2].contrasts == contrasts(named)  # true ones, whatever captions the data would have


# ---- files


def entry(name: str, caption: str = "a cat", negative: str = "a dog") -> dict[str, str]:
    return {"filename": name, "caption": caption, "negative_caption": negative}


def write(folder: Path, **kinds: object) -> str:
    folder.mkdir(exist_ok=True)
    for kind, entries in kinds.items():
        (folder / f"{kind}.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return str(folder)


def picture(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


def test_files_of_sugarcrepe_are_read(tmp_path: Path) -> None:
    uri = write(
        tmp_path / "data",
        swap_att={"0": entry("1.png", "a red cat  and a dog", "a cat and a red dog"), "7": entry("2.png")},
        add_obj={"0": entry("1.png", "one", "other")},
    )
    for name, colour in (("1.png", "red"), ("2.png", "blue")):
        picture(tmp_path / "images" / name, colour)
    found = list_contrasts(uri, str(tmp_path / "images"), 10)
    assert (found.entries, found.of_images, found.rejects) == (3, 2, [])
    read, lost = ContrastSet.read(found.images, image_px=8, max_pixels=10**6, max_bytes=10**6)
    assert lost == []
    rows = zip(read.owner_M.tolist(), read.kinds, read.captions, read.negatives, strict=True)
    assert sorted(rows) == [
        (0, "add_obj", "one", "other"),
        (0, "swap_att", "a red cat and a dog", "a cat and a red dog"),
        (1, "swap_att", "a cat", "a dog"),
    ]
    assert read.images[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    (one,) = list_contrasts(f"{uri}/add_obj.json", str(tmp_path / "images"), 10).images
    assert [contrast.caption for contrast in one.contrasts] == ["one"]


def test_the_folder_of_clip_benchmark_is_read_as_it_reads_it(tmp_path: Path) -> None:
    kinds = {
        "swap_att": {"0": entry("1.png", "a red cat and a dog", "a cat and a red dog"), "7": entry("2.png")},
        "add_obj": {"0": entry("1.png", "one", "other")},
    }
    uri = write(tmp_path, **kinds)
    for name, colour in (("1.png", "red"), ("2.png", "blue")):
        picture(tmp_path / "val2017" / name, colour)
    theirs = {
        (kind, image.tobytes(), *texts)
        for kind in kinds
        for image, texts in build_dataset(
            f"sugar_crepe/{kind}", root=uri, download=False, task="image_caption_selection"
        )
    }
    found = list_contrasts(uri, f"{uri}/val2017", 10)
    ours = {
        (contrast.kind, Image.open(io.BytesIO(one.read())).tobytes(), contrast.caption, contrast.negative)
        for one in found.images
        for contrast in one.contrasts
    }
    assert ours == theirs
    assert len(ours) == 3


def test_damaged_entries_are_refused_and_counted(tmp_path: Path) -> None:
    bad = {
        "a": "text",
        "b": {"caption": "a", "negative_caption": "b"},
        "c": entry("../secret.png"),
        "d": entry("/etc/passwd"),
        "e": entry("1.png", "  "),
        "f": entry("1.png", "the same", "the  same "),
        "g": {"filename": "1.png", "caption": "a", "negative_caption": 3},
    }
    lost_images = {"h": entry("nowhere.png"), "i": entry("broken.png"), "j": entry("large.png")}
    uri = write(tmp_path, kind=bad | lost_images | {"z": entry("1.png")})
    picture(tmp_path / "1.png", "red")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "large.png").write_bytes(bytes(1001))
    found = list_contrasts(uri, None, 10)
    assert [(key, reason) for _, key, reason in found.rejects] == [
        ("a", "entry is no object"),
        ("b", "missing filename"),
        ("c", "file outside of the image folder"),
        ("d", "file outside of the image folder"),
        ("e", "missing caption"),
        ("f", "negative is the caption itself"),
        ("g", "missing negative_caption"),
    ]
    read, lost = ContrastSet.read(found.images, image_px=8, max_pixels=10**6, max_bytes=1000)
    assert (len(read.images), read.captions) == (1, ("a cat",))
    assert lost == [
        ("kind", "broken.png", "not an image"),
        ("kind", "large.png", "file too large"),
        ("kind", "nowhere.png", "missing image"),
    ]
    assert found.entries == len(bad) + len(lost_images) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"0": {}, "0": {}}', "'0' is there twice"),
        ("[1]", "holds a JSON list"),
        ('{"0": {}}', "no usable entry"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_contrasts(write(tmp_path, kind=content), None, 10)


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder with JSON files"):
        list_contrasts(str(tmp_path), None, 10)
    with pytest.raises(UserError, match="no such file"):
        list_contrasts(str(tmp_path / "kind.json"), None, 10)
    with pytest.raises(UserError, match=r"evaluation.compositional=shapes:x"):
        list_contrasts("shapes:x", None, 10)
    with pytest.raises(UserError, match="draws its images"):
        list_contrasts("shapes:3", str(tmp_path), 10)


def test_the_same_images_are_kept_whatever_else_is_there(tmp_path: Path) -> None:
    entries = {str(i): entry(f"{i}.png", str(i)) for i in range(20)}
    uri = write(tmp_path / "one", a=entries)
    few, more = (list_contrasts(uri, None, count) for count in (5, 9))
    assert {one.name for one in few.images} < {one.name for one in more.images}
    assert (few.of_images, few.entries) == (20, 5)


# ---- before the run


def test_sources_are_looked_at_before_the_run(tmp_path: Path) -> None:
    data = Data(uri="shapes:10?seed=1")
    evaluation = Evaluation(val="shapes:10?seed=2", test="shapes:10?seed=3")

    def says(**changes: object) -> dict[str, list[str]]:
        return check_data(data, Evaluation(**{"val": evaluation.val, "test": evaluation.test} | changes))

    found = says(zero_shot="shapes:10?seed=4&labelled=1", compositional="shapes:10?seed=5", linear_probe=True)
    assert found["evaluation.zero_shot"][-1] == "classes are called red circle, red square, red triangle, …"
    assert "swap-relation" in found["evaluation.compositional"][0]
    assert not {"evaluation.zero_shot", "evaluation.compositional"} & says().keys()
    uri = write(tmp_path / "data", kind={"0": entry("1.png")})
    picture(tmp_path / "images" / "1.png", "red")
    found = says(compositional=uri, compositional_image_root=str(tmp_path / "images"))
    assert found["evaluation.compositional"] == ["1 captions with negatives: kind"]
    sampled = says(compositional="shapes:10?seed=5", max_pairs=4)["evaluation.compositional"]
    assert sampled[1:] == ["4 of 10 images, the first ones"]
    for changes, message in (
        ({"zero_shot": "shapes:10?seed=4"}, "has a label"),
        ({"zero_shot": "shapes:10?seed=1&labelled=1"}, "are among those of data.uri"),
        ({"zero_shot": str(tmp_path / "nowhere")}, r"evaluation\.zero_shot=.*nowhere"),
        ({"compositional": "shapes:10?seed=1"}, "are among those of data.uri"),
        ({"compositional": uri}, r"1\.png is not there.*compositional_image_root"),
        ({"linear_probe": True}, "needs labelled images"),
        ({"templates": ("a photo",)}, "must hold '{}' once"),
        ({"compositional_image_root": "x"}, "needs captions with negatives"),
    ):
        with pytest.raises(UserError, match=message):
            says(**changes)
    with pytest.raises(UserError, match="test of dual encoders"):
        check_data(data, Evaluation(val="a", test="b", compositional="shapes:3"), labelled=True)
