"""Prototypes over Ray, requests for images, and the baselines of each class."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feature_files import features_in
from source_files import jpeg, write_parquet

from mmdd_ray.config import Data, LabelledEvaluation
from mmdd_ray.data import shapes
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.class_names import check_same_names, shared_captions
from mmdd_ray.data.images import encode_png
from mmdd_ray.data.shards import list_shards
from mmdd_ray.diffusion.synthesize import ImageSampler
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled_sets import class_coresets, class_scores
from mmdd_ray.features.chunks import read_chunks
from mmdd_ray.features.vectors import vector_column
from mmdd_ray.methods.execute import check
from mmdd_ray.methods.vlcp.describe import (
    Descriptions,
    ImageClass,
    check_names,
)
from mmdd_ray.methods.vlcp.latents import LatentEncoder, find_prototypes, read_centres, read_prototypes
from mmdd_ray.methods.vlcp.presets import imagenet1k as vlcp_imagenet1k
from mmdd_ray.methods.vlcp.presets import imagenette as vlcp_imagenette
from mmdd_ray.methods.vlcp.presets import local as vlcp_local
from mmdd_ray.methods.vlcp.prototypes import class_prototypes
from mmdd_ray.methods.vlcp.settings import Describe, Prototypes
from mmdd_ray.methods.vlcp.stages import samples
from mmdd_ray.methods.vlcp.synthesize import guided, prompted, sample_requests
from mmdd_ray.models import zoo
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.stable_diffusion import draw_from_latents, load_pipeline
from mmdd_ray.storage.store import Store


@pytest.mark.ray
def test_prototypes_of_all_classes_are_those_of_each_alone(ray_cluster, tmp_path):
    """Classes are spread over shards and chunks; the result is that of one class in memory, in the data's order."""
    data = Data(uri="shapes:60?seed=4&labelled=1&world=clean", rows_per_shard=25)
    preset = vlcp_local()
    settings = Prototypes(images_per_class=2)
    drawn = list(shapes.pairs(0, 60, seed=4, labelled=True))
    labels = sorted({pair["label"] for pair in drawn})
    classes = [ImageClass(label, shapes.CLASS_NAMES[label], 1) for label in labels]
    texts = Descriptions(Describe(), dict(enumerate(shapes.CLASS_NAMES)), None)
    latents, found = (StageDir(name, Store(str(tmp_path / name)), name) for name in ("latents", "found"))
    encoder = LatentEncoder(latents.store, preset.finetune.generator, texts)
    for shard in list_shards(data):
        for chunk in read_chunks(shard, data, image_px=preset.finetune.image_px, chunk_pairs=10):
            encoder(pa.Table.from_pylist([chunk.to_row()]))
    excluded = [("shapes-00000", 0)]
    find_prototypes(found, latents.store, classes, excluded, settings, seed=3)

    stored = pa.concat_tables(
        pq.read_table(p) for p in sorted((tmp_path / "latents" / "pairs").rglob("*.parquet"))
    )
    assert len(stored) == 60
    rows = [row for row in stored.to_pylist() if (row["shard"], row["index"]) not in excluded]
    assert len(rows) == 59
    prototypes = read_prototypes(found.store)
    assert all(drawn[0]["key"] not in prototype["members"] for prototype in prototypes)
    assert [(p["label"], p["slot"]) for p in prototypes] == [
        (label, slot) for label in sorted({row["label"] for row in rows}) for slot in (0, 1)
    ]
    for label in labels:
        own = [row for row in rows if row["label"] == label]
        if not own:
            continue
        seed = int(np.random.SeedSequence((3, label)).generate_state(1)[0])
        latent = np.stack([np.frombuffer(row["latent"], np.float16) for row in own]).astype(np.float32)
        alone = class_prototypes(
            latent, [r["description"] for r in own], shapes.CLASS_NAMES[label], 2, seed=seed
        )
        together = [p for p in prototypes if p["label"] == label]
        np.testing.assert_array_equal([one.latent_D for one in alone], read_centres(found.store, label))
        for one, other in zip(alone, together, strict=True):
            assert [own[row]["key"] for row in one.members] == other["members"]
            assert own[one.text]["description"] == other["text"]


def test_drawings_without_text_prototypes_are_prompted_with_the_class():
    synthesis = vlcp_local().synthesis
    texts = Descriptions(Describe(template="{class_name}!"), {0: "owl"}, None)
    rows = [
        {"label": 0, "slot": 0, "text": "a white owl"},
        {"label": 0, "slot": 1, "text": ""},
    ]
    both = sample_requests(rows, texts, synthesis, seed=1)
    assert [(one.prompt, one.label, one.slot) for one in both] == [("a white owl", 0, 0), ("owl!", 0, 1)]
    image = sample_requests(rows, texts, replace(synthesis, use_text=False), seed=1)
    assert [(one.prompt, one.label, one.slot) for one in image] == [("owl!", 0, 0), ("owl!", 0, 1)]
    assert len({one.seed for one in both}) == 2
    assert [one.seed for one in both] == [one.seed for one in image]
    assert [one.prompt for one in prompted([ImageClass(0, "owl", 9)], 2, texts, 0)] == ["owl!", "owl!"]


def test_each_image_begins_with_its_own_prototype(tmp_path):
    store, generator = Store(str(tmp_path)), str(zoo.FOLDER / "tiny-sd")
    centres = {
        label: np.float32(label + np.random.default_rng(label).normal(size=(2, 256))) for label in (0, 7)
    }
    for label, centre_KD in centres.items():
        store.write_parquet(
            f"centres/{label}.parquet",
            pa.table({"latent": vector_column(centre_KD)}),
        )
    classes = [ImageClass(0, "owl", 9), ImageClass(7, "crane", 9)]
    texts = Descriptions(Describe(), {0: "owl", 7: "crane"}, None)
    rows = [vars(one) for one in prompted(classes, 2, texts, seed=3)]
    synthesis = replace(vlcp_local().synthesis, inference_steps=3)

    def drawn(prototypes: Store | None) -> list[bytes]:
        sampler = ImageSampler(store, generator, synthesis, 32, guided=guided(synthesis, prototypes))
        return sampler.work(0, rows[1:])["image"].to_pylist()

    begun = drawn(store)
    latents = np.stack([centres[row["label"]][row["slot"]] for row in rows[1:]]).reshape(3, -1, 8, 8)
    expected = draw_from_latents(
        load_pipeline(generator),
        [row["prompt"] for row in rows[1:]],
        [row["seed"] for row in rows[1:]],
        torch.from_numpy(latents),
        image_px=32,
        inference_steps=3,
        guidance=synthesis.guidance,
        strength=synthesis.strength,
        negative_prompt=synthesis.negative_prompt,
    ).images_BHW3
    assert begun == [encode_png(image) for image in expected]
    assert not set(begun) & set(drawn(None))


def test_coresets_are_chosen_in_each_class(tmp_path):
    rng = np.random.default_rng(0)
    labels: list[int | None] = [0, 1, 1, 0, 1, 1, 1, 0]
    images = rng.normal(size=(8, 4))
    features = features_in(tmp_path, labels, [["a"]] * 8, images)
    names = ("random", "herding", "k-center")
    found = class_coresets(features, (0, 1), 4, names, seed=2)
    for rows in found.values():
        chosen = [labels[row] for row in rows]
        assert (chosen.count(0), chosen.count(1)) == (3, 4)  # class 0 has no more
        assert rows.tolist() == sorted(rows)
    assert found["random"].tolist() == class_coresets(features, (0, 1), 4, names, seed=2)["random"].tolist()
    (first,) = class_coresets(features, (0, 1), 1, ["herding"], seed=0).values()
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    for row, label in zip(first, (0, 1), strict=True):
        own = [i for i, one in enumerate(labels) if one == label]
        centre = unit[own].mean(0)
        assert row == min(own, key=lambda i: np.linalg.norm(unit[i] - centre))


def test_clip_score_draws_from_the_better_half_of_each_class(tmp_path):
    rng = np.random.default_rng(1)
    labels = [int(label) for label in rng.integers(0, 3, size=40)] + [3, 3, 3]
    features = features_in(tmp_path, labels, [["a"]] * 43, rng.normal(size=(43, 4)))
    score = rng.integers(0, 6, size=43).astype(np.float32)
    own = {c: [row for row, label in enumerate(labels) if label == c] for c in range(4)}
    better = {
        c: sorted(rows, key=lambda row: (-score[row], row))[: round(len(rows) / 2)] for c, rows in own.items()
    }
    seen: set[int] = set()
    for seed in range(60):
        found = class_coresets(features, (0, 1, 2, 3), 3, ["random", "clip-score"], seed, score, 0.5)
        rows = found["clip-score"].tolist()
        assert rows == sorted(set(rows))
        assert [labels[row] for row in found["random"]].count(2) == 3
        for c in range(3):
            assert len(chosen := [row for row in rows if labels[row] == c]) == 3
            assert set(chosen) <= set(better[c])
        assert set(own[3]) <= set(rows)  # half of the class are fewer than are wanted: then more of it
        seen |= set(rows)
    assert seen == {row for c in range(3) for row in better[c]} | set(own[3])
    again = class_coresets(features, (0, 1, 2, 3), 3, ["clip-score"], 59, score, 0.5)
    assert again["clip-score"].tolist() == rows


@pytest.mark.ray
def test_images_are_scored_by_captions_or_by_the_template_of_their_class(ray_cluster, tmp_path):
    """Captions of image folders may be names that mean nothing, and captions may be missing."""
    preset, names = vlcp_local(), {0: "red circle", 2: "blue square"}
    rng, clip = np.random.default_rng(0), load_clip("tiny-clip")
    labels: list[int | None] = [0, 2, 2, 0, 2]
    images = rng.normal(size=(5, clip.dim)).astype(np.float16)
    features = features_in(tmp_path, labels, [[] for _ in labels], images)
    asked = replace(
        preset,
        data=replace(preset.data, needs_captions=False),
        describe=Describe(source="template", template="a picture of a {class_name}"),
        features=replace(preset.features, chunk_pairs=1),
    )
    found = class_scores(features, asked, Descriptions(asked.describe, names, None).templates(), False)
    told = clip.encode_texts([f"a picture of a {names[label]}" for label in labels]).numpy()
    unit = images / np.linalg.norm(images.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(found, (unit * told).sum(axis=1), atol=1e-5)

    captioned = features_in(
        tmp_path / "captioned", labels, [["a"], ["b", "c"], ["d"], ["e"], ["f"]], np.eye(5)[:, :4] + 1
    )
    np.testing.assert_array_equal(class_scores(captioned, preset, {}, True), captioned.clip_scores())


def test_held_out_classes_must_be_called_as_the_real_ones():
    """A folder that lacks a class moves the labels of all classes after it."""
    training = shared_captions([(i % 3, [name]) for i, name in enumerate(("ape", "bee", "cat") * 2)])

    def check(rows):
        check_same_names("evaluation.test=t/", shared_captions(rows, at_least=2), "x/", training)

    lacking = [(i % 2, [name]) for i, name in enumerate(("ape", "cat") * 2)]
    with pytest.raises(UserError, match=r"test=t/ has the label 1 for 'cat', data\.uri=x/ for 'bee'"):
        check(lacking)
    check(lacking[:3])  # the only image of a class may say anything
    check([(1, [f"told {i}"]) for i in range(2)])  # captions that name no class


def test_classes_of_test_data_are_compared_before_the_run(tmp_path):
    """In shards, whose labels are numbers, as far as their first rows have names."""

    def shard(name, *classes):
        rows = [(label, own) for _ in range(8) for label, own in enumerate(classes)]
        columns = {
            "image": [jpeg(level) for level in range(len(rows))],
            "caption": [own for _, own in rows],
            "label": [label for label, _ in rows],
        }
        return Data(uri=write_parquet(tmp_path / f"{name}.parquet", columns))

    data, same = shard("train", "ape", "bee", "cat"), shard("same", "ape", "bee", "cat")
    told = shard("told", *(f"{name} {number}" for number, name in enumerate(("a", "b", "c") * 8)))
    check_data(
        data, LabelledEvaluation(test=told.uri), labelled=True
    )  # one image of a label each names nothing
    other = shard("other", "ape", "cat")
    check_data(data, LabelledEvaluation(test=same.uri), labelled=True)
    with pytest.raises(
        UserError, match=r"evaluation.test=.*other.parquet has the label 1 for 'cat'.* for 'bee'"
    ):
        check_data(data, LabelledEvaluation(test=other.uri), labelled=True)


def test_a_run_goes_on_with_the_names_it_was_begun_with_only(tmp_path):
    store = Store(str(tmp_path))
    check_names(store, [ImageClass(0, "owl", 2)], None)
    store.write_json("classes.json", [{"label": 0, "name": "owl", "images": 2}])
    check_names(store, [ImageClass(0, "owl", 2)], None)
    with pytest.raises(UserError, match=r"describe\.class_names=names\.txt.*set run\.dir to a new folder"):
        check_names(store, [ImageClass(0, "crane", 2)], "names.txt")


def test_ablations_export_only_what_an_image_comes_from(tmp_path):
    found, drawn = (StageDir(name, Store(str(tmp_path / name)), name) for name in ("found", "drawn"))
    row = {"label": 0, "slot": 0, "text": "white", "text_key": "k1", "members": ["k1", "k2"]}
    found.store.write_parquet("prototypes.parquet", pa.Table.from_pylist([row]))
    image = next(shapes.pairs(0, 1, seed=0))["image"]
    made = {"index": 0, "prompt": "white", "seed": 3, "image": image}
    drawn.store.write_parquet("batches/000000.parquet", pa.Table.from_pylist([made]))
    classes, synthesis = [ImageClass(0, "owl", 2)], vlcp_local().synthesis
    for changes, source, cluster in (
        ({}, "k1", ["k1", "k2"]),
        ({"use_text": False}, "", ["k1", "k2"]),
        ({"use_image": False}, "k1", []),
    ):
        (sample,) = samples(found, drawn, classes, replace(synthesis, **changes))
        assert (sample.source_key, sample.extra["cluster"]) == (source, cluster)


@pytest.mark.parametrize("preset", [vlcp_imagenette, vlcp_imagenet1k])
def test_cluster_presets_can_be_shared_out(preset):
    settings = preset()
    assert settings.finetune.pairs_per_worker * settings.finetune.workers == settings.finetune.batch_pairs
    assert "{class_name}" in settings.describe.template


def test_settings_that_cannot_be_are_refused_before_ray_starts(tmp_path):
    settings = vlcp_local()
    with pytest.raises(UserError, match=r"describe\.template='a photo' does not have \{class_name\}"):
        check(replace(settings, describe=Describe(template="a photo")))
    with pytest.raises(UserError, match=r"prototypes\.min_actors=3 is above prototypes\.max_actors=1"):
        check(replace(settings, prototypes=Prototypes(min_actors=3)))
    captionless = replace(settings, data=replace(settings.data, needs_captions=False))
    with pytest.raises(
        UserError, match=r"nothing says what classes are called; name .* describe\.class_names"
    ):
        check(captionless)
    names = tmp_path / "names.txt"
    names.write_text("owl\ncrane")
    with pytest.raises(UserError, match=r"describe\.source=captions, but data\.needs_captions=False"):
        check(replace(captionless, describe=Describe(class_names=str(names))))
    several = replace(settings.classifiers, learning_rates=(0.01, 0.1))
    with pytest.raises(UserError, match=r"several to choose from; name images .* evaluation\.val"):
        check(replace(settings, classifiers=several))
    with pytest.raises(UserError, match=r"describe\.class_names=/none\.txt cannot be read"):
        check(replace(settings, describe=Describe(class_names="/none.txt")))
    with pytest.raises(UserError, match="finetune"):
        check(replace(settings, finetune=replace(settings.finetune, batch_pairs=5, workers=2)))
    small = replace(settings.classifiers, model="convnet-6")
    with pytest.raises(UserError, match=r"classifiers\.model=convnet-6 halves the side of images 6 times"):
        check(replace(settings, classifiers=small))
    for name, changes in (
        ("", {"data": Data(uri="shapes:20?seed=0")}),
        (r"evaluation\.test: ", {"evaluation": replace(settings.evaluation, test="shapes:20?seed=1")}),
    ):
        with pytest.raises(UserError, match=f"{name}none of the first 20 images of shapes:.* has a label"):
            check(replace(settings, **changes))
    with pytest.raises(UserError, match=r"prototypes\.images_per_class"):
        check(replace(settings, prototypes=Prototypes(images_per_class=0)))
