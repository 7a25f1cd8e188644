import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.testing import assert_allclose
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmdd_ray.methods.edge.losses import (
    contrastive_loss,
    diversity_loss,
    edge_objective,
    sample_timesteps,
)
from mmdd_ray.models.generators.stable_diffusion import clean_estimate

WEIGHTS = {"contrastive_weight": 1.0, "diversity_weight": 0.5, "noise_weight": 2.0}


def embeddings(
    batch: int = 7, d_v: int = 5, d_l: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(batch, d, generator=generator, dtype=dtype) for d in (d_v, d_l)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_contrastive_loss_is_the_two_sided_cross_entropy_in_numpy():
    image, text = embeddings()
    logits = unit(image.numpy()) @ unit(text.numpy()).T / 0.2
    image_to_text = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(axis=1)))
    text_to_image = -np.mean(np.diag(logits) - np.log(np.exp(logits).sum(axis=0)))
    expected = (image_to_text + text_to_image) / 2
    assert contrastive_loss(image, text, temperature=0.2).item() == pytest.approx(expected, rel=1e-12)


def test_contrastive_loss_by_hand():
    aligned = torch.eye(4, dtype=torch.float64)
    expected = math.log(1 + 3 * math.exp(-10))  # own logit 1/0.1 = 10, three others 0
    assert contrastive_loss(aligned, aligned).item() == pytest.approx(expected, rel=1e-9)
    # all alike: a guess among four
    same = torch.ones(4, 3)
    assert contrastive_loss(same, same).item() == pytest.approx(math.log(4), rel=1e-6)


def test_contrastive_loss_does_not_round_under_autocast():
    image, text = embeddings(32, 16, 16, torch.float32)
    outside = contrastive_loss(image, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrastive_loss(image, text).item() == outside.item()


def test_diversity_loss_is_the_mean_cosine_of_different_pairs_in_numpy():
    image, text = (rows.numpy() for rows in embeddings(d_v=5, d_l=3))
    joint = np.concatenate([unit(image), unit(text)], axis=1)
    cosines = [
        joint[i] @ joint[j] / np.linalg.norm(joint[i]) / np.linalg.norm(joint[j])
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    loss = diversity_loss(torch.from_numpy(image), torch.from_numpy(text))
    assert loss.item() == pytest.approx(np.mean(cosines), rel=1e-12)


def test_diversity_loss_by_hand():
    orthogonal = torch.eye(3)
    assert diversity_loss(orthogonal, orthogonal).item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.ones(3, 2)
    assert diversity_loss(collapsed, collapsed).item() == pytest.approx(1, rel=1e-6)
    # same images, orthogonal texts: half; the images' larger norm must not count
    assert diversity_loss(1000 * collapsed, orthogonal).item() == pytest.approx(0.5, rel=1e-6)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert diversity_loss(opposite, opposite).item() == pytest.approx(-1, rel=1e-6)


@pytest.mark.parametrize("loss", [contrastive_loss, diversity_loss])
def test_gradients_are_those_of_finite_differences(loss):
    image, text = (rows.requires_grad_() for rows in embeddings(batch=4))
    assert torch.autograd.gradcheck(loss, (image, text))


@pytest.mark.parametrize("loss", [contrastive_loss, diversity_loss])
def test_batches_without_negatives_are_errors(loss):
    with pytest.raises(ValueError, match="batch of 1 has no negatives"):
        loss(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="3 image embeddings do not pair with 2 text"):
        loss(torch.ones(3, 2), torch.ones(2, 2))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_clean_latent(prediction_type):
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    alpha_bar = torch.tensor([0.99, 0.5, 0.01], dtype=torch.float64)
    signal_scale, noise_scale = torch.stack([alpha_bar, 1 - alpha_bar]).sqrt()[..., None, None, None]
    noisy = signal_scale * clean + noise_scale * noise
    target = noise if prediction_type == "epsilon" else signal_scale * noise - noise_scale * clean
    assert_allclose(clean_estimate(noisy, target, alpha_bar, prediction_type), clean, rtol=1e-10)


def test_timesteps_fill_their_range_and_follow_the_generator():
    def draw(fraction: float) -> Tensor:
        return sample_timesteps(20_000, 1000, fraction, torch.Generator().manual_seed(3))

    assert torch.equal(draw(0.5), draw(0.5))
    assert torch.equal(draw(0.5).unique(), torch.arange(500))
    assert torch.equal(draw(1.0).unique(), torch.arange(1000))
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"max_timestep_fraction={fraction}"):
            draw(fraction)


def test_the_objective_is_the_weighted_sum_of_its_terms():
    image, text = embeddings()
    prediction, target = torch.full((7, 1, 2, 2), 3.0), torch.ones(7, 1, 2, 2)
    terms = edge_objective(image, text, prediction, target, temperature=0.2, **WEIGHTS)
    assert terms["contrastive"].item() == contrastive_loss(image, text, temperature=0.2).item()
    assert terms["diversity"].item() == diversity_loss(image, text).item()
    assert terms["noise"].item() == 4
    expected = terms["contrastive"] + 0.5 * terms["diversity"] + 2 * 4
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-12)


class TinyEncoder(nn.Module):
    """One layer for images, one for texts, one that "denoises" the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.image, self.text, self.noise = nn.Linear(6, 4), nn.Linear(5, 4), nn.Linear(6, 6)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.image(image), self.text(text), self.noise(image)[:, :, None, None]


def loss_and_gradient(model: nn.Module, rows: slice) -> tuple[Tensor, Tensor]:
    """The total and the gradient of all parameters, as one vector, on rows of one fixed batch."""
    generator = torch.Generator().manual_seed(11)
    image, text = torch.randn(8, 6, generator=generator)[rows], torch.randn(8, 5, generator=generator)[rows]
    image_embedding, text_embedding, prediction = model(image, text)
    target = image[:, :, None, None]
    terms = edge_objective(image_embedding, text_embedding, prediction, target, temperature=0.1, **WEIGHTS)
    terms["total"].backward()
    return terms["total"].detach(), torch.cat(
        [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    )


def train_one_rank(rank: int, world_size: int, folder: Path) -> None:
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    share = 8 // world_size
    model = DistributedDataParallel(TinyEncoder())
    total, gradient = loss_and_gradient(model, slice(rank * share, (rank + 1) * share))
    dist.all_reduce(total)
    torch.save({"total": total / world_size, "gradient": gradient}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_give_the_loss_and_the_gradient_of_one(tmp_path, two_ranks):
    two_ranks(train_one_rank, args=(2, tmp_path))
    total, gradient = loss_and_gradient(TinyEncoder(), slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_allclose(found["total"], total, rtol=1e-5)
        assert_allclose(found["gradient"], gradient, rtol=1e-5, atol=1e-6)
