"""CovMatch's iterations without a cluster: against plain references, resumed, in ranks, and given nonsense."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mmdd_ray.config import Students
from mmdd_ray.data import shapes
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.data_position import Batch
from mmdd_ray.engine.ray_train import Worker
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.tasks.students import train_student
from mmdd_ray.matching.initial_pairs import start_from
from mmdd_ray.matching.objective import PairMoments
from mmdd_ray.matching.training import PairOptimizer
from mmdd_ray.methods.covmatch.settings import Match
from mmdd_ray.models.pair_losses import info_nce
from mmdd_ray.models.students import DualEncoder, count_longer, load_student

SETTINGS = Match(
    pairs=6,
    iterations=5,
    real_batch=8,
    restart_iterations=3,
    optimizer="adam",
    pixel_rate=0.01,
    token_rate=0.01,
    encoder_rate=1e-3,
    head_rate=1e-2,
    embed_dim=32,
)


def scenes(count: int, *, seed: int) -> Batch:
    drawn = [shapes.scene(index, seed=seed) for index in range(count)]
    return np.stack([np.asarray(scene.render(32)) for scene in drawn]), [s.captions()[0] for s in drawn]


REAL = scenes(24, seed=5)
START = scenes(6, seed=9)


def epoch_of(settings: Match = SETTINGS, *, rank: int = 0, workers: int = 1) -> Any:
    """Three batches of the same pairs in every epoch, in another order."""

    def open_epoch(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(24).reshape(-1, settings.real_batch)
        for rows in order:
            own = rows[rank::workers]
            yield REAL[0][own], [REAL[1][row] for row in own]

    return open_epoch


def encoders(settings: Match = SETTINGS) -> DualEncoder:
    return load_student(settings, 0, "cpu")


def begun(settings: Match = SETTINGS, **arguments: Any) -> PairOptimizer:
    own = encoders(settings)
    return PairOptimizer(own, start_from(own, *START, settings), settings, seed=3, **arguments)


def run(settings: Match = SETTINGS, **arguments: Any) -> PairOptimizer:
    distillation = begun(settings, **arguments)
    for _ in distillation.run(epoch_of(settings)):
        pass
    return distillation


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).clone()


# Where it starts


def test_a_student_of_the_start_is_one_of_the_real_pairs():
    start = start_from(encoders(), *START, SETTINGS)
    students = Students(trained="both-encoders", embed_dim=32, steps=3, batch_pairs=4)
    real = PairSet(START[0], [[caption] for caption in START[1]])
    trained = [
        train_student(pairs, students, learning_rate=0.1, seed=0, device="cpu") for pairs in (real, start)
    ]
    np.testing.assert_allclose(trained[1][1], trained[0][1], rtol=1e-5)
    torch.testing.assert_close(flat(trained[1][0]), flat(trained[0][0]), rtol=1e-4, atol=1e-6)
    assert start.nearest == [caption.lower() for caption in START[1]]


def test_captions_longer_than_the_texts_are_cut_and_counted():
    long, settings = "a red circle " * 20, replace(SETTINGS, max_tokens=16)
    begun = start_from(encoders(settings), START[0][:2], [START[1][0], long], settings)
    assert begun.ids.shape == (2, 16)
    assert begun.captions == [[START[1][0]], [long]]
    assert count_longer(["a red circle", long], settings) == 1
    whole = encoders(settings).text.tokenizer([START[1][0]])["input_ids"][0]
    assert count_longer([START[1][0]], replace(SETTINGS, max_tokens=len(whole))) == 0
    assert count_longer([START[1][0]], replace(SETTINGS, max_tokens=len(whole) - 1)) == 1


# What an iteration does


def test_matching_a_batch_again_and_again_lowers_the_loss():
    settings = replace(SETTINGS, iterations=25, encoder_updates=False, restart_iterations=100, real_batch=24)
    records = run(settings).records
    assert records[-1]["total"] < 0.5 * records[0]["total"]
    assert [record["step"] for record in records] == list(range(1, 26))


@pytest.mark.parametrize(("learn", "still"), [("pixels", "offsets"), ("texts", "pixels")])
def test_only_what_is_learnt_moves(learn, still):
    found, start = run(replace(SETTINGS, learn=learn)).share(), start_from(encoders(), *START, SETTINGS)
    moved = "pixels" if still == "offsets" else "offsets"
    assert np.array_equal(getattr(found, still), getattr(start, still))
    assert not np.array_equal(getattr(found, moved), getattr(start, moved))


def test_pixels_stay_in_the_range_of_an_image():
    free = replace(SETTINGS, pixel_rate=1.0, keep_range=False)
    kept, cut = run(replace(free, keep_range=True)), run(free)
    low, high = kept.encoders.image.pixel_range
    assert (kept.pixels >= low).all()
    assert (kept.pixels <= high).all()
    assert (cut.pixels > high).any()
    assert np.array_equal(kept.share().pixels, kept.pixels.detach().numpy())
    assert (torch.from_numpy(cut.share().pixels) <= high).all()


def test_the_encoder_step_is_that_of_plain_info_nce():
    """Cached in micro-batches of 3, and computed before the pairs are, it is an ordinary SGD step."""
    settings = replace(SETTINGS, iterations=1, micro_batch=3)
    found = run(settings).encoders
    plain = encoders().eval()
    plain.load_state_dict({**plain.state_dict(), **_heads(begun(settings))})
    images, captions = next(epoch_of()(0))
    image_BV, text_BL = plain.image(torch.from_numpy(images)), plain.text(plain.text.tokenize(captions))
    plain.centre(image_BV, text_BL)
    rates = [(plain.image, 1e-3), (plain.text, 1e-3), (plain.image_head, 1e-2), (plain.text_head, 1e-2)]
    optimizer = torch.optim.SGD(
        [{"params": p.parameters(), "lr": rate} for p, rate in rates], lr=1, momentum=0.9
    )
    info_nce(plain.embed_image(image_BV), plain.embed_text(text_BL), settings.temperature).backward()
    optimizer.step()
    torch.testing.assert_close(flat(found), flat(plain), rtol=1e-4, atol=1e-6)


def _heads(distillation: PairOptimizer) -> dict[str, torch.Tensor]:
    """The heads that a distillation begins with."""
    distillation._restart(0)
    return {name: v for name, v in distillation.encoders.state_dict().items() if "head" in name}


def test_encoders_are_pretrained_again_after_the_restart():
    settings = replace(SETTINGS, iterations=4, restart_iterations=2)
    distillation, pretrained = begun(settings), flat(encoders().image)
    distances, heads = [], []
    for _ in distillation.run(epoch_of(settings)):
        distances.append((flat(distillation.encoders.image) - pretrained).norm().item())
        heads.append(flat(distillation.encoders.image_head))
    assert distances[1] > distances[0] > 0
    assert distances[2] < distances[1]
    assert not torch.allclose(heads[2], heads[0], atol=1e-2)


def test_ablations_leave_encoders_alone():
    before = encoders()
    frozen = run(replace(SETTINGS, frozen_text=True, iterations=2)).encoders
    assert torch.equal(flat(frozen.text), flat(before.text))
    assert not torch.equal(flat(frozen.image), flat(before.image))
    still = run(replace(SETTINGS, encoder_updates=False, iterations=2))
    assert torch.equal(flat(still.encoders.image), flat(before.image))
    assert "contrastive" not in still.records[0]


def test_means_are_compared_where_the_setting_says():
    after, before, without = (
        run(replace(SETTINGS, iterations=1, **changes)).records[0]
        for changes in ({}, {"means": "features"}, {"mean_weight": 0.0})
    )
    assert after["mean"] != before["mean"]
    assert without["total"] == without["covariance"]
    assert after["total"] == pytest.approx(after["covariance"] + 0.1 * after["mean"], rel=1e-5)


def test_the_gradient_does_not_depend_on_the_micro_batch():
    one, many = run(), run(replace(SETTINGS, micro_batch=2))
    for mine, theirs in zip(one.records, many.records, strict=True):
        assert theirs["total"] == pytest.approx(mine["total"], rel=1e-3)
    np.testing.assert_allclose(many.share().pixels, one.share().pixels, atol=2e-3)


def test_memory_does_not_grow_with_the_set_or_the_real_batch(graph_bytes):
    def peak(pairs: int, **changes: Any) -> int:
        settings = replace(SETTINGS, iterations=1, **{"micro_batch": 2, **changes})
        own = encoders(settings)
        start = start_from(own, REAL[0][:pairs], REAL[1][:pairs], settings)
        distillation = PairOptimizer(own, start, settings, seed=3)
        with graph_bytes() as graph:
            next(distillation.run(epoch_of(settings)))
        return graph.peak

    small = peak(6)
    assert peak(24, real_batch=24) < 1.1 * small
    assert peak(24, real_batch=24, micro_batch=24) > 3 * small


def test_a_batch_of_the_pairs_moves_only_them():
    settings = replace(SETTINGS, synthetic_batch=2, iterations=1, optimizer="sgd")
    moved = (run(settings).share().pixels != start_from(encoders(), *START, SETTINGS).pixels).any(
        axis=(1, 2, 3)
    )
    assert moved.sum() == 2


def test_moments_of_all_pairs_serve_the_initial_encoders():
    own = encoders().eval()
    with torch.no_grad():
        image, text = own.image(torch.from_numpy(REAL[0])), own.text(own.text.tokenize(REAL[1]))
    whole = PairMoments(24, image.mean(0), text.mean(0), torch.cov(torch.cat([image, text], 1).T)[:192, 192:])
    settings = replace(SETTINGS, real_moments="whole", iterations=4)
    records = run(settings, whole=whole).records
    assert [("cross_sampling_error" in record) for record in records] == [True, False, False, True]
    assert records[0]["cross_sampling_error"] > 0
    assert records[0]["mean_sampling_error"] > 0
    everything = replace(settings, real_batch=24, iterations=1)
    assert run(everything, whole=whole).records[0]["cross_sampling_error"] < 1e-4


# Resuming, ranks


@pytest.mark.parametrize("done", [2, 3])  # in the middle of an encoder's life, and at the end of one
def test_a_resumed_distillation_ends_as_an_unbroken_one(done, tmp_path):
    unbroken = run()
    first = begun()
    steps = first.run(epoch_of())
    for _ in range(done):
        next(steps)
    torch.save(first.state(), tmp_path / "state.pt")
    assert (first.state()["encoders"] is None) == (done == 3)
    resumed = begun()
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in resumed.run(epoch_of()):
        pass
    assert np.array_equal(resumed.share().pixels, unbroken.share().pixels)
    assert np.array_equal(resumed.share().offsets, unbroken.share().offsets)
    assert [r["total"] for r in resumed.records] == [r["total"] for r in unbroken.records]


def test_a_checkpoint_of_other_pairs_is_refused():
    other = begun(replace(SETTINGS, rho=2.0, micro_batch=1)).state()
    with pytest.raises(UserError, match=r"another distillation \(match.rho: 2.0 -> 1.0\); set run.dir"):
        begun().restore(other)


TEN = replace(
    SETTINGS,
    pairs=6,
    iterations=10,
    optimizer="sgd",
    relative=True,
    restart_iterations=6,
    pixel_rate=0.1,  # with steps far above the rounding of a pixel
)


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    distillation = begun(TEN, rank=rank, workers=2)
    for record in distillation.run(epoch_of(rank=rank, workers=2)):
        if record["step"] in (1, 10):
            share = distillation.pixels.detach().clone(), distillation.offsets.detach().clone()
            torch.save((share, record["total"]), folder / f"{rank}-{record['step']:.0f}.pt")
    (folder / f"{rank}.safetensors").write_bytes(distillation.share().to_bytes())
    dist.destroy_process_group()


def test_two_ranks_learn_what_one_does(tmp_path, two_ranks):
    two_ranks(one_rank, args=(tmp_path,))
    one, tolerances = begun(TEN), {1: 1e-5, 10: 1e-2}
    for record in one.run(epoch_of()):
        step = int(record["step"])
        if step in tolerances:
            start = start_from(encoders(), *START, SETTINGS)
            for rank in range(2):
                share, total = torch.load(tmp_path / f"{rank}-{step}.pt", weights_only=True)
                assert total == pytest.approx(record["total"], rel=tolerances[step])
                for mine, theirs, began in (
                    (one.pixels.detach()[rank::2], share[0], start.pixels[rank::2]),
                    (one.offsets.detach()[rank::2], share[1], start.offsets[rank::2]),
                ):
                    moved = (mine - torch.from_numpy(began)).norm()
                    assert moved > 0
                    assert (mine - theirs).norm() <= tolerances[step] * moved
    shares = [LearntPairs.from_bytes((tmp_path / f"{rank}.safetensors").read_bytes()) for rank in range(2)]
    merged = LearntPairs.interleaved(shares)
    assert merged.captions == [[caption] for caption in START[1]]
    np.testing.assert_allclose(merged.pixels, one.share().pixels, atol=1e-2)


def agreeing_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    try:
        with Worker.raise_on_all(SimpleNamespace(workers=2)):  # type: ignore[arg-type]
            if rank == 1:
                raise UserError("a caption is too long")
        found = "went on"
    except UserError as error:
        found = str(error)
    (folder / f"{rank}.txt").write_text(found)
    dist.destroy_process_group()


def test_a_mistake_that_one_rank_sees_is_that_of_all(tmp_path, two_ranks):
    two_ranks(agreeing_rank, args=(tmp_path,))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["a caption is too long"] * 2


def test_bfloat16_is_close_to_float32():
    single, half = run(), run(replace(SETTINGS, precision="bfloat16"))
    assert half.records[0]["total"] == pytest.approx(single.records[0]["total"], rel=0.05)
    assert half.records[0]["total"] != single.records[0]["total"]
    moved = [d.share().pixels - start_from(encoders(), *START, SETTINGS).pixels for d in (single, half)]
    assert np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1] > 0.5


@pytest.mark.long
def test_compiled_encoders_learn_the_same(compiled):
    one, other = run(), run(replace(SETTINGS, compile=True))
    assert compiled
    np.testing.assert_allclose(
        *([record["total"] for record in each.records] for each in (one, other)), rtol=1e-5
    )
    torch.testing.assert_close(other.pixels, one.pixels, atol=1e-4, rtol=1e-4)


# Nonsense


def test_a_loss_that_is_no_number_names_iteration_and_rates():
    settings = replace(SETTINGS, encoder_rate=1e30, head_rate=1e30)
    with pytest.raises(
        UserError, match=r"iteration 2 with match.pixel_rate=0.01, .*match.encoder_rate=1e\+30"
    ):
        run(settings)


def test_an_epoch_without_a_batch_is_one_sentence():
    with pytest.raises(UserError, match=r"fewer usable pairs than match\.real_batch=8"):
        next(begun().run(lambda epoch: []))
