import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mmdd_ray.config import StudentForm, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import Row
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.batches import batches, draw_shifts, shifted
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.tasks.students import evaluate_student, frozen_text_features, train_student
from mmdd_ray.models.pair_losses import info_nce, pair_loss
from mmdd_ray.models.students import ImageEncoder, load_student, load_text_encoder

PX = 32
SETTINGS = Students(image_px=PX, embed_dim=32, steps=3, batch_pairs=8)


def rows(n: int, captions: int) -> list[Row]:
    drawn = shapes.pairs(0, n, seed=5, image_px=PX)
    return [
        Row("shapes", i, pair["key"], pair["image"], pair["captions"][:captions], None, None)
        for i, pair in enumerate(drawn)
    ]


def pair_set(n: int, captions: int = 2) -> PairSet:
    pairs, rejects = PairSet.from_rows(rows(n, captions), image_px=PX, max_pixels=10**6)
    assert rejects == []
    return pairs


def trained(pairs: PairSet, settings: Students = SETTINGS, **changes):
    arguments = {"learning_rate": 0.03, "seed": 0, "device": "cpu"} | changes
    return train_student(pairs, settings, **arguments)[:2]


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


# ---- sets


def test_unusable_rows_are_left_out_with_their_reason():
    good = rows(3, 2)
    found = [
        good[0],
        replace(good[1], image=b"no image"),
        Row("shapes", 7, "lost", None, [], None, "truncated tar"),
        good[2],
    ]
    pairs, rejects = PairSet.from_rows(found, image_px=PX, max_pixels=10**6)
    assert pairs.captions == [good[0].captions, good[2].captions]
    assert rejects == [("shapes", good[1].key, "not an image"), ("shapes", "lost", "truncated tar")]
    with pytest.raises(ValueError, match="none of the 2 rows"):
        PairSet.from_rows(found[1:3], image_px=PX, max_pixels=10**6)


def test_a_set_counts_its_pairs():
    images = np.random.default_rng(0).integers(0, 256, size=(3, PX, PX, 3), dtype=np.uint8)
    pairs = PairSet(images, [["a"], ["bé", "c"], ["d"]])
    assert (pairs.n_images, pairs.n_pairs, pairs.n_bytes) == (3, 4, 3 * PX * PX * 3 + 6)
    assert pairs.owner_P.tolist() == [0, 1, 1, 2]
    assert PairSet(images.copy(), [["a"], ["bé", "c"], ["d"]]).fingerprint() == pairs.fingerprint()
    assert PairSet(images, [["a"], ["bé"], ["c", "d"]]).fingerprint() != pairs.fingerprint()


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), [], "N > 0"),
        (np.zeros((1, 8, 9, 3), np.uint8), [["a"]], "px, px"),
        (np.zeros((1, 8, 8, 3), np.float32), [["a"]], "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), [["a"], []], "1 have one"),
    ],
)
def test_what_is_no_set_is_refused(images, captions, message):
    with pytest.raises(ValueError, match=message):
        PairSet(images, captions)


# ---- students


def test_images_are_normalised_as_in_pretraining():
    encoder = ImageEncoder("tiny-nf", PX).eval()
    image = np.random.default_rng(1).integers(0, 256, size=(PX, PX, 3), dtype=np.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder.backbone))
    with torch.inference_mode():
        expected = encoder.backbone(transform(Image.fromarray(image))[None])
        torch.testing.assert_close(encoder(torch.from_numpy(image)[None]), expected, rtol=1e-4, atol=1e-4)


def test_a_caption_has_the_same_feature_in_any_company():
    encoder = load_text_encoder(SETTINGS, "cpu")
    captions = ["a red disc", "a large green square at the top left and a small pink ring on black"]
    with torch.inference_mode():
        together = encoder(encoder.tokenize(captions))
        alone = torch.cat([encoder(encoder.tokenize([caption])) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together.dtype == torch.float32


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_of_many_lengths_are_encoded_as_transformers_does(pooling):
    encoder = load_text_encoder(SETTINGS, "cpu", replace(StudentForm(), pooling=pooling))
    tokens = encoder.tokenize([" ".join(["a", "red", "disc"] * (1 + 3 * row % 7)) for row in range(11)])
    tokens.mask_BL[3, :2] = 0  # as others may pad
    offsets_BLT = (0.02 * torch.randn(*tokens.ids_BL.shape, encoder.width)).requires_grad_()
    probe_BT = torch.randn(11, encoder.width)

    found_BT = encoder(tokens._replace(offsets_BLT=offsets_BLT))
    (own_BLT,) = torch.autograd.grad((found_BT * probe_BT).sum(), offsets_BLT)

    embeddings_BLT = encoder.vocabulary[tokens.ids_BL] + offsets_BLT
    hidden_BLT = encoder.backbone(
        inputs_embeds=embeddings_BLT, attention_mask=tokens.mask_BL
    ).last_hidden_state
    mask_BL1 = tokens.mask_BL[:, :, None]
    mean_BT = (hidden_BLT * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
    expected_BT = mean_BT if pooling == "mean" else hidden_BLT[:, 0]
    (expected_BLT,) = torch.autograd.grad((expected_BT * probe_BT).sum(), offsets_BLT)
    torch.testing.assert_close(found_BT, expected_BT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own_BLT, expected_BLT, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_here(tmp_path):
    usual = load_text_encoder(SETTINGS, "cpu")
    for part in (usual.backbone, usual.tokenizer):
        part.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    captions = [" ".join(["a", "red", "disc"] * (1 + row)) for row in range(6)]
    found = load_text_encoder(replace(SETTINGS, text_model=str(tmp_path)), "cpu").encode_captions(captions)
    torch.testing.assert_close(found, usual.encode_captions(captions))


def test_the_seed_makes_the_heads_and_nothing_else():
    first, again, other = (load_student(SETTINGS, seed, "cpu") for seed in (1, 1, 2))
    assert torch.equal(weights(first.image_head), weights(again.image_head))
    assert not torch.equal(weights(first.image_head), weights(other.image_head))
    assert torch.equal(weights(first.image), weights(other.image))


def test_a_model_that_is_not_there_is_named_with_its_setting(tmp_path):
    with pytest.raises(ValueError, match=r"'no_such_net'.*--students\.image_model"):
        load_student(replace(SETTINGS, image_model="no_such_net"), 0, "cpu")
    with pytest.raises(ValueError, match=r"--students\.text_model"):
        load_student(replace(SETTINGS, text_model=str(tmp_path)), 0, "cpu")


def test_an_encoder_of_one_image_size_says_which(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    card = {"input_size": [3, 160, 160], "fixed_input_size": True, "num_classes": 0}
    config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": card}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"students\.image_px=32.* takes 160 px only"):
        load_student(replace(SETTINGS, image_model=str(tmp_path)), 0, "cpu")
    assert ImageEncoder(str(tmp_path), 160).width == model.num_features


@pytest.mark.parametrize("kind", ["two towers", "decoder first"])
def test_text_models_without_features_are_one_sentence(tmp_path, kind):
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, T5Config, T5Model

    from mmdd_ray.models.zoo import resolve

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "two towers":
        config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16})
        CLIPModel(config).save_pretrained(tmp_path)
    else:
        T5Model(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve("tiny-bert")).save_pretrained(tmp_path)
    settings = replace(SETTINGS, text_model=str(tmp_path))
    with pytest.raises(
        UserError, match=r"students\.text_model names .* of transformers; a text encoder is .* as BERT"
    ):
        load_student(settings, 0, "cpu")


def test_networks_for_larger_images_are_one_sentence():
    with pytest.raises(UserError, match=r"match\.image_model='tiny-nf' gives no feature vectors here"):
        ImageEncoder("tiny-nf", 0, "match")


# ---- training


def test_info_nce_of_orthogonal_pairs_in_closed_form():
    found = info_nce(torch.eye(5), torch.eye(5), temperature=0.5)
    assert found.item() == pytest.approx(np.log(1 + 4 * np.exp(-2)))


def test_a_shift_moves_by_at_most_a_sixteenth_and_repeats_the_edge():
    images = np.random.default_rng(2).integers(0, 256, size=(40, PX, PX, 3), dtype=np.uint8)
    found = shifted(torch.from_numpy(images), draw_shifts(40, PX, np.random.default_rng(0))).numpy()
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    seen = set()
    for moved, source in zip(found, padded, strict=True):
        offsets = [
            (y, x) for y in range(5) for x in range(5) if (moved == source[y : y + PX, x : x + PX]).all()
        ]
        assert len(offsets) == 1
        seen.add(offsets[0])
    assert len(seen) > 12


def test_a_batch_holds_distinct_images_with_a_caption_of_their_own():
    pairs = PairSet(np.zeros((10, 8, 8, 3), np.uint8), [["c"] * (1 + i % 3) for i in range(10)])
    steps = list(batches(pairs, 4, 200, np.random.default_rng(0)))
    for image_B, caption_B in steps:
        assert len(set(image_B)) == 4
        assert np.array_equal(pairs.owner_P[caption_B], image_B)
    assert set(np.concatenate([caption_B for _, caption_B in steps])) == set(range(pairs.n_pairs))
    two = np.concatenate([image_B for image_B, _ in steps[:2]])
    assert len(set(two)) == 8  # a permutation is used up before the next begins
    whole = [sorted(image_B) for image_B, _ in batches(pairs, 64, 3, np.random.default_rng(0))]
    assert whole == [list(range(10))] * 3


def test_every_caption_of_an_image_is_trained_on_and_a_diverged_student_finds_nothing():
    pairs = pair_set(4, captions=2)
    good_PT = frozen_text_features(pairs, SETTINGS, "cpu")
    for caption in range(2):
        poisoned_PT = good_PT.copy()
        poisoned_PT[caption] = np.nan  # the loss tells whether this caption is ever looked at
        student, losses = trained(pairs, replace(SETTINGS, steps=10), text_PT=poisoned_PT)
        assert np.isnan(losses[-1])
        assert set(evaluate_student(student, pairs, text_PT=good_PT).values()) == {0.0}


def test_frozen_text_trains_all_but_the_text_encoder():
    fresh = load_student(SETTINGS, 0, "cpu")
    student, _ = trained(pair_set(8))
    assert torch.equal(weights(student.text), weights(fresh.text))
    for part in ("image", "image_head", "text_head"):
        assert not torch.equal(weights(getattr(student, part)), weights(getattr(fresh, part))), part


def test_both_encoders_trains_the_text_encoder_too():
    settings = replace(SETTINGS, trained="both-encoders")
    student, losses = trained(pair_set(8), settings)
    assert not torch.equal(weights(student.text), weights(load_student(SETTINGS, 0, "cpu").text))
    assert np.isfinite(losses).all()
    assert np.array_equal(losses, trained(pair_set(8), settings)[1])  # dropout comes from the seed, too


def test_computing_text_features_once_changes_nothing():
    pairs = pair_set(8)
    encoder = load_text_encoder(SETTINGS, "cpu")
    with torch.inference_mode():  # as an uncached step would: each caption through the encoder
        one_by_one = torch.cat([encoder(encoder.tokenize([caption])) for caption in pairs.flat_captions])
    cached_PT = frozen_text_features(pairs, SETTINGS, "cpu")
    np.testing.assert_allclose(trained(pairs, text_PT=one_by_one.numpy())[1], trained(pairs)[1], rtol=1e-4)
    student, losses = trained(pairs, text_PT=cached_PT)
    assert np.array_equal(losses, trained(pairs)[1])
    assert evaluate_student(student, pairs, text_PT=cached_PT) == evaluate_student(student, pairs)


def test_the_learning_rate_falls_at_half_of_the_steps():
    pairs = pair_set(8)
    text_PT = frozen_text_features(pairs, SETTINGS, "cpu")
    short, long = (trained(pairs, replace(SETTINGS, steps=n), text_PT=text_PT)[1] for n in (4, 8))
    assert np.array_equal(short[:3], long[:3])  # loss k follows k updates, and two are at the full rate
    assert short[3] != long[3]


def test_a_seed_repeats_a_student_and_another_makes_another():
    pairs = pair_set(16)
    runs = [trained(pairs, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0][1], runs[1][1])
    assert torch.equal(weights(runs[0][0]), weights(runs[1][0]))
    assert not np.array_equal(runs[0][1], runs[2][1])
    assert not torch.equal(weights(runs[0][0]), weights(runs[2][0]))


def test_a_student_learns_the_pairs_it_is_trained_on():
    pairs = pair_set(32)
    settings = replace(SETTINGS, steps=60, batch_pairs=32)
    student, losses = trained(pairs, settings)
    assert losses[-1] < losses[0] - 1
    found = evaluate_student(student, pairs)
    assert found["tr@1"] > 30  # chance is 3 %
    assert found["mean_recall"] > 55  # chance is 18 %


def test_training_keeps_cudnn_on_and_deterministic(monkeypatch):
    seen = []

    def watched(*arguments):
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic))
        return pair_loss(*arguments)

    monkeypatch.setattr("mmdd_ray.evaluation.tasks.students.pair_loss", watched)
    trained(pair_set(4))
    assert seen == [(True, True)] * SETTINGS.steps


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"32 px, but students\.image_px=64"):
        trained(pair_set(2), replace(SETTINGS, image_px=64))
