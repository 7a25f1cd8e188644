"""The audit: planted copies and near-duplicate test images are named, and figures are those of the parts."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mmdd_ray.config import Data, Evaluation, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.images import decode_image, encode_png
from mmdd_ray.data.pair import digest64
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.audit import _about_copies, audit_set
from mmdd_ray.evaluation.audited_set import AuditedSet
from mmdd_ray.evaluation.copies import Closest
from mmdd_ray.evaluation.copies_sheet import CELL_PX, COPY_INK, BesideReal, copies_sheet
from mmdd_ray.evaluation.learnt_texts import encode_learnt, first_texts, nearest_captions, shown_bytes
from mmdd_ray.evaluation.real_images import read_real
from mmdd_ray.evaluation.spectrum import singular_values
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.store import MOMENTS, FeatureStore, chunk_file, feature_table
from mmdd_ray.methods.evaluate.presets import local
from mmdd_ray.methods.evaluate.reading import audited_set
from mmdd_ray.storage.store import Store

DATA = Data(uri="shapes:60?seed=3&world=clean", rows_per_shard=25)


def png(image: np.ndarray) -> bytes:
    return encode_png(np.ascontiguousarray(image))


def feature_store(folder: Path, data: Data) -> FeatureStore:
    """Features of all rows by tiny-clip."""
    from mmdd_ray.models.clip import load_clip

    clip, store, parts = load_clip("tiny-clip"), Store(str(folder)), []
    for shard in list_shards(data):
        rows = list(iter_shard(shard, data))
        columns = {name: [getattr(row, name) for row in rows] for name in ("index", "key", "captions")}
        digests = [digest64(row.image or b"") for row in rows]
        pairs = pa.table(columns | {"image_digest": pa.array(digests, pa.int64())})
        pixels = np.stack([decode_image(row.image or b"", max_pixels=10**6, image_px=32) for row in rows])
        captions = [caption for row in rows for caption in row.captions]
        image, text = clip.encode_images(pixels).numpy(), clip.encode_texts(captions).numpy()
        store.write_parquet(chunk_file(shard.name, 0), feature_table(pairs, shard.name, image, text))
        parts.append(Moments.of(np.repeat(image, [len(row.captions) for row in rows], axis=0), text))
    store.write_bytes(MOMENTS, sum(parts[1:], parts[0]).to_bytes("tiny-clip", "float16"))
    return FeatureStore(store)


def test_a_rate_of_copies_is_that_of_images_drawn_at_random() -> None:
    rms_N = np.array([1.0, 40.0, 2.0, 50.0, 3.0])
    found = Closest(np.arange(5), np.ones(5), rms_N)
    scale = Closest(np.arange(4), np.ones(4), np.array([90.0, 90.0, 90.0, 1.0]))
    names = SimpleNamespace(names={row: f"s/{row}" for row in range(5)})
    drawn_N = np.array([True, True, False, True, False])
    about = _about_copies(9, list("abcde"), found, drawn_N, scale, names)  # type: ignore[arg-type]
    assert (about["images"], about["checked"], about["copies"]) == (9, 3, 1)
    assert about["rate"] == pytest.approx(100 / 3)
    assert (about["all_checked"], about["all_copies"], about["real_rate"]) == (5, 3, 25)
    assert [one["key"] for one in about["closest"]][:3] == ["a", "c", "e"]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_planted_copies_and_near_duplicates_are_found(ray_cluster: None, tmp_path: Path) -> None:
    rows = [row for shard in list_shards(DATA) for row in iter_shard(shard, DATA)]
    real = [decode_image(row.image or b"", max_pixels=10**6) for row in rows]
    others = [np.asarray(shapes.scene(number, seed=8).render(32)) for number in range(9)]

    planted = [real[7], real[31], np.roll(real[50], 1, axis=1), *others[:3]]
    samples = [
        Sample(key=f"{at:06d}", image=png(image), captions=("a b", "c"), seed=0, source_key="")
        for at, image in enumerate(planted)
    ]
    write_distilled(samples, Store(str(tmp_path / "set")), method="m", settings={}, seed=0, inputs={})

    test = tmp_path / "test"
    test.mkdir()
    for number, image in enumerate([real[11], real[42], *others[3:]]):
        Image.fromarray(image).save(test / f"{number}.jpg", quality=90)
        (test / f"{number}.txt").write_text("a circle")
    (test / "same.png").write_bytes(rows[5].image or b"")
    (test / "same.txt").write_text("a circle")

    features = feature_store(tmp_path / "features", DATA)
    settings = replace(
        local(),
        data=DATA,
        evaluation=Evaluation(val="shapes:6?seed=4", test=str(test)),
        set=str(tmp_path / "set"),
    )
    stage = StageDir("audit", Store(str(tmp_path / "audit")), "audit")
    audit_set(stage, AuditedSet.distilled(Store(settings.set[0])), features, settings)

    about = stage.store.read_json("audit.json")
    copies = about["copies"]
    assert (copies["copies"], copies["checked"], copies["images"]) == (3, 6, 6)
    assert copies["rate"] == pytest.approx(50)
    found = {one["key"]: one["real"] for one in copies["closest"][:3]}
    assert found == {f"{at:06d}": rows[row].name for at, row in enumerate((7, 31, 50))}
    assert copies["real_images"] == 60
    assert copies["real_rate"] < 10
    leakage = about["leakage"]
    assert (leakage["images"], leakage["near"], leakage["same_bytes"]) == (9, 2, 1)
    assert {one["real"] for one in leakage["first"]} == {rows[11].name, rows[42].name}
    assert about["spectrum"]["set"]["pairs"] == 12
    expected = singular_values(features.moments().cross_covariance)
    assert about["spectrum"]["real"]["values"] == pytest.approx(expected.tolist(), rel=1e-3)
    assert about["saturation"]["set"] == pytest.approx(
        100 * np.mean([((image == 0) | (image == 255)).mean() for image in planted])
    )
    listed = stage.store.read_json("nearest.json")
    assert listed[0]["by_pixels"]["address"] == [rows[7].shard, rows[7].index]
    assert listed[0]["by_clip"]["cosine"] > 0.99
    assert stage.store.read_bytes("copies.png").startswith(b"\x89PNG")
    shown = stage.store.read_parquet("nearest_images.parquet").to_pylist()
    assert [one["key"] for one in shown] == [one.key for one in samples]
    assert shown[0]["real"] == rows[7].name
    assert shown[0]["rms"] == listed[0]["by_pixels"]["rms"]
    assert np.array_equal(decode_image(shown[0]["image"], max_pixels=10**6), real[7])
    found = about["map"]
    assert (len(found["set"]), len(found["real"])) == (6, 60)
    image_RD = np.concatenate([block for block, _ in features.image_blocks()]).astype(np.float64)
    assert found["variance"]["real"] == pytest.approx(image_RD.var(axis=0).sum(), rel=1e-6)

    fewer = replace(DATA, uri="shapes:55?seed=3&world=clean")
    with pytest.raises(UserError, match=r"has changed since its features were made: 5 images are missing"):
        read_real(fewer, features, np.arange(60), 32)


def given_kinds(folder: Path) -> dict[str, Path]:
    """The scenes 7 and 31 of the real data and three others, as photographs with captions and as LoRS saves pairs."""
    from mmdd_ray.config import StudentForm
    from mmdd_ray.distilled.published import MEAN, STD
    from mmdd_ray.models.students import load_text_encoder

    rows = [row for shard in list_shards(DATA) for row in iter_shard(shard, DATA)]
    images = [decode_image(rows[at].image or b"", max_pixels=10**6, image_px=32) for at in (7, 31)] + [
        np.asarray(shapes.scene(number, seed=8).render(32)) for number in range(3)
    ]
    captions = [rows[7].captions[0], rows[31].captions[0], "a", "b", "c"]
    photos = folder / "photos"
    photos.mkdir()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        Image.fromarray(image).resize((96, 96)).save(photos / f"{number}.jpg", quality=90)
        (photos / f"{number}.txt").write_text(caption)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    level_NCHW = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    encoder = load_text_encoder(Students(), "cpu", StudentForm(pooling="cls"))
    content = {
        "image": torch.tensor((level_NCHW - mean) / std),
        "text": encoder.encode_captions(captions),
    }
    torch.save(content, folder / "lors.pt")
    return {"photos": photos, "vectors": folder / "lors.pt"}


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["photos", "vectors"])
def test_sets_that_others_made_are_audited(kind: str, ray_cluster: None, tmp_path: Path) -> None:
    features = feature_store(tmp_path / "features", DATA)
    settings = replace(
        local(),
        data=DATA,
        evaluation=Evaluation(val="shapes:6?seed=4", test="shapes:6?seed=5", protocols=("lors-frozen-text",)),
        set=(str(given_kinds(tmp_path)[kind]),),
    )
    stage = StageDir("audit", Store(str(tmp_path / "audit")), "audit")
    audit_set(stage, audited_set(settings), features, settings)
    about = stage.store.read_json("audit.json")
    rows = [row for shard in list_shards(DATA) for row in iter_shard(shard, DATA)]
    assert (about["copies"]["copies"], about["copies"]["images"]) == (2, 5)
    assert {one["real"] for one in about["copies"]["closest"][:2]} == {rows[7].name, rows[31].name}
    assert about["saturation"]["image_px"] == 32
    if kind == "photos":
        assert about["spectrum"]["set"]["pairs"] == 5
        assert about["learnt"] is None
        return
    assert about["spectrum"] is None
    texts = about["learnt"]["texts"]
    assert [one["began_as"] for one in texts] == [""] * 5
    assert [one["nearest_caption"] for one in texts[:2]] == [rows[7].captions[0], rows[31].captions[0]]
    assert texts[0]["cosine"] == pytest.approx(1, abs=1e-3)


def test_nearest_captions_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    captions = rng.normal(size=(40, 8)) + 50  # a narrow cone
    texts = captions[[3, 17]] + 0.01 * rng.normal(size=(2, 8))
    rows, cosines = nearest_captions(texts.astype(np.float32), captions.astype(np.float32))
    assert rows.tolist() == [3, 17]
    assert cosines.min() > 0.99
    assert nearest_captions(captions[:1], captions)[1][0] == pytest.approx(1)


def learnt_pairs(captions: list[str], **changes: object) -> LearntPairs:
    from mmdd_ray.models.students import load_text_encoder

    encoder = load_text_encoder(Students(), "cpu")
    tokens = encoder.tokenize(captions)
    n, length = tokens.ids_BL.shape
    width = encoder.vocabulary.shape[1]
    given = {
        "pixels": np.zeros((n, 3, 4, 4), np.float32),
        "ids": tokens.ids_BL.numpy(),
        "mask": tokens.mask_BL.numpy(),
        "offsets": np.zeros((n, length, width), np.float32),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "vocabulary": encoder.vocabulary_digest(),
        "captions": [[caption] for caption in captions],
        "nearest": captions,
    }
    return LearntPairs(**(given | changes))  # type: ignore[arg-type]


def test_learnt_texts_that_have_not_moved_are_their_captions() -> None:
    captions = ["a red circle on the left", "two blue rings", "a green star"]
    learnt = learnt_pairs(captions[::-1])
    encoded = encode_learnt(Students(), first_texts(learnt, 2), captions, "cpu")
    assert encoded is not None
    rows, cosines = nearest_captions(*encoded)
    assert rows.tolist() == [2, 1]
    assert cosines == pytest.approx([1, 1], abs=1e-4)
    assert shown_bytes(learnt) == 3 * 48 + sum(map(len, captions))


def test_texts_of_another_encoder_are_not_compared() -> None:
    learnt = learnt_pairs(["a star"], vocabulary="of another one")
    assert encode_learnt(Students(), first_texts(learnt, 1), ["a star"], "cpu") is None


def test_the_picture_marks_copies_and_cuts_long_names() -> None:
    grey = np.full((32, 48, 3), 128, np.uint8)
    one = BesideReal("000001", grey, grey, "s" * 200 + "/key", 0.5, 20.0, is_copy=False)
    plain = Image.open(io.BytesIO(copies_sheet([one] * 6)))
    marked = Image.open(io.BytesIO(copies_sheet([replace(one, is_copy=True)])))
    assert plain.width > 5 * CELL_PX
    red = tuple(bytes.fromhex(COPY_INK[1:]))
    reds = [(np.asarray(image) == red).all(axis=2).any() for image in (plain, marked)]
    assert reds == [False, True]
    assert (np.asarray(plain)[:, -10:] == 255).all()  # no name runs out of its cell
    assert Image.open(io.BytesIO(copies_sheet([]))).size > (0, 0)
