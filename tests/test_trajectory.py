"""Trajectory matching: experts, learnt pairs, a run that is killed, and that nothing else knows the method."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdd_ray.config import Students
from mmdd_ray.data import shapes
from mmdd_ray.data.images import decode_image
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_learnt
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.tasks.students import frozen_text_features, train_student
from mmdd_ray.methods.execute import check
from mmdd_ray.methods.trajectory.experts import MEANS, form_of, train_expert
from mmdd_ray.methods.trajectory.presets import local
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories
from mmdd_ray.methods.trajectory.training import TrajectoryMatcher, learnt_pairs
from mmdd_ray.models.students import DualEncoder, load_student
from mmdd_ray.protocols import PUBLISHED_FOR_PAIRS, Training
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
EXPERTS = Experts(count=2, epochs=2, batch_pairs=8)
MATCH = Trajectories(
    pairs=6, iterations=4, student_steps=2, max_start_epoch=1, batch_pairs=4, pixel_rate=1.0, text_rate=0.1,
    student_rate=0.01, student_rate_rate=1e-5, similarity="low-rank", rank=2, similarity_rate=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def real() -> PairSet:
    drawn = list(shapes.pairs(0, 24, seed=5))
    images = np.stack([decode_image(pair["image"], max_pixels=2**20, image_px=32) for pair in drawn])
    return PairSet(images, [pair["captions"][:1] for pair in drawn])


@pytest.fixture(scope="module")
def student() -> DualEncoder:
    return load_student(MATCH, 0, "cpu").eval()


@pytest.fixture(scope="module")
def experts(real: PairSet, student: DualEncoder) -> list[list[dict[str, np.ndarray]]]:
    vectors = student.text.encode_captions(real.flat_captions).numpy()
    return [
        list(train_expert(real, vectors, EXPERTS, MATCH, seed=seed, device="cpu"))
        for seed in range(EXPERTS.count)
    ]


def test_experts_are_kept_before_the_first_epoch_and_after_each(
    experts: list[list[dict[str, np.ndarray]]],
) -> None:
    one, other = experts
    assert len(one) == EXPERTS.epochs + 1
    trained = [name for name in one[0] if name not in MEANS]
    assert {name.split(".")[1] for name in trained} == {"image", "image_head", "text_head"}
    for name in trained:
        assert (one[0][name] != one[-1][name]).any(), name
    for name in MEANS:  # stand still, and are of the data
        np.testing.assert_array_equal(one[0][name], one[-1][name])
        assert np.abs(one[0][name]).max() > 0
    assert (one[0]["student.text_head.weight"] != other[0]["student.text_head.weight"]).any()


def matcher(
    real: PairSet, student: DualEncoder, experts: list[list[dict[str, np.ndarray]]], **changes: Any
) -> TrajectoryMatcher:
    pixels = student.image.normalise(torch.tensor(real.images[:6])).float()
    vectors = student.text.encode_captions(real.flat_captions[:6])
    match = replace(MATCH, **changes)
    return TrajectoryMatcher(
        student, pixels, vectors, match, EXPERTS, lambda number, epoch: experts[number][epoch], seed=7
    )


def test_a_resumed_matcher_ends_with_the_pairs_of_an_unbroken_one(
    real: PairSet, student: DualEncoder, experts: list[list[dict[str, np.ndarray]]]
) -> None:
    whole = matcher(real, student, experts)
    records = list(whole.run())
    broken = matcher(real, student, experts)
    for record in broken.run():
        if record["step"] == 2:
            break
    state = json.loads(json.dumps(broken.state()["records"])), broken.state()
    resumed = matcher(real, student, experts)
    resumed.restore(state[1])
    list(resumed.run())
    assert resumed.records == records
    for name, value in whole.pairs.state_dict().items():
        torch.testing.assert_close(resumed.pairs.state_dict()[name], value, rtol=0, atol=0)


def test_all_that_is_learnt_moves_and_the_text_encoder_does_not(
    real: PairSet, student: DualEncoder, experts: list[list[dict[str, np.ndarray]]]
) -> None:
    before = student.text.weights_digest()
    one = matcher(real, student, experts)
    began = {name: value.clone() for name, value in one.pairs.state_dict().items()}
    list(one.run())
    assert all((value != began[name]).any() for name, value in one.pairs.state_dict().items())
    assert student.text.weights_digest() == before


def test_pairs_learnt_for_lors_students_are_used_by_them_whole(real: PairSet) -> None:
    match = replace(MATCH, protocol="lors-frozen-text")
    student = load_student(match, 0, "cpu", form_of(match)).eval()
    vectors = student.text.encode_captions(real.flat_captions).numpy()
    experts = [list(train_expert(real, vectors, EXPERTS, match, seed=0, device="cpu"))] * EXPERTS.count
    assert not any(experts[0][0][name].any() for name in MEANS)  # nothing is centred
    assert (
        experts[0][0]["student.text_head.refine.weight"] != experts[0][-1]["student.text_head.refine.weight"]
    ).any()

    one = matcher(real, student, experts, protocol=match.protocol)
    list(one.run())
    start = PairSet(real.images[:6], real.captions[:6])
    learnt = LearntPairs.from_bytes(learnt_pairs(one, start, real.flat_captions).to_bytes())
    assert learnt.rates == (one.records[-1]["student_rate"],) * 2
    assert learnt.rates != (MATCH.student_rate,) * 2
    students, lors = Students(), PUBLISHED_FOR_PAIRS["lors-frozen-text"]
    np.testing.assert_array_equal(frozen_text_features(learnt, students, "cpu", lors), learnt.vectors)
    short = replace(lors, training=lambda pairs: Training.in_epochs(pairs, batch=4, epochs=2))

    def trained(pairs: LearntPairs) -> list[float]:
        arguments: dict[str, Any] = {"seed": 0, "device": "cpu", "protocol": short}
        return train_student(pairs, students, learning_rate=0.1, **arguments)[1].tolist()

    whole = trained(learnt)
    assert (
        train_student(learnt, students, learning_rate=0.1, seed=0, device="cpu", protocol=short)[4]
        == learnt.rates
    )
    assert whole != trained(replace(learnt, rates=None))
    assert trained(replace(learnt, similarity=None)) == trained(replace(learnt, similarity=None, rates=None))


def test_rates_that_are_too_high_are_named(
    real: PairSet, student: DualEncoder, experts: list[list[dict[str, np.ndarray]]]
) -> None:
    high = {"pixel_rate": 1e30, "text_rate": 1e30, "student_rate": 0.1, "student_rate_rate": 1e-2}
    wild = matcher(real, student, experts, **high, iterations=20)
    with pytest.raises(UserError, match=r"no finite number in iteration \d+ with match\.pixel_rate=1e\+30"):
        list(wild.run())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_start_epoch": 3}, r"need more epochs than experts\.epochs=3; raise experts\.epochs"),
        ({"workers": 2}, r"match\.workers=2, but pairs are learnt by one worker here"),
        ({"similarity": "low-rank", "rank": 101}, r"match\.rank=101 is above match\.pairs=100"),
        (
            {"protocol": "lors-frozen-text"},
            r"those of evaluation\.protocols=equal-budget cannot use their texts",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    settings = local()
    with pytest.raises(UserError, match=message):
        check(replace(settings, match=replace(settings.match, **changes)))


SMALL = """
    --data.uri shapes:60?seed=4&captions=1 --evaluation.val shapes:20?seed=5&wrong=0
    --evaluation.test shapes:20?seed=6&wrong=0 --match.pairs 8 --match.iterations 4 --match.student_steps 2
    --match.batch_pairs 4 --match.pixel_rate 1 --match.text_rate 0.1 --match.student_rate 0.01
    --match.student_rate_rate 1e-5 --match.similarity low-rank --match.rank 2 --match.similarity_rate 0.1
    --match.checkpoint_iterations 2 --experts.epochs 2 --experts.batch_pairs 16 --students.steps 4
    --evaluation.seeds 1 --evaluation.baselines random --evaluation.audit --run.num_cpus 2
    --run.object_store_mib 100
"""


def run_job(folder: Path) -> str:
    """What a small run prints, to its end."""
    job = [sys.executable, "jobs/trajectory_flickr30k.py", "local", "--run.dir", str(folder)]
    done = subprocess.run([*job, *SMALL.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trajectory") / "run"
    run_job(folder)
    return folder


@pytest.mark.job
@pytest.mark.timeout(600)
def test_a_run_ends_in_a_set_that_students_with_its_encoder_use(finished: Path) -> None:
    store = Store(str(finished))
    report = store.read_json("report.json")
    assert report["method"] == "Trajectory matching"
    assert list(report["stages"]) == ["features", "experts", "match", "export", "audit", "evaluate"]
    assert report["losses"]["step"] == [1, 2, 3, 4]
    assert set(report["scores"]) == {"trajectory", "random", "chance"}

    learnt = read_learnt(store.child("distilled"))
    assert learnt is not None
    assert learnt.vectors is not None
    assert learnt.similarity is not None
    assert learnt.similarity.shape == (8, 8)
    students = Students(steps=2)
    np.testing.assert_array_equal(frozen_text_features(learnt, students, "cpu"), learnt.vectors)
    _, losses, *_ = train_student(learnt, students, learning_rate=0.01, seed=0, device="cpu")
    plain = replace(learnt, similarity=None)
    _, others, *_ = train_student(plain, students, learning_rate=0.01, seed=0, device="cpu")
    assert losses[0] != others[0]  # similarities decide the loss
    assert all(nearest for nearest in learnt.nearest)
    about = report["audit"]["learnt"]
    assert about["bytes"] == learnt.n_bytes
    assert len(about["texts"]) == 8
    assert [one["began_as"] for one in about["texts"]] == learnt.flat_captions


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_expert_that_is_lost_is_trained_again_alone_and_the_set_stays_the_same(finished: Path) -> None:
    before = (finished / "distilled/learnt_pairs.safetensors").read_bytes()
    for name in ("experts/manifest.json", "experts/001/002.safetensors"):
        (finished / name).unlink()
    kept = (finished / "experts/000/002.safetensors").stat().st_mtime_ns
    assert re.search(r"^match +done already", run_job(finished), re.MULTILINE)
    assert (finished / "experts/000/002.safetensors").stat().st_mtime_ns == kept
    assert (finished / "distilled/learnt_pairs.safetensors").read_bytes() == before


def test_outside_of_its_folder_nothing_but_the_dictionary_knows_the_method() -> None:
    package = ROOT / "mmdd_ray"
    own, dictionary = package / "methods" / "trajectory", package / "methods" / "__init__.py"
    knowing = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if not file.is_relative_to(own) and re.search("trajector", file.read_text(), re.IGNORECASE)
    }
    assert knowing == {str(dictionary.relative_to(package))}
