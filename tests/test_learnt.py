"""Learnt pairs: what is stored is what a student trains on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmdd_ray.config import Students
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.tasks.students import frozen_text_features, train_student
from mmdd_ray.models.students import load_text_encoder
from mmdd_ray.storage.tensor_file import pack

STUDENTS = Students(image_px=32, embed_dim=16, steps=2, batch_pairs=4, learning_rates=(0.1,))
CAPTIONS = ["a red circle", "a large blue square above a star", "two rings", "one green heart", "a cross"]


def learnt(n: int = 5, **changes: object) -> LearntPairs:
    """Pairs for tiny-nf and tiny-bert that no caption has."""
    rng = np.random.default_rng(0)
    encoder = load_text_encoder(STUDENTS, "cpu")
    tokens = encoder.tokenize(CAPTIONS[:n])
    pairs = LearntPairs(
        rng.normal(size=(n, 3, 32, 32)).astype(np.float32),
        tokens.ids_BL.numpy(),
        tokens.mask_BL.numpy(),
        rng.normal(scale=0.1, size=(*tokens.ids_BL.shape, 128)).astype(np.float32),
        mean=(127.5,) * 3,
        std=(76.5,) * 3,
        vocabulary=encoder.vocabulary_digest(),
        captions=[[caption] for caption in CAPTIONS[:n]],
        nearest=CAPTIONS[:n],
    )
    return replace(pairs, **changes)


def same(left: LearntPairs, right: LearntPairs) -> bool:
    arrays = ("pixels", "ids", "mask", "offsets")
    facts = ("mean", "std", "vocabulary", "captions", "nearest")
    return all(np.array_equal(getattr(left, n), getattr(right, n)) for n in arrays) and all(
        getattr(left, n) == getattr(right, n) for n in facts
    )


def test_loading_gives_back_exactly_the_same_pairs():
    pairs = learnt()
    again = LearntPairs.from_bytes(pairs.to_bytes())
    assert same(again, pairs)
    assert again.fingerprint() == pairs.fingerprint()
    assert replace(pairs, offsets=pairs.offsets * 2).fingerprint() != pairs.fingerprint()
    assert pairs.n_bytes == 5 * 3 * 32 * 32 * 4 + pairs.ids.size * (8 + 8 + 128 * 4)


@pytest.mark.parametrize(
    "content",
    [b"", b"no tensors", pack("moments", {"pixels": np.zeros(3)}, {}), pack("learnt_pairs", {}, {})],
)
def test_other_bytes_are_no_learnt_pairs(content):
    with pytest.raises(UserError, match="no learnt pairs"):
        LearntPairs.from_bytes(content)


def test_a_newer_format_asks_for_an_update(monkeypatch):
    plain = learnt()
    vectors = replace(plain, vectors=np.zeros((plain.n_pairs, 4), np.float32))
    monkeypatch.setattr("mmdd_ray.distilled.learnt.FORMAT_VERSION", 1)
    LearntPairs.from_bytes(plain.to_bytes())  # whose version stays
    monkeypatch.undo()
    content = vectors.to_bytes()
    monkeypatch.setattr("mmdd_ray.distilled.learnt.FORMAT_VERSION", 1)
    with pytest.raises(UserError, match="format version 2; update mmdd-ray"):
        LearntPairs.from_bytes(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((5, 32, 32, 3), np.float32)}, "pixels must be"),
        ({"mask": np.ones((5, 2), np.int64)}, "ids, mask and offsets"),
        ({"captions": [["one"]]}, "needs the one caption"),
        ({"nearest": []}, "words nearest"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        learnt(**changes)


def test_images_are_rounded_and_cut_to_eight_bits():
    pixels = np.zeros((5, 3, 32, 32), np.float32)
    pixels[0, 0, 0, 0], pixels[0, 1, 0, 0], pixels[0, 2, 0, 0] = 100.0, -100.0, (10.4 - 127.5) / 76.5
    found = learnt(pixels=pixels).images()
    assert found.dtype == np.uint8
    assert found[0, 0, 0].tolist() == [255, 0, 10]
    assert found[1, 5, 5].tolist() == [128, 128, 128]


def test_images_of_another_size_keep_their_texts():
    pairs = learnt()
    assert pairs.resized(32) is pairs
    small = pairs.resized(16)
    assert small.pixels.shape == (5, 3, 16, 16)
    assert small.pixels.dtype == np.float32
    assert np.array_equal(small.offsets, pairs.offsets)
    grey = learnt(pixels=np.zeros((5, 3, 32, 32), np.float32)).resized(48)  # the mean level, 127.5, rounded
    np.testing.assert_allclose(grey.pixels, 0.5 / 76.5, rtol=1e-5)


def test_shares_are_put_together_in_order():
    pairs = learnt()

    def share(rank: int) -> LearntPairs:
        own = slice(rank, None, 2)
        arrays = {name: getattr(pairs, name)[own] for name in ("pixels", "ids", "mask", "offsets")}
        return replace(pairs, **arrays, captions=pairs.captions[own], nearest=pairs.nearest[own])

    assert same(LearntPairs.interleaved([share(0), share(1)]), pairs)


def test_students_train_on_pixels_and_offsets():
    def losses(pairs: LearntPairs, **changes: str) -> np.ndarray:
        settings = replace(STUDENTS, **changes)
        return train_student(pairs, settings, learning_rate=0.1, seed=0, device="cpu")[1]

    pairs = learnt()
    without = replace(pairs, offsets=np.zeros_like(pairs.offsets))
    for trained in ("both-encoders", "frozen-text"):
        assert not np.allclose(losses(pairs, trained=trained), losses(without, trained=trained))
    # an encoder of another vocabulary gets the captions
    foreign = replace(pairs, vocabulary="another")
    np.testing.assert_allclose(losses(foreign), losses(without), rtol=1e-5)
    # and one of another normalisation the same images: levels (127.5 + 76.5 x) = (100 + 50 y)
    other = replace(
        pairs, pixels=(27.5 + 76.5 * pairs.pixels) / np.float32(50), mean=(100.0,) * 3, std=(50.0,) * 3
    )
    np.testing.assert_allclose(losses(other), losses(pairs), rtol=1e-3)


def test_frozen_features_are_those_of_words_and_offsets():
    pairs, encoder = learnt(), load_text_encoder(STUDENTS, "cpu")
    embeddings = encoder.vocabulary[torch.from_numpy(pairs.ids)] + torch.from_numpy(pairs.offsets)
    mask = torch.from_numpy(pairs.mask)
    with torch.no_grad():
        hidden = encoder.backbone(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    np.testing.assert_allclose(frozen_text_features(pairs, STUDENTS, "cpu"), expected.numpy(), atol=1e-5)


def test_nearest_words_are_those_that_offsets_lead_to():
    encoder = load_text_encoder(STUDENTS, "cpu")
    tokens = encoder.tokenize(["a red circle", "two rings"])
    assert encoder.nearest_words(tokens) == ["a red circle", "two rings"]
    words = encoder.vocabulary.detach()
    (blue,) = encoder.tokenizer("blue", add_special_tokens=False)["input_ids"]
    offsets = torch.zeros(*tokens.ids_BL.shape, words.shape[1])
    offsets[0, 2] = words[blue] - words[tokens.ids_BL[0, 2]]
    assert encoder.nearest_words(tokens._replace(offsets_BLT=offsets)) == ["a blue circle", "two rings"]
