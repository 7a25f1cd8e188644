"""CovMatch's loss on the synthetic set, and its exact gradient in the memory of one micro-batch; no Ray, no I/O.

Lee et al., "CovMatch: Cross-Covariance Guided Multimodal Dataset Distillation with Trainable Text Encoder", arXiv
2510.18583:

    L(S) = ‖ρ C_vl(T) − C_vl(S)‖²_F + λ Σ_m ‖A_m (μ_m(T) − μ_m(S))‖²,  m ∈ {v, l}

T is the real set, S the synthetic one, C_vl = 1/(n−1) Σ (h_v − μ_v)(h_l − μ_l)ᵀ the cross-covariance of encoder
features before the heads. A_m is the head G_m (the published choice: means of embeddings) or the identity.

The loss sees S through its features alone, and has closed-form gradients with respect to them, so the encoders are run
twice: without a graph for all features, and in micro-batches with a graph for the gradients to flow back through.
``backward_in_micro_batches`` does that for any loss whose gradients with respect to features are at hand.

Data-parallel convention: ranks hold disjoint rows of T and of S, of any sizes. Only counts, sums and C_vl are summed
over the ranks. The loss and the moments are then the same on all ranks, and the feature gradients of a rank are those
of the one global loss with respect to its own rows: the gradient of what the ranks share is the *sum* over them.
"""

# B rows of a rank, V and L feature widths, D width of the heads

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

Encode = Callable[[slice], tuple[Tensor, Tensor]]
"""Features (B, V) and (B, L) of some of a rank's rows, by their encoders."""
Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gradients of a loss with respect to all features (rows, V) and (rows, L) of a rank, of the same shapes."""


class PairMoments(NamedTuple):
    """Statistics of a set of pairs that the loss is made of. float32, or float64 where the features are."""

    n_pairs: int
    mean_V: Tensor
    mean_L: Tensor
    cross_VL: Tensor
    """C_vl, divided by n_pairs − 1."""


class Heads(NamedTuple):
    """The linear heads of the encoders, without biases."""

    image_DV: Tensor
    text_DL: Tensor


class Matching(NamedTuple):
    """How the sets are compared."""

    rho: float = 1.0
    """ρ, the factor of the real cross-covariance; published: 2 at 100 pairs, 1 at 200 and 500."""
    mean_weight: float = 0.1
    """λ; published: 0.1, and 0.5 to 0.6 at 500 pairs."""
    heads: Heads | None = None
    """Heads through which the means are compared; None compares the features' own means."""
    relative: bool = False
    """Divides the covariance term by ‖C_vl(T)‖²_F, so that λ means the same whatever the scale of the features."""


@torch.no_grad()
def pair_moments(image_BV: Tensor, text_BL: Tensor) -> PairMoments:
    """Moments of the pairs of all ranks, from each rank's features.

    Two rounds of sums, so that rows are centred on the mean of all before they are multiplied: far from zero, a
    difference of raw second moments would have no correct digit.

    Raises:
        ValueError: the rows do not pair, or there are fewer than two pairs over all ranks.
    """
    if len(image_BV) != len(text_BL):
        raise ValueError(f"{len(image_BV)} image features do not pair with {len(text_BL)} text features")
    image_BV, text_BL = _precise(image_BV), _precise(text_BL)
    size = torch.tensor([float(len(image_BV))], dtype=torch.float64, device=image_BV.device)
    count = int(_sum_over_ranks(size).item())
    if count < 2:
        raise ValueError(f"{count} pairs have no covariance; it takes two")
    mean_V = _sum_over_ranks(image_BV.sum(dim=0)) / count
    mean_L = _sum_over_ranks(text_BL.sum(dim=0)) / count
    cross_VL = _sum_over_ranks((image_BV - mean_V).T @ (text_BL - mean_L)) / (count - 1)
    return PairMoments(count, mean_V, mean_L, cross_VL)


def covmatch_loss(synthetic: PairMoments, real: PairMoments, matching: Matching) -> dict[str, Tensor]:
    """Scalar terms ``covariance`` and ``mean`` (without λ), and ``total`` = covariance + λ · mean."""
    heads = matching.heads
    covariance = (matching.rho * real.cross_VL - synthetic.cross_VL).square().sum()
    covariance = covariance * _covariance_weight(real, matching)
    gap_V, gap_L = real.mean_V - synthetic.mean_V, real.mean_L - synthetic.mean_L
    if heads is not None:
        gap_V, gap_L = _precise(heads.image_DV) @ gap_V, _precise(heads.text_DL) @ gap_L
    mean = gap_V.square().sum() + gap_L.square().sum()
    return {"covariance": covariance, "mean": mean, "total": covariance + matching.mean_weight * mean}


@torch.no_grad()
def feature_gradients(
    image_BV: Tensor, text_BL: Tensor, synthetic: PairMoments, real: PairMoments, matching: Matching
) -> tuple[Tensor, Tensor]:
    """∂L/∂h of this rank's synthetic features, (B, V) and (B, L), in closed form.

    ∂L/∂h_v,i = 2/(N−1) (C_vl(S) − ρ C_vl(T)) (h_l,i − μ_l(S)) + 2λ/N A_vᵀA_v (μ_v(S) − μ_v(T)), and the transpose for
    h_l. The means inside C_vl(S) add nothing: what they multiply sums to zero.
    """
    residual_VL = _covariance_weight(real, matching) * (synthetic.cross_VL - matching.rho * real.cross_VL)
    scale, mean_scale = 2 / (synthetic.n_pairs - 1), 2 * matching.mean_weight / synthetic.n_pairs
    gap_V, gap_L = synthetic.mean_V - real.mean_V, synthetic.mean_L - real.mean_L
    if matching.heads is not None:
        image_DV, text_DL = (_precise(head) for head in matching.heads)
        gap_V, gap_L = image_DV.T @ (image_DV @ gap_V), text_DL.T @ (text_DL @ gap_L)
    image_BV, text_BL = _precise(image_BV), _precise(text_BL)
    grad_BV = scale * (text_BL - synthetic.mean_L) @ residual_VL.T + mean_scale * gap_V
    grad_BL = scale * (image_BV - synthetic.mean_V) @ residual_VL + mean_scale * gap_L
    return grad_BV, grad_BL


def backward_covmatch(
    encode: Encode, rows: int, real: PairMoments, matching: Matching, *, micro_batch: int
) -> dict[str, Tensor]:
    """Adds the gradient of L to everything that `encode` depends on; gives the terms of the loss.

    Args:
        rows: Synthetic pairs of this rank.
    """
    terms: dict[str, Tensor] = {}

    def gradients(image_BV: Tensor, text_BL: Tensor) -> tuple[Tensor, Tensor]:
        synthetic = pair_moments(image_BV, text_BL)
        terms.update(covmatch_loss(synthetic, real, matching))
        return feature_gradients(image_BV, text_BL, synthetic, real, matching)

    backward_in_micro_batches(encode, rows, gradients, micro_batch=micro_batch)
    return terms


def backward_in_micro_batches(encode: Encode, rows: int, gradients: Gradients, *, micro_batch: int) -> None:
    """Adds the gradient of a loss to everything that `encode` depends on, in the memory of `micro_batch` rows.

    The exact gradient of all rows together, though only the graph of one micro-batch exists at any time (gradient
    caching; Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983).
    Every micro-batch but the last, whose graph is kept, is encoded twice, with the same random numbers, so that dropout
    is the same.

    Args:
        gradients: Called once, with the features of all rows.
    """
    slices = micro_batches(rows, micro_batch)
    states, features = [], []
    with torch.no_grad():
        for part in slices[:-1]:
            states.append(_random_state())
            features.append(encode(part))
    last = encode(slices[-1])
    features.append((last[0].detach(), last[1].detach()))
    found = gradients(*(torch.cat(parts) for parts in zip(*features, strict=True)))
    _backward(last, found, slices[-1])
    del last
    for part, state in zip(slices[:-1], states, strict=True):
        with _replayed(state):
            again = encode(part)
        _backward(again, found, part)


def micro_batches(rows: int, size: int) -> list[slice]:
    """All rows in order, `size` at a time; one empty slice where there are none."""
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def _backward(features: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], rows: slice) -> None:
    learnt = [
        (feature, gradient[rows].to(feature.dtype))
        for feature, gradient in zip(features, gradients, strict=True)
        if feature.requires_grad  # not so where pixels or texts alone are learnt
    ]
    if learnt:
        torch.autograd.backward([feature for feature, _ in learnt], [gradient for _, gradient in learnt])


def _covariance_weight(real: PairMoments, matching: Matching) -> Tensor | float:
    return 1 / real.cross_VL.square().sum() if matching.relative else 1.0


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def _random_state() -> tuple[Tensor, list[Tensor]]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), gpus


@contextmanager
def _replayed(state: tuple[Tensor, list[Tensor]]) -> Iterator[None]:
    """Random numbers from `state` on inside the block, and as if nothing had been drawn after it."""
    now = _random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    cpu, gpus = state
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
