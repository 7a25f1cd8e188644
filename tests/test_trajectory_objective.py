"""Trajectory matching against finite differences, plain gradient descent, and closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdd_ray.methods.trajectory.objective import (
    Embedding,
    SyntheticPairs,
    train_on,
    trajectory_loss,
)
from mmdd_ray.models.pair_losses import info_nce, weighted_bce


class Student(nn.Module):
    """As much of a dual encoder as the objective looks at, small and in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Module()
        self.image.add_module("layer", nn.Linear(3 * 4 * 4, 5))
        self.image.encode = lambda pixels: torch.tanh(self.image.layer(pixels.flatten(1)))  # type: ignore[operator]
        self.text = nn.Linear(2, 2)  # stands still
        self.image_head, self.text_head = nn.Linear(5, 3, bias=False), nn.Linear(6, 3, bias=False)

    def embed_image(self, feature_BV: Tensor) -> Tensor:
        return nn.functional.normalize(self.image_head(feature_BV), dim=1)

    def embed_text(self, feature_BT: Tensor) -> Tensor:
        return nn.functional.normalize(self.text_head(feature_BT), dim=1)


def problem(similarity: Any) -> tuple[Embedding, SyntheticPairs, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    embedding = Embedding(Student()).double()  # type: ignore[arg-type]
    pairs = SyntheticPairs(
        torch.randn(4, 3, 4, 4, generator=generator),
        torch.randn(4, 6, generator=generator),
        rate=0.3,
        similarity=similarity,
        rank=2,
        scale=3.0,
        generator=generator,
    ).double()
    if similarity == "low-rank":
        with torch.no_grad():
            pairs.right_NR.normal_(0, 0.1, generator=generator)
    return embedding, pairs, [torch.tensor([0, 1, 2]), torch.tensor([3, 1, 0])]


def matched(similarity: Any, pairs: SyntheticPairs, embedding: Embedding, batches: list[Tensor]) -> Tensor:
    start = {name: value.detach().requires_grad_() for name, value in embedding.trained().items()}
    target = {name: value + 0.1 * (index + 1) for index, (name, value) in enumerate(start.items())}
    reached = train_on(embedding, start, pairs, batches, 0.5)
    return trajectory_loss(reached, start, {name: value.detach() for name, value in target.items()})


@pytest.mark.parametrize("similarity", ["identity", "low-rank"])
def test_the_gradient_goes_through_all_steps(similarity: Any) -> None:
    embedding, pairs, batches = problem(similarity)
    matched(similarity, pairs, embedding, batches).backward()
    for name, learnt in pairs.named_parameters():
        flat, gradient = learnt.data.view(-1), learnt.grad
        assert gradient is not None, name
        for place in range(0, flat.numel(), max(flat.numel() // 5, 1)):
            kept, step = flat[place].item(), 1e-6
            flat[place] = kept + step
            above = matched(similarity, pairs, embedding, batches).item()
            flat[place] = kept - step
            below = matched(similarity, pairs, embedding, batches).item()
            flat[place] = kept
            assert gradient.view(-1)[place].item() == pytest.approx(
                (above - below) / (2 * step), rel=1e-4, abs=1e-7
            )


def test_steps_are_those_of_plain_gradient_descent() -> None:
    embedding, pairs, batches = problem("identity")
    start = {name: value.detach().clone().requires_grad_() for name, value in embedding.trained().items()}
    reached = train_on(embedding, start, pairs, batches, 0.5)
    optimizer = torch.optim.SGD(embedding.trained().values(), lr=0.3)
    for row_B in batches:
        image_BD, text_BD = embedding(pairs.pixels[row_B].detach(), pairs.vectors[row_B].detach())
        optimizer.zero_grad()
        info_nce(image_BD, text_BD, 0.5).backward()
        optimizer.step()
    assert "student.text.weight" not in reached
    for name, value in embedding.trained().items():
        torch.testing.assert_close(reached[name].float(), value.float(), rtol=1e-5, atol=1e-7)


def test_a_student_that_reaches_the_expert_has_no_loss_and_one_that_stays_has_two() -> None:
    start = {"student.image.a": torch.zeros(3), "student.text_head.weight": torch.ones(2)}
    target = {"student.image.a": torch.ones(3), "student.text_head.weight": torch.zeros(2)}
    assert trajectory_loss(target, start, target) == 0
    assert trajectory_loss(start, start, target) == 2  # one for each side
    half = {name: (start[name] + target[name]) / 2 for name in start}
    assert trajectory_loss(half, start, target) == pytest.approx(0.5)


def test_positive_and_negative_pairs_weigh_the_same() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [0.3, 0.2, 3.0]])
    similarity = torch.eye(3)
    own = -torch.log(torch.sigmoid(logits.diag())).mean()
    others = -torch.log(1 - torch.sigmoid(logits[~similarity.bool()])).mean()
    torch.testing.assert_close(weighted_bce(logits, similarity), (own + others) / 2)


def test_similarities_begin_as_the_identity() -> None:
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"rate": 0.1, "rank": 2, "scale": 3.0, "generator": generator}
    pixels, vectors = torch.zeros(4, 3, 2, 2), torch.zeros(4, 5)
    learnt = SyntheticPairs(pixels, vectors, similarity="low-rank", **options).similarity()
    torch.testing.assert_close(learnt, torch.eye(4))
    assert SyntheticPairs(pixels, vectors, similarity="identity", **options).similarity() is None
