"""Slices of a source, and validation and test data that are held out of the training data."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import fates, jpeg, pair, read, write_images, write_json, write_tar

import mmdd_ray
from mmdd_ray.config import Data, Evaluation, Features
from mmdd_ray.config.slices import Slice, hold_out_shares, sliced
from mmdd_ray.data import shapes
from mmdd_ray.data.checks import check_data, check_given
from mmdd_ray.data.inventory import look_at
from mmdd_ray.data.pair import Row
from mmdd_ray.data.readers import is_in
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.data.shards import find_shards
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.run_dir import RunDir
from mmdd_ray.errors import UserError
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.methods.evaluate.look import look_at_sets
from mmdd_ray.methods.evaluate.presets import local as pairs_settings
from mmdd_ray.methods.named_sets import named_sets, refuse_origin
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
FIRST_THIRTY = [0, 2, 4, 6, 8]
PARTS = ("[:20%]", "[20%:30%]", "[30%:]")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images with captions beside them, and nothing else."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, one in enumerate(shapes.pairs(0, 60, seed=6)):
        folder.joinpath(f"{i:02d}.png").write_bytes(one["image"])
        folder.joinpath(f"{i:02d}.txt").write_text("\n".join(one["captions"]))
    return folder


@pytest.mark.parametrize(
    ("split", "name", "part"),
    [
        (None, None, Slice(0, 100)),
        ("train", "train", Slice(0, 100)),
        ("[:10%]", None, Slice(0, 10)),
        ("train[12.5%:]", "train", Slice(12.5, 100)),
        ("all[10%:20%]", "all", Slice(10, 20)),
        ("test[:]", "test", Slice(0, 100)),
    ],
)
def test_a_slice_is_written_as_hugging_face_writes_it(
    split: str | None, name: str | None, part: Slice
) -> None:
    assert sliced(split) == (name, part)
    assert sliced(part.within(name)) == (name, part)
    assert part.share == pytest.approx((part.last - part.first) / 100)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[:100]", "give it in percent"),
        ("[10]", "give it in percent"),
        ("[-10%:]", "give it in percent"),
        ("[20%:10%]", "holds nothing"),
        ("[10%:10%]", "holds nothing"),
        ("[:120%]", "holds nothing"),
    ],
)
def test_what_is_no_slice_is_refused(split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_shards(Data(uri="shapes:10?seed=1", split=split))


def _layouts(folder: Path) -> dict[str, Data]:
    """The same forty images as scenes, tars, Parquet, files, and a table of them."""
    scenes = Data(uri="shapes:40?seed=3&captions=2", rows_per_shard=9)
    rows = [(f"{i:02d}", row.image or b"", row.captions) for i, row in enumerate(read(scenes))]
    (folder / "files").mkdir()
    (folder / "images").mkdir()
    for key, image, captions in rows:
        (folder / "files" / f"{key}.png").write_bytes(image)
        (folder / "files" / f"{key}.txt").write_text(captions[0])
        (folder / "images" / f"{key}.png").write_bytes(image)
    for number in (0, 1):
        members = [
            member
            for key, image, captions in rows[number::2]
            for member in ((f"{key}.png", image), (f"{key}.txt", captions[0].encode()))
        ]
        write_tar(folder / f"{number}.tar", members)
    keys, images, captions_of = zip(*rows, strict=True)
    table = pa.table({"key": keys, "image": images, "captions": captions_of})
    pq.write_table(table, folder / "pairs.parquet")
    listed = [{"image": f"{key}.png", "caption": one} for key, _, captions in rows for one in captions]
    write_json(folder / "pairs.json", listed)
    return {
        "scenes": scenes,
        "tars": Data(uri=str(folder / "*.tar")),
        "parquet": Data(uri=str(folder / "pairs.parquet")),
        "files": Data(uri=str(folder / "files"), rows_per_shard=7),
        "table": Data(uri=str(folder / "pairs.json"), image_root=str(folder / "images")),
    }


def test_slices_of_every_layout_share_out_its_images_alike(tmp_path: Path) -> None:
    found = {
        name: [{row.image for row in read(replace(data, split=part))} for part in PARTS]
        for name, data in _layouts(tmp_path).items()
    }
    first, *others = found.values()
    assert all(other == first for other in others)
    assert [len(part) > 0 for part in first] == [True, True, True]
    assert sum(map(len, first)) == len(set.union(*first)) == 40


def test_a_slice_has_its_share_and_rows_keep_their_addresses() -> None:
    whole = read(Data(uri="shapes:1100?seed=4&captions=1"))
    tenth = read(Data(uri="shapes:1100?seed=4&captions=1", split="[40%:50%]"))
    assert len(tenth) == pytest.approx(110, abs=4 * (1100 * 0.1 * 0.9) ** 0.5)
    assert all(row == whole[1000 * int(row.shard[-5:]) + row.index] for row in tenth)
    only = {row.index for row in tenth if row.shard.endswith("00001")}
    again = read(Data(uri="shapes:1100?seed=4&captions=1", split="[40%:50%]"), only={*only, 0, 1, 2})
    assert [row.index for row in again if row.shard.endswith("00001")] == sorted(only)


def test_equal_images_are_in_one_slice_and_a_refused_row_in_one_of_them(tmp_path: Path) -> None:
    members = [member for i in range(60) for member in pair(f"{i:02d}", f"caption {i}", level=8 * (i % 30))]
    uri = write_tar(tmp_path / "0.tar", [*members, *((f"x{i}.jpg", jpeg(0)) for i in range(40))])
    parts = [read(Data(uri=uri, split=part)) for part in PARTS]
    images = [{row.image for row in rows if row.image} for rows in parts]
    assert sum(map(len, images)) == len(set.union(*images)) == 30
    assert sum(map(len, parts)) == 100
    refused = [sum(reject is not None for _, reject in fates(rows)) for rows in parts]
    assert sum(refused) == 40
    assert min(refused) > 0


def test_the_slice_of_an_image_is_the_same_for_ever() -> None:
    """A resumed run would otherwise be trained on what it is tested on."""
    rows = [Row("s", i, "k", f"image {i}".encode(), ["a"], None, None) for i in range(12)]
    assert [i for i, row in enumerate(rows) if is_in(row, Slice(0, 30))] == FIRST_THIRTY


def test_a_split_has_slices_too(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{split}/c{n % 2}/{n}.jpg" for split in ("train", "test") for n in range(20)))
    whole = read(Data(uri=str(tmp_path), split="train"))
    parts = [read(Data(uri=str(tmp_path), split=f"train{part}")) for part in PARTS]
    assert sorted(row.index for rows in parts for row in rows) == list(range(20)) == [r.index for r in whole]
    with pytest.raises(UserError, match="holds folders of splits"):
        find_shards(Data(uri=str(tmp_path), split="[:50%]"))


def test_a_source_is_told_to_be_sliced_and_counted_as_about_so_many(photos: Path) -> None:
    data = Data(uri=str(photos), split="[:25%]")
    said = "0 to 25 % of the images (about 15) are read, by their content, the same in every run"
    assert said in find_shards(data).says
    source, whole = look_at(data), look_at(replace(data, split=None))
    assert (source.rows, source.exact) == (15, False)
    assert look_at(replace(data, split="[:0.01%]")).captions_per_row == whole.captions_per_row > 0


# ---- held out of the training data


def test_shares_are_cut_from_the_training_data() -> None:
    settings = mmdd_ray.settings(
        "covmatch", "local", {"data.uri": "photos", "evaluation": {"val": "10%", "test": "20%"}}
    )
    found = hold_out_shares(settings)
    assert (found.data.uri, found.data.split) == ("photos", "[30%:]")
    assert (found.evaluation.test, found.evaluation.test_split) == ("photos", "[:20%]")
    assert (found.evaluation.val, found.evaluation.val_split) == ("photos", "[20%:30%]")
    assert hold_out_shares(found) == found
    assert hold_out_shares(mmdd_ray.settings("covmatch")) == mmdd_ray.settings("covmatch")
    assert hold_out_shares(mmdd_ray.settings("precompute")) == mmdd_ray.settings("precompute")


def test_a_share_is_one_of_the_slice_that_is_there_and_of_labelled_images_too() -> None:
    settings = mmdd_ray.settings(
        "vlcp",
        "local",
        {"data.uri": "a.json", "data.image_root": "images", "data.split": "train[50%:]"}
        | {"evaluation.test": "held out", "evaluation.val": "10%"},
    )
    found = hold_out_shares(settings)
    assert found.data.split == "train[55%:]"
    assert found.evaluation.val_split == "train[50%:55%]"
    assert found.evaluation.val_image_root == "images"
    assert (found.evaluation.test, found.evaluation.test_split) == ("held out", None)


def test_a_share_takes_the_place_of_a_source_that_a_preset_names() -> None:
    settings = mmdd_ray.settings(
        "covmatch", "flickr30k", {"data": {"uri": "pictures", "split": None, "image_root": None}}
    )
    assert settings.evaluation.test_split is not None
    changed = replace(settings, evaluation=replace(settings.evaluation, val="10%", test="10%"))
    found = hold_out_shares(changed, [settings]).evaluation
    assert (found.test, found.test_split, found.test_image_root) == ("pictures", "[:10%]", None)
    own = replace(changed, evaluation=replace(changed.evaluation, val_split="mine"))
    with pytest.raises(
        UserError, match=r"val_split=mine is for a source of its own.*; set evaluation\.val_split to"
    ):
        hold_out_shares(own, [settings])


def test_boundaries_are_written_as_exactly_as_they_are() -> None:
    settings = mmdd_ray.settings(
        "covmatch", "local", {"data.split": "[:66.6666666%]", "evaluation.val": "33.3333333%"}
    )
    found = hold_out_shares(settings)
    (_, val), (_, training) = sliced(found.evaluation.val_split), sliced(found.data.split)
    assert val.last == training.first == pytest.approx(66.6666666 * 0.333333333)
    assert training.last == 66.6666666
    third = Slice(0, 100 / 3)
    assert sliced(third.within(None))[1].last == pytest.approx(100 / 3, rel=1e-14)


def test_slices_of_one_source_are_of_its_first_rows_where_these_are_limited() -> None:
    settings = mmdd_ray.settings(
        "covmatch", "local", {"data": {"uri": "pictures", "limit": 50}, "evaluation.test": "10%"}
    )
    found = hold_out_shares(settings)
    sources = found.evaluation.sources(found.data)
    assert {part: source.limit for part, source in sources.items()} == {"val": None, "test": 50}
    other = replace(found.evaluation, test_split="test[:50%]")  # of another split
    assert other.sources(found.data)["test"].limit is None


def test_runs_from_python_hold_shares_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def check(settings: Any) -> None:
        seen.append(settings)
        raise UserError("far enough")

    monkeypatch.setattr("mmdd_ray.methods.execute.check", check)
    settings = mmdd_ray.settings("covmatch", "local", {"data.uri": "pictures", "evaluation.test": "20%"})
    with pytest.raises(UserError, match="far enough"):
        mmdd_ray.distill(settings)
    assert seen[0].data.split == "[20%:]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": "50%", "test": "50%"}, "test=50% and evaluation.val=50% leave nothing of data.uri"),
        ({"val": "100%"}, "evaluation.val=100% leaves nothing of data.uri to train on"),
        ({"val": "0%"}, "evaluation.val=0% holds nothing; give a share such as 10%"),
    ],
)
def test_shares_that_cannot_be_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hold_out_shares(mmdd_ray.settings("covmatch", "local", {"evaluation": changes}))


def test_a_slice_without_an_image_is_refused_before_the_run(photos: Path) -> None:
    uri = str(photos)
    evaluation = Evaluation(val=uri, test=uri, val_split="[:10%]", test_split="[10%:10.01%]")
    with pytest.raises(UserError, match=r"^evaluation\.test_split=\[10%:10\.01%\] holds no usable image"):
        check_data(Data(uri=uri, split="[20%:]"), evaluation)
    with pytest.raises(UserError, match=r"^set_split=\[:0\.01%\] holds no usable image"):
        check_given(Data(uri=uri, split="[:0.01%]"), "set", Data(uri=uri, split="[20%:]"), evaluation)


def test_a_set_is_not_tested_on_the_images_that_it_was_distilled_from(photos: Path, tmp_path: Path) -> None:
    sample = Sample(
        key="0", image=photos.joinpath("00.png").read_bytes(), captions=("a",), seed=0, source_key=""
    )
    settings = {"data": {"uri": str(photos), "split": "[20%:]"}}
    write_distilled([sample], Store(str(tmp_path / "set")), method="m", settings=settings, seed=0, inputs={})
    (one,) = named_sets([str(tmp_path / "set")])
    data = Data(uri=str(photos), split="[30%:]")
    apart = Evaluation(val=str(photos), test=str(photos), val_split="[10%:20%]", test_split="[:10%]")
    refuse_origin(one, data, apart)
    with pytest.raises(UserError, match=r"split \[20%:\], which has the images of evaluation\.val, split"):
        refuse_origin(one, data, replace(apart, val_split="[10%:30%]"))
    with pytest.raises(UserError, match=r"which has the images of evaluation\.test; validate and test"):
        refuse_origin(one, data, replace(apart, test_split=None))
    with pytest.raises(UserError, match=r"which has the images of evaluation\.val"):
        look_at_sets(
            replace(pairs_settings(), set=(one.uri,), data=data, evaluation=replace(apart, val_split=None))
        )


ORIGINS = [
    ({"uri": f"hf://datasets/o/n@{'a' * 40}", "split": "[20%:]"}, "hf://datasets/o/n", None, True),
    ({"uri": "/a::/b", "split": "train"}, "/b", "train[:10%]", True),
    ({"uri": "/a", "split": "all"}, "/a", "test", True),
    ({"uri": "/a", "split": "dev"}, "/a", "validation", True),
    ({"uri": "shapes:20?seed=1"}, "shapes:9?seed=1&captions=1", None, True),
    ({"uri": "/a", "split": "train"}, "/a", "test", False),
    ({"uri": "/a", "split": "train[:1000]"}, "/a", "train", False),  # no slice of ours
    ({"uri": "/a", "split": "[20%:]"}, "/a", "[:20%]", False),
    ({"uri": "/a"}, "/b", None, False),
    ({"uri": 3}, "/a", None, False),
    ([1], "/a", None, False),
]


@pytest.mark.parametrize(("origin", "uri", "split", "is_refused"), ORIGINS)
def test_what_a_set_was_made_from_is_told_by_its_manifest(
    origin: Any, uri: str, split: str | None, is_refused: bool, tmp_path: Path
) -> None:
    sample = Sample(key="0", image=b"x", captions=("a",), seed=0, source_key="")
    store = Store(str(tmp_path / "set"))
    image = next(iter(shapes.pairs(0, 1, seed=1)))["image"]
    write_distilled([replace(sample, image=image)], store, method="m", settings={}, seed=0, inputs={})
    file = tmp_path / "set" / "manifest.json"
    write_json(file, json.loads(file.read_text()) | {"settings": {"data": origin}})
    (one,) = named_sets([store.uri])
    evaluation = Evaluation(val="shapes:9?seed=77", test=uri, test_split=split)
    if is_refused:
        with pytest.raises(UserError, match=r"which has the images of evaluation\.test"):
            refuse_origin(one, Data(uri="/other"), evaluation)
    else:
        refuse_origin(one, Data(uri="/other"), evaluation)


def test_slices_may_share_files_where_they_lie_apart(photos: Path) -> None:
    uri = str(photos)
    apart = Evaluation(val=uri, test=uri, val_split="[:10%]", test_split="[10%:20%]")
    says = check_data(Data(uri=uri, split="[20%:]"), apart)
    assert not any("learning rates are chosen" in line for lines in says.values() for line in lines)
    for training in (None, "[15%:]", "[:5%]"):
        with pytest.raises(UserError, match=r"data\.uri.*lie apart, other than evaluation\.\w+_split="):
            check_data(Data(uri=uri, split=training), apart)
    with pytest.raises(UserError, match=r"hold a share of its images out: evaluation\.val=10%"):
        check_data(Data(uri=uri), Evaluation(val=uri, test=uri))
    both = Evaluation(val=uri, test=uri, val_split="[:15%]", test_split="[10%:20%]")
    assert any(
        "learning rates are chosen on what is tested" in line
        for line in check_data(Data(uri=uri, split="[20%:]"), both)["evaluation.test"]
    )
    with pytest.raises(
        UserError, match=r"among those of evaluation\.val.*trained on alone, set_split=\[20%:\]"
    ):
        check_given(Data(uri=uri), "set", Data(uri=uri, split="[20%:]"), apart)
    assert check_given(Data(uri=uri, split="[50%:]"), "set", Data(uri=uri, split="[20%:]"), apart)


@pytest.mark.ray
def test_features_of_a_slice_are_those_of_its_rows_and_cut_tars_are_found(
    ray_cluster: None, tmp_path: Path
) -> None:
    from mmdd_ray.features.precompute import precompute

    write_shards(Store(str(tmp_path / "tars")), 40, seed=3, layout="webdataset", rows_per_shard=20)
    for shard in ("00000", "00001"):
        write_json(tmp_path / "tars" / f"{shard}_stats.json", {"count": 25, "successes": 22})
    data = Data(uri=str(tmp_path / "tars"), split="[30%:]")
    rows = read(data)
    with RunDir.open(str(tmp_path / "run"), "features", "test", data) as run:
        stage = run.stage("features", lambda one: precompute(one, run.store, data, Features(chunk_pairs=16)))
    assert stage.manifest["rows_out"] == len(rows)
    assert 0 < len(rows) < 40
    assert stage.manifest["rejects"] == {"missing row of img2dataset's count": 2}  # 70 % of four
    assert sorted(FeatureStore(stage.store).addresses) == sorted((row.shard, row.index) for row in rows)


@pytest.mark.job
@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_folder_of_images_with_captions_is_enough(photos: Path, tmp_path: Path) -> None:
    """A table with baselines, confidence and bytes from one command."""
    command = [sys.executable, "jobs/covmatch_flickr30k.py", "local", "--data.uri", str(photos)]
    command += ["--evaluation.val", "10%", "--evaluation.test", "20%", "--run.dir", str(tmp_path / "run")]
    command += ["--match.pairs", "6", "--match.iterations", "2", "--match.real_batch", "16"]
    command += ["--evaluation.baselines", "random", "--evaluation.seeds", "3", "--run.num_cpus", "2"]
    command += ["--students.steps", "10", "--students.learning_rates", "0.1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    held_out = {part: found["images"] for part, found in report["held_out"].items()}
    images = {part: found["common"] for part, found in report["held_out"].items()}
    assert report["real_images"] + sum(held_out.values()) == 60
    assert images == {"val": {"training": 0}, "test": {"training": 0, "val": 0}}
    assert set(report["scores"]) == {"covmatch", "random", "chance"}
    assert report["differences"]["covmatch"]["random"]["metrics"]["mean_recall"]["low"] is not None
    for text in ("30 to 100 % of the images (about 42) are read", "95 % interval", "size         "):
        assert text in result.stdout
    assert report["sets"]["random"]["bytes"] > 0
