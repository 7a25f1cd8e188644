"""CovMatch's loss and its closed-form, cached, data-parallel gradient against plain references."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmdd_ray.matching.objective import (
    Heads,
    Matching,
    PairMoments,
    backward_covmatch,
    covmatch_loss,
    feature_gradients,
    pair_moments,
)

V, L, D = 7, 5, 4


def features(rows: int, *, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, V, generator=generator, dtype=torch.float64) + 0.5
    text = image @ torch.randn(V, L, generator=generator, dtype=torch.float64) - 0.3
    return image.to(dtype), text.to(dtype)


def heads(dtype: torch.dtype = torch.float64) -> Heads:
    generator = torch.Generator().manual_seed(99)
    draw = [torch.randn(D, width, generator=generator, dtype=torch.float64).to(dtype) for width in (V, L)]
    return Heads(*draw)


MATCHINGS = [
    Matching(2.0, 0.1, heads()),
    Matching(1.0, 0.6, None),
    Matching(1.0, 0.0, None),
    Matching(2.0, 0.1, heads(), relative=True),
]


def numpy_loss(real: tuple[Tensor, Tensor], synthetic: tuple[Tensor, Tensor], matching: Matching) -> float:
    def cross(pair: tuple[Tensor, Tensor]) -> np.ndarray:
        v, l = (rows.double().numpy() for rows in pair)  # noqa: E741
        return np.cov(v.T, l.T)[: v.shape[1], v.shape[1] :]

    total = np.square(matching.rho * cross(real) - cross(synthetic)).sum()
    if matching.relative:
        total /= np.square(cross(real)).sum()
    for side in range(2):
        gap = real[side].double().numpy().mean(axis=0) - synthetic[side].double().numpy().mean(axis=0)
        if matching.heads is not None:
            gap = matching.heads[side].double().numpy() @ gap
        total += matching.mean_weight * np.square(gap).sum()
    return float(total)


@pytest.mark.parametrize("matching", MATCHINGS)
def test_the_loss_is_that_of_the_formula(matching):
    real, synthetic = features(50, seed=1), features(12, seed=2)
    terms = covmatch_loss(pair_moments(*synthetic), pair_moments(*real), matching)
    assert terms["total"].item() == pytest.approx(numpy_loss(real, synthetic, matching), rel=1e-12)
    assert terms["total"] == terms["covariance"] + matching.mean_weight * terms["mean"]


def test_moments_keep_their_digits_far_from_zero():
    image, text = features(40, seed=3)
    near = pair_moments(image, text)
    far = pair_moments((image + 1000).float(), (text - 1000).float())
    torch.testing.assert_close(far.cross_VL.double(), near.cross_VL, rtol=1e-3, atol=1e-3)


def test_equal_sets_have_no_loss_and_a_single_pair_no_covariance():
    moments = pair_moments(*features(9, seed=4))
    assert covmatch_loss(moments, moments, Matching(1.0, 0.5))["total"].item() == 0
    with pytest.raises(ValueError, match="1 pairs have no covariance"):
        pair_moments(*features(1, seed=4))
    with pytest.raises(ValueError, match="9 image features do not pair with 8"):
        pair_moments(features(9, seed=4)[0], features(8, seed=4)[1])


def differentiable_loss(image: Tensor, text: Tensor, real: PairMoments, matching: Matching) -> Tensor:
    """The loss through autograd, with moments that have a graph."""
    centred_v, centred_l = image - image.mean(dim=0), text - text.mean(dim=0)
    synthetic = PairMoments(
        len(image), image.mean(dim=0), text.mean(dim=0), centred_v.T @ centred_l / (len(image) - 1)
    )
    return covmatch_loss(synthetic, real, matching)["total"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("matching", MATCHINGS)
def test_closed_form_gradients_are_those_of_autograd(matching, dtype, tolerance):
    if matching.heads is not None:
        matching = matching._replace(heads=heads(dtype))
    real = pair_moments(*features(50, seed=1, dtype=dtype))
    image, text = (rows.requires_grad_() for rows in features(12, seed=2, dtype=dtype))
    differentiable_loss(image, text, real, matching).backward()
    found = feature_gradients(image.detach(), text.detach(), pair_moments(image, text), real, matching)
    for gradient, expected in zip(found, (image.grad, text.grad), strict=True):
        assert (gradient - expected).norm() <= tolerance * expected.norm()


class Encoders(nn.Module):
    """Two small networks with dropout, on parameters for each pair: a synthetic set and its encoders."""

    def __init__(self, rows: int, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.pixels, self.tokens = (nn.Parameter(torch.randn(rows, width)) for width in (20, 10))
        self.image = nn.Sequential(nn.Linear(20, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, V))
        self.text = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, L))

    def forward(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self.image(self.pixels[rows]), self.text(self.tokens[rows])


REAL = pair_moments(*features(60, seed=6, dtype=torch.float32))
MATCHING = Matching(2.0, 0.3, heads(torch.float32))


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 64])
def test_the_cached_gradient_is_the_direct_one(micro_batch):
    direct, cached = Encoders(8), Encoders(8)
    loss = differentiable_loss(*direct(slice(0, 8)), REAL, MATCHING)
    loss.backward()
    terms = backward_covmatch(cached, 8, REAL, MATCHING, micro_batch=micro_batch)
    assert terms["total"].item() == pytest.approx(loss.item(), rel=1e-5)
    for expected, found in zip(direct.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)


def test_dropout_is_the_same_in_both_passes_and_random_numbers_go_on():
    torch.manual_seed(0)
    encoders = Encoders(6, dropout=0.5)
    seen: dict[int, list[Tensor]] = {}

    def encode(rows: slice) -> tuple[Tensor, Tensor]:
        image, text = encoders(rows)
        seen.setdefault(rows.start, []).append(image.detach())
        return image, text

    backward_covmatch(encode, 6, REAL, MATCHING, micro_batch=2)
    for first, *again in seen.values():
        assert all(torch.equal(first, other) for other in again)
    assert [len(seen[start]) for start in (0, 2, 4)] == [2, 2, 1]  # the last graph is kept
    assert not torch.equal(encoders(slice(0, 2))[0], seen[0][0])


def test_what_is_not_learnt_gets_no_gradient():
    encoders = Encoders(6)
    for part in (encoders.tokens, *encoders.text.parameters()):
        part.requires_grad_(False)
    backward_covmatch(encoders, 6, REAL, MATCHING, micro_batch=4)
    assert encoders.tokens.grad is None
    assert encoders.pixels.grad is not None
    assert encoders.pixels.grad.abs().sum() > 0


def test_the_memory_of_a_step_does_not_grow_with_the_set(graph_bytes):
    def peak(rows: int, micro_batch: int) -> int:
        encoders = Encoders(rows)
        for network in (encoders.image, encoders.text):
            network.requires_grad_(False)
        inputs = encoders.pixels.detach(), encoders.tokens.detach()
        leaves = [[part.clone().requires_grad_() for part in values.split(micro_batch)] for values in inputs]

        def encode(part: slice) -> tuple[Tensor, Tensor]:
            number = part.start // micro_batch
            return encoders.image(leaves[0][number]), encoders.text(leaves[1][number])

        with graph_bytes() as graph:
            backward_covmatch(encode, rows, REAL, MATCHING, micro_batch=micro_batch)
        return graph.peak

    small = peak(16, micro_batch=4)
    assert small > 0
    assert peak(256, micro_batch=4) == small
    assert peak(256, micro_batch=64) > 2 * small  # so the measure sees what is held


def one_rank(rank: int, folder: Path, real: tuple[Tensor, Tensor], rows: list[list[int]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    moments = pair_moments(*(side[rank::2] for side in real))
    everything = Encoders(9)
    own = rows[rank]
    terms = backward_covmatch(
        lambda part: everything_rows(everything, own[part]), len(own), moments, MATCHING, micro_batch=2
    )
    torch.save((terms, [p.grad for p in everything.parameters()]), folder / f"{rank}.pt")
    dist.destroy_process_group()


def everything_rows(encoders: Encoders, rows: list[int]) -> tuple[Tensor, Tensor]:
    return encoders.image(encoders.pixels[rows]), encoders.text(encoders.tokens[rows])


def test_two_ranks_with_unequal_shares_give_the_gradient_of_one(tmp_path, two_ranks):
    real = features(31, seed=8, dtype=torch.float32)
    one = Encoders(9)
    terms = backward_covmatch(one, 9, pair_moments(*real), MATCHING, micro_batch=4)
    shares = [[0, 3, 5, 8], [1, 2, 4, 6, 7]]
    two_ranks(one_rank, args=(tmp_path, real, shares))
    (first, first_gradients), (second, second_gradients) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    for name, term in terms.items():
        assert first[name].item() == pytest.approx(term.item(), rel=1e-5)
        assert second[name].item() == pytest.approx(first[name].item(), rel=1e-6)
    for parameter, mine, theirs in zip(one.parameters(), first_gradients, second_gradients, strict=True):
        torch.testing.assert_close(mine + theirs, parameter.grad, rtol=1e-5, atol=1e-6)
