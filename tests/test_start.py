"""What pairs begin as: a distilled set that is named, learnt pairs or images and captions, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmdd_ray.data import shapes
from mmdd_ray.data.images import encode_png
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.sample import Sample, single_captions
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.matching.initial_pairs import start_from, start_from_learnt
from mmdd_ray.matching.start import start_of_samples
from mmdd_ray.matching.training import PairOptimizer
from mmdd_ray.methods.covmatch.settings import Match
from mmdd_ray.methods.covmatch.start import start_of_set
from mmdd_ray.methods.covmatch.start_set import StartSet, read_start_set
from mmdd_ray.methods.edge.settings import Refine
from mmdd_ray.models.students import DualEncoder, load_student
from mmdd_ray.storage.store import Store

MATCH = Match(pairs=6, iterations=0, real_batch=8, embed_dim=16)
REFINE = Refine(iterations=1, real_batch=8, embed_dim=16)


def drawn(count: int, captions: int) -> list[Sample]:
    return [
        Sample(
            key=f"{index:06d}",
            image=pair["image"],
            captions=tuple(pair["captions"][:captions]),
            seed=100 + index,
            source_key=f"real-{index}",
        )
        for index, pair in enumerate(shapes.pairs(0, count, seed=5))
    ]


def written(folder: Path, samples: list[Sample], learnt: LearntPairs | None = None) -> str:
    write_distilled(samples, Store(str(folder)), method="EDGE", settings={}, seed=0, inputs={}, learnt=learnt)
    return str(folder)


@pytest.fixture(scope="module")
def encoders() -> DualEncoder:
    return load_student(MATCH, 0, "cpu")


@pytest.fixture(scope="module")
def learnt(encoders: DualEncoder) -> LearntPairs:
    """Six pairs whose pixels and texts nobody drew or wrote."""
    pairs = start_of_samples(single_captions(drawn(6, 1)), 32)
    begun = start_from(encoders, pairs.images, pairs.flat_captions, MATCH)
    rng = np.random.default_rng(0)
    return replace(
        begun,
        pixels=(begun.pixels * 0.9).astype(np.float32),
        offsets=rng.normal(scale=0.1, size=begun.offsets.shape).astype(np.float32),
    )


def learnt_set(folder: Path, learnt: LearntPairs) -> str:
    shown = [
        replace(sample, image=encode_png(image))
        for sample, image in zip(drawn(6, 1), learnt.images(), strict=True)
    ]
    return written(folder, shown, learnt)


# ---- the set


def test_an_image_with_several_captions_is_several_pairs(tmp_path: Path) -> None:
    uri = written(tmp_path / "set", drawn(3, 2))
    match = replace(MATCH, init=f"file://{uri}")
    given = read_start_set(match)
    manifest = Store(uri).read_json("manifest.json")
    assert given.about == {"uri": uri, "checksum": manifest["checksum"], "method": "EDGE", "pairs": 6}
    assert given.learnt is None
    assert [sample.source_key for sample in given.samples] == [f"real-{i // 2}" for i in range(6)]
    flat = [caption for sample in drawn(3, 2) for caption in sample.captions]
    pairs = start_of_samples(given.samples, 16)
    assert pairs.captions == [[caption] for caption in flat]
    assert (pairs.images[0] == pairs.images[1]).all()
    assert pairs.images.shape == (6, 16, 16, 3)


@pytest.mark.parametrize("init", ["random", "herding", "k-center"])
def test_names_of_real_pairs_are_no_sets(init: str) -> None:
    assert replace(MATCH, init=init).start_set is None
    assert replace(MATCH, init=f"./{init}").start_set == f"./{init}"


def test_what_is_no_set_is_one_sentence(tmp_path: Path) -> None:
    uri = written(tmp_path / "set", drawn(3, 2))
    for changed, message in (
        (
            {"init": "herdng"},
            r"^match\.init=herdng: .*herdng holds no distilled set: .*; write random, herding",
        ),
        (
            {"init": "nosuch://bucket/set"},
            r"^match\.init=nosuch://bucket/set: .*; write random, herding, k-center",
        ),
        (
            {"init": uri, "pairs": 5},
            r"^match\.pairs=5, but .* has 6 pairs \(3 images with several captions\); .* to 6",
        ),
        ({"init": uri, "pairs": 100}, r"set match\.pairs to 6$"),
    ):
        match = replace(MATCH, **changed)
        with pytest.raises(UserError, match=message):
            read_start_set(match)
    shard = tmp_path / "set" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"00000\.tar is damaged"):
        read_start_set(replace(MATCH, init=uri))


def test_credentials_of_a_set_are_not_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        read_start_set(replace(MATCH, init=f"file://{tmp_path}/set?token=abc123"))
    assert "abc123" not in str(told.value)


# ---- what it is taken up as


@pytest.mark.ray
def test_learnt_pairs_are_taken_up_where_their_words_are_the_same(
    ray_cluster: None, tmp_path: Path, learnt: LearntPairs, capsys: pytest.CaptureFixture[str]
) -> None:
    match = replace(MATCH, init=learnt_set(tmp_path / "set", learnt))
    given = read_start_set(match)
    start = start_of_set(given, match)
    assert isinstance(start.pairs, LearntPairs)
    assert start.pairs.fingerprint() == learnt.fingerprint()
    assert start.about["set"] == {**given.about, "as": "learnt pairs"}
    assert start.about["source_keys"] == [f"real-{i}" for i in range(6)]
    other = StartSet(given.about, given.samples, replace(learnt, vocabulary="another"))
    start = start_of_set(other, match)
    assert isinstance(start.pairs, PairSet)
    assert (start.pairs.images == learnt.images()).all()
    assert start.pairs.captions == learnt.captions
    assert start.about["set"]["as"] == "images and captions"
    vectors = StartSet(given.about, given.samples, replace(learnt, vectors=np.zeros((6, 4), np.float32)))
    assert isinstance(start_of_set(vectors, match).pairs, PairSet)
    assert capsys.readouterr().out.splitlines() == [
        f"match        starts from the learnt pairs of {match.init}",
        f"match        starts from the images and captions of {match.init}, as its learnt texts are not of the "
        "words of match.text_model",
        f"match        starts from the images and captions of {match.init}, as its learnt texts are vectors, and no "
        "words",
    ]


def test_the_card_of_learnt_pairs_reads_them(
    tmp_path: Path, learnt: LearntPairs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(learnt_set(tmp_path / "set", learnt))
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (snippet,) = (block for block in blocks if "read_learnt" in block)
    monkeypatch.chdir(folder)
    exec(snippet, {})
    assert str(learnt.pixels.shape) in capsys.readouterr().out


def test_learnt_pairs_begin_as_they_are(encoders: DualEncoder, learnt: LearntPairs) -> None:
    begun = start_from_learnt(encoders, learnt, MATCH)
    assert begun is learnt
    still = PairOptimizer(encoders, begun, MATCH, seed=3)
    assert list(still.run(lambda epoch: iter(()))) == []
    share = still.share()
    for name in ("ids", "mask", "offsets"):
        assert np.array_equal(getattr(share, name), getattr(learnt, name))
    np.testing.assert_allclose(share.pixels, learnt.pixels, atol=1e-6)
    assert share.captions == learnt.captions


def test_pixels_are_normalised_as_the_encoder_takes_them(encoders: DualEncoder, learnt: LearntPairs) -> None:
    mean, std = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)
    other = learnt.normalised(mean, std)
    levels = [
        pairs.pixels * np.reshape(pairs.std, (3, 1, 1)) + np.reshape(pairs.mean, (3, 1, 1))
        for pairs in (learnt, other)
    ]
    np.testing.assert_allclose(levels[0], levels[1], atol=1e-3)
    assert other.pixels.dtype == np.float32
    np.testing.assert_allclose(start_from_learnt(encoders, other, MATCH).pixels, learnt.pixels, atol=1e-5)
    small = start_from_learnt(encoders, learnt, replace(MATCH, image_px=16))
    assert small.pixels.shape == (6, 3, 16, 16)


def test_learnt_texts_that_do_not_fit_are_one_sentence(encoders: DualEncoder, learnt: LearntPairs) -> None:
    with pytest.raises(UserError, match=r"^match\.init names texts that were learnt with other words"):
        start_from_learnt(encoders, replace(learnt, vocabulary="another"), MATCH)
    longest = int(learnt.mask.sum(1).max())
    short = load_student(replace(MATCH, max_tokens=longest - 1), 0, "cpu")
    with pytest.raises(
        UserError, match=rf"^match\.max_tokens={longest - 1}, .* raise match\.max_tokens to {longest}$"
    ):
        start_from_learnt(short, learnt, MATCH)


def test_messages_name_the_section_of_the_settings(encoders: DualEncoder, tmp_path: Path) -> None:
    pairs = start_of_samples(drawn(6, 1), 32)
    begun = start_from(encoders, pairs.images, pairs.flat_captions, REFINE)
    refined = PairOptimizer(encoders, begun, REFINE, seed=0)
    with pytest.raises(
        UserError, match=r"fewer usable pairs than refine\.real_batch=8; lower refine\.real_batch"
    ):
        next(refined.run(lambda epoch: iter(())))
    other = PairOptimizer(encoders, begun, replace(REFINE, rho=2.0), seed=0).state()
    with pytest.raises(UserError, match=r"refine\.rho: 2\.0 -> 1\.0"):
        refined.restore(other)
    with pytest.raises(UserError, match=r"refine\.real_batch=7 cannot be shared by refine\.workers=2"):
        _ = replace(REFINE, real_batch=7, workers=2).real_pairs_per_worker
    with pytest.raises(UserError, match=r"set --refine\.image_model to another model"):
        load_student(replace(REFINE, image_model=str(tmp_path)), 0, "cpu")
