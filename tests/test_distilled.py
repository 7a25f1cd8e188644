"""The distilled set: the same bytes every time, readable by the tools people have, damage found."""

import hashlib
import html
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from mmdd_ray.config import Data, Evaluation, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.card import dataset_card, escape_markdown
from mmdd_ray.distilled.contact_sheet import COLUMNS, GAP_PX, TILE_PX, contact_sheet, spread
from mmdd_ray.distilled.licences import data_licence, model_licence
from mmdd_ray.distilled.read import check_images, read_distilled, read_manifest
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import _by_class, _with_class, note_protocols, write_distilled
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.models import zoo
from mmdd_ray.protocols.trainings import about_trainings
from mmdd_ray.storage.store import Store

HOSTILE = "a <script>alert(1)</script> | [link](http://x) *star* & 'quote'\n# title 猫"


def _samples(n: int, captions: int = 2) -> list[Sample]:
    return [
        Sample(
            key=f"edge-{index:06d}",
            image=pair["image"],
            captions=tuple(pair["captions"][:captions]),
            seed=2**62 + index,
            source_key=pair["key"],
            extra={"score": index / 8},
        )
        for index, pair in enumerate(shapes.pairs(0, n, seed=5))
    ]


def _write(samples: list[Sample], folder: Path, **changes: Any) -> dict:
    arguments: dict[str, Any] = {
        "method": "edge",
        "settings": {"run": {"seed": 3}},
        "seed": 3,
        "inputs": {"synthesis": "ab12"},
    }
    return write_distilled(samples, Store(str(folder)), **{**arguments, **changes})


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    samples = [
        *_samples(5),
        Sample(key="x", image=_samples(1)[0].image, captions=(HOSTILE,), seed=0, source_key="y", label=7),
    ]
    _write(samples, tmp_path, rows_per_shard=4)
    assert read_distilled(str(tmp_path)) == samples


def test_the_same_samples_give_the_same_shards(tmp_path: Path) -> None:
    samples = _samples(5)
    first, second = (_write(samples, tmp_path / name, rows_per_shard=3) for name in ("a", "b"))
    for name in ("00000.tar", "00001.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {**first, "created": ""} == {**second, "created": ""}
    with tarfile.open(tmp_path / "a" / "00001.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members[:3]] == ["000010000.json", "000010000.png", "000010000.txt"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}


def test_manifest_counts_images_and_pairs_apart(tmp_path: Path) -> None:
    samples = [*_samples(3, captions=2), *_samples(6, captions=5)[3:5]]
    manifest = _write(
        samples, tmp_path, rows_per_shard=2, models={"generator": {"name": "tiny-sd", "version": None}}
    )
    assert (manifest["images"], manifest["pairs"]) == (5, 3 * 2 + 2 * 5)
    assert manifest["captions_per_image"] == {"min": 2, "max": 5}
    assert [shard["rows"] for shard in manifest["shards"]] == [2, 2, 1]
    assert manifest["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())


def test_checksum_is_what_sha256sum_prints(tmp_path: Path) -> None:
    manifest = _write(_samples(3), tmp_path, rows_per_shard=2)
    printed = subprocess.run(
        "sha256sum *.tar | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert printed.stdout.split()[0] == manifest["checksum"]


def test_a_smaller_set_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    _write(_samples(5), tmp_path, rows_per_shard=2)
    _write(_samples(2), tmp_path, rows_per_shard=2)
    assert [path.name for path in sorted(tmp_path.glob("*.tar"))] == ["00000.tar"]
    assert len(read_distilled(str(tmp_path))) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    _write(_samples(4), tmp_path, rows_per_shard=2)
    shard = tmp_path / "00001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flip" else content[:-10240])
    with pytest.raises(ValueError, match=r"00001\.tar is (damaged|missing)"):
        read_distilled(str(tmp_path))


def test_a_changed_manifest_an_empty_folder_and_a_newer_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no distilled set: it has no manifest\.json"):
        read_distilled(str(tmp_path))
    manifest = _write(_samples(4), tmp_path, rows_per_shard=2)
    store = Store(str(tmp_path))
    store.write_json("manifest.json", manifest | {"shards": manifest["shards"][:1]})
    with pytest.raises(ValueError, match="was changed"):
        read_distilled(store)
    store.write_json("manifest.json", manifest | {"format_version": 2})
    with pytest.raises(ValueError, match="format version 2"):
        read_distilled(store)


@pytest.mark.parametrize(
    "document",
    [
        '{"rows_in": 5, "rows_out": 5, "seconds": 1.0}',  # of a stage of a run
        '{"format_version": 1, "checksum": "0", "shards": []}',
        '{"format_version": 1, "checksum": "0", "shards": [{"name": "../other/0.tar", "sha256": "0"}]}',
        '{"format_version": "1"}',
        "[1]",
        "{",
        "\xff",
        "[" * 100_000,
    ],
)
def test_the_manifest_of_something_else_is_one_sentence(tmp_path: Path, document: str) -> None:
    (tmp_path / "manifest.json").write_bytes(document.encode("latin-1"))
    with pytest.raises(UserError, match=r"holds a manifest\.json that is no distilled set's"):
        read_distilled(str(tmp_path))


@pytest.mark.parametrize("method", [None, "", "  ", 7, ["edge"]])
def test_a_set_of_a_nameless_method_is_refused(tmp_path: Path, method: object) -> None:
    manifest = _write(_samples(2), tmp_path)
    Store(str(tmp_path)).write_json("manifest.json", manifest | {"method": method})
    with pytest.raises(UserError, match=r"manifest\.json: its method must be"):
        read_distilled(str(tmp_path))


def test_a_shard_of_other_samples_is_named(tmp_path: Path) -> None:
    write_shards(Store(str(tmp_path)), 2, seed=1, layout="webdataset")
    sha256 = hashlib.sha256((tmp_path / "00000.tar").read_bytes()).hexdigest()
    checksum = hashlib.sha256(f"{sha256}  00000.tar\n".encode()).hexdigest()
    shards = [{"name": "00000.tar", "sha256": sha256}]
    manifest = {"format_version": 1, "method": "x", "checksum": checksum, "shards": shards}
    Store(str(tmp_path)).write_json("manifest.json", manifest)
    with pytest.raises(UserError, match=r"00000\.tar is no shard of .* without 'seed'"):
        read_distilled(str(tmp_path))


def test_an_interrupted_rewrite_is_no_set(tmp_path: Path) -> None:
    _write(_samples(2), tmp_path)
    broken = Sample(key="k", image=b"no image", captions=("a",), seed=0, source_key="s")
    with pytest.raises(OSError, match="cannot identify"):
        _write([broken], tmp_path)
    with pytest.raises(ValueError, match="no distilled set"):
        read_distilled(str(tmp_path))


def test_no_samples_and_double_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        _write([], tmp_path)
    with pytest.raises(ValueError, match="same key"):
        _write(_samples(1) * 2, tmp_path)


def test_on_an_object_store(s3_server: str) -> None:
    import s3fs

    s3fs.S3FileSystem().mkdir("distilled-bucket")
    samples = _samples(3)
    write_distilled(
        samples,
        Store("s3://distilled-bucket/run/distilled"),
        method="edge",
        settings={},
        seed=0,
        inputs={},
        rows_per_shard=2,
    )
    assert read_distilled("s3://distilled-bucket/run/distilled") == samples


def test_mmdd_ray_reads_it_as_a_source(tmp_path: Path) -> None:
    samples = _samples(3, captions=3)
    _write(samples, tmp_path, rows_per_shard=2)
    data = Data(uri=f"{tmp_path}/*.tar")
    rows = [row for shard in list_shards(data) for row in iter_shard(shard, data)]
    assert [row.reject for row in rows] == [None] * 3
    assert [(row.image, tuple(row.captions)) for row in rows] == [(s.image, s.captions) for s in samples]


def test_webdataset_reads_it(tmp_path: Path) -> None:
    import webdataset as wds

    samples = _samples(3)
    _write(samples, tmp_path, rows_per_shard=2)
    pipeline = wds.WebDataset(str(tmp_path / "{00000..00001}.tar"), shardshuffle=False).decode("pil")
    for found, sample in zip(pipeline.to_tuple("png", "txt", "json"), samples, strict=True):
        image, text, record = found
        assert np.array_equal(
            np.asarray(image), np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
        )
        assert text == sample.captions[0] == record["caption"] == record["prompt"]
        assert tuple(record["captions"]) == sample.captions
        assert (record["seed"], record["width"], record["score"]) == (sample.seed, 32, sample.extra["score"])


def test_the_stages_of_open_clips_trainer_read_it(tmp_path: Path) -> None:
    import webdataset as wds

    samples = _samples(4)
    _write(samples, tmp_path)
    # as open_clip_train.data.get_wds_dataset 3.3 builds them
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(str(tmp_path / "00000.tar")),
        wds.tarfile_to_samples(),
        wds.select(lambda sample: "txt" in sample and bool({"png", "jpg", "jpeg", "webp"} & sample.keys())),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=np.asarray, text=str.upper),
        wds.to_tuple("image", "text"),
        wds.batched(3, partial=True),
    )
    batches = list(pipeline)
    assert [np.shape(images) for images, _ in batches] == [(3, 32, 32, 3), (1, 32, 32, 3)]
    assert [text for _, texts in batches for text in texts] == [s.captions[0].upper() for s in samples]


@pytest.mark.job
def test_open_clip_trains_by_the_command_of_the_card(tmp_path: Path) -> None:
    samples = _samples(4)
    _write(samples, tmp_path)
    block = re.search(r"```bash\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    assert block
    command = shlex.split(block[1].replace("\\\n", " "))
    assert command[0] == "python"
    small = ["--model", f"local-dir:{zoo.local_folder('tiny-clip')}", "--epochs", "1", "--batch-size", "2"]
    trained = subprocess.run(
        [sys.executable, *command[1:], *small, "--logs", str(tmp_path / "logs"), "--name", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "Train Epoch: 0 [4/4 (100%)]" in trained.stderr + trained.stdout


def test_hugging_face_datasets_reads_it(tmp_path: Path) -> None:
    samples = _samples(3)
    _write(samples, tmp_path / "set", rows_per_shard=2)
    script = """
import sys, datasets
datasets.disable_progress_bars()
for found in (
    datasets.load_dataset("webdataset", data_files=sys.argv[1] + "/*.tar", split="train"),
    datasets.load_dataset(sys.argv[1], split="train"),
):
    for row in found:
        record = row["json"]
        print(record["key"], row["png"].size, row["txt"], record["seed"], *record["captions"], sep="|")
"""
    # its own process, because the library reads these variables when it is imported
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    printed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "set")], env=environment, capture_output=True, text=True
    )
    lines = [f"{s.key}|(32, 32)|{s.captions[0]}|{s.seed}|{'|'.join(s.captions)}" for s in samples]
    assert printed.stdout.splitlines() == lines * 2, printed.stderr


def test_card_front_matter_is_yaml_and_captions_are_only_text(tmp_path: Path) -> None:
    samples = [
        Sample(key="k", image=_samples(1)[0].image, captions=(HOSTILE, HOSTILE), seed=1, source_key="s")
    ]
    manifest = _write(
        samples, tmp_path, models={"generator": {"name": "hub/name_v1", "version": "commit:1a2b"}}
    )
    card = (tmp_path / "README.md").read_text()
    assert card == dataset_card(manifest, samples)
    _, front, body = card.split("---\n", 2)
    parsed = yaml.safe_load(front)
    assert parsed["size_categories"] == ["n<1K"]
    assert parsed["pretty_name"] == "edge distilled set, 2 pairs"
    assert parsed["configs"][0]["data_files"] == [{"split": "train", "path": "*.tar"}]
    page = MarkdownIt("gfm-like", {"linkify": False}).render(body)
    assert "<script>" not in page
    assert 'href="http://x"' not in page
    assert (
        page.count(
            "a &lt;script&gt;alert(1)&lt;/script&gt; | [link](http://x) *star* &amp; 'quote' # title 猫"
        )
        == 2
    )
    assert "<td>hub/name_v1, commit:1a2b; licence: see its own card</td>" in page
    assert manifest["checksum"] in page


def test_manifest_and_card_name_the_protocols_by_version_and_source(tmp_path: Path) -> None:
    evaluation = Evaluation(
        val="v", test="t", protocols=("equal-budget", "lors-frozen-text"), students=("a+b",)
    )
    manifest = _write(_samples(1), tmp_path, protocols=about_trainings(Students(), evaluation))
    assert [(one["name"], one["version"]) for one in manifest["protocols"]] == [
        ("equal-budget", 2), ("lors-frozen-text-small", 2),
    ]  # fmt: skip
    card = (tmp_path / "README.md").read_text()
    assert "| Judged under | equal-budget, version 2 (" in card
    assert (
        "| and under | lors-frozen-text-small, version 2 (LoRS, Xu et al., ICML 2024, arXiv 2406.01112); figures"
        in card
    )


def test_a_set_is_judged_under_further_protocols_later(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    before = _write(_samples(2), tmp_path)
    note_protocols(store, [{"name": "mine", "version": 3, "source": "a paper"}])
    assert read_manifest(store) == before | {
        "protocols": [{"name": "mine", "version": 3, "source": "a paper"}]
    }
    assert "| Judged under | mine, version 3 (a paper); figures" in (tmp_path / "README.md").read_text()
    assert [sample.key for sample in read_distilled(store)] == ["edge-000000", "edge-000001"]


def test_the_card_names_the_licence_of_each_model_and_of_the_data(tmp_path: Path) -> None:
    models = {
        "generator": {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5", "version": None},
        "clip": {"name": "tiny-clip", "version": None},
    }
    data = {"data": {"uri": "hf://datasets/pixparse/cc3m-wds/cc3m-train-{0000..0575}.tar"}}
    _write(_samples(1), tmp_path, models=models, settings=data)
    card = (tmp_path / "README.md").read_text()
    assert "CreativeML OpenRAIL-M" in card.replace("\\", "")
    assert "Apache-2.0, as mmdd-ray" in card.replace("\\", "")
    assert "CC3M: annotations for any purpose" in card


def test_every_model_and_source_that_a_preset_names_has_a_licence_in_the_card() -> None:
    for method in METHODS.values():
        for preset in method.presets.values():
            settings = preset()
            for name in method.models(settings).values():
                assert "see its own card" not in model_licence(name), name
            if "YOUR-" not in settings.data.uri:
                assert "see where they come from" not in data_licence(settings.data.uri), settings.data.uri


def test_escaped_markdown_is_shown_as_it_is() -> None:
    text = "".join(map(chr, range(33, 127)))
    rendered = MarkdownIt("gfm-like", {"linkify": False}).renderInline(escape_markdown(text))
    assert html.unescape(rendered) == text
    for start in ("- a", "+ a", "* a", "12. a", "3) a", "# a", "> a", "```", "| a | b |"):
        rendered = MarkdownIt("gfm-like", {"linkify": False}).render(f"- {escape_markdown(start)}\n")
        assert html.unescape(rendered) == f"<ul>\n<li>{start}</li>\n</ul>\n"


def test_contact_sheet_enlarges_without_smoothing_and_holds_every_tile() -> None:
    png = io.BytesIO()
    Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).save(png, "PNG")
    captions = ("long " * 100, "é" * 400, HOSTILE)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([(png.getvalue(), captions)] * 7))))
    top = GAP_PX + TILE_PX // 4  # a 2 x 1 image fills the width and half of the height
    assert (sheet[top : top + TILE_PX // 2, GAP_PX : GAP_PX + TILE_PX // 2] == (255, 0, 0)).all()
    assert (
        (sheet == (255, 0, 0)).all(axis=2).sum()
        == (sheet == (0, 0, 255)).all(axis=2).sum()
        == 7 * TILE_PX**2 // 4
    )
    assert sheet.shape[1] == GAP_PX + COLUMNS * (TILE_PX + GAP_PX)


def test_spread_takes_evenly() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("ab", 40) == ["a", "b"]


def test_a_contact_sheet_shows_every_class_of_ten_with_its_name() -> None:
    samples = [replace(sample, label=number // 10) for number, sample in enumerate(_samples(100))]
    shown, columns = _by_class(samples)
    assert [sample.label for sample in shown] == [label for label in range(10) for _ in range(3)]
    assert columns == 6
    drawn = replace(samples[0], captions=("a crane at dusk", "wings"))
    assert _with_class(drawn, {0: "bird"}) == ("bird", "a crane at dusk", "wings")
    assert _with_class(drawn, None) == ("a crane at dusk", "wings")


def test_a_labelled_set_is_an_image_folder_too_and_its_sheet_and_card_are_by_class(tmp_path: Path) -> None:
    names = {3: "red circle", 12: "crane / bird", 13: "鶴"}
    labelled = [
        replace(sample, key=f"{number:06d}", label=label)
        for number, (sample, label) in enumerate(zip(_samples(7), (3, 3, 3, 12, 12, 13, 13), strict=True))
    ]
    manifest = _write(labelled, tmp_path, class_names=names)
    folders = ["0003_red_circle", "0012_crane_bird", "0013__"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == folders
    assert (tmp_path / "images/0012_crane_bird/000004.png").read_bytes() == labelled[4].image
    assert manifest["classes"] == {"3": "red circle", "12": "crane / bird", "13": "鶴"}
    check_images(str(tmp_path))
    picture = tmp_path / "images/0003_red_circle/000001.png"
    picture.write_bytes(labelled[0].image)
    with pytest.raises(UserError, match=r"images is damaged.*copy the distilled set again"):
        check_images(str(tmp_path))
    picture.unlink()
    with pytest.raises(UserError, match=r"images is damaged"):
        check_images(str(tmp_path))
    sheet = Image.open(tmp_path / "contact_sheet.png")
    # two images of each class, three classes side by side
    assert sheet.width == GAP_PX + 6 * (TILE_PX + GAP_PX)
    card = (tmp_path / "README.md").read_text()
    assert "7 synthetic images of 3 classes" in card
    assert "image-classification" in card
    assert "ImageFolder" in card
    assert "open_clip" not in card

    again = _write(labelled[:5], tmp_path, class_names=names)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == folders[:2]
    assert again["images"] == 5
    _write(_samples(2), tmp_path)
    assert not (tmp_path / "images").exists()
