"""The iterations that learn pairs from the trajectories of experts, and an exact state to resume; no Ray."""

# N synthetic pairs, HW image size, T width of text vectors

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.methods.trajectory.experts import MEANS
from mmdd_ray.methods.trajectory.objective import (
    Embedding,
    Parameters,
    SyntheticPairs,
    train_on,
    trajectory_loss,
)
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories
from mmdd_ray.models.students import DualEncoder

ReadExpert = Callable[[int, int], dict[str, np.ndarray]]
"""The parameters of an expert, by its number, after an epoch."""


class TrajectoryMatcher:
    """Pairs that are learnt, at the start or resumed. What an iteration draws depends on seed and its number alone."""

    def __init__(
        self,
        student: DualEncoder,
        pixels_NCHW: Tensor,
        vector_NT: Tensor,
        match: Trajectories,
        experts: Experts,
        read: ReadExpert,
        *,
        seed: int,
    ) -> None:
        self.embedding, self.match, self.experts = Embedding(student), match, experts
        self.read, self.seed = read, seed
        self.device = pixels_NCHW.device
        self.pairs = SyntheticPairs(
            pixels_NCHW.cpu(),
            vector_NT.cpu(),
            rate=match.student_rate,
            similarity=match.similarity,
            rank=match.rank,
            scale=match.similarity_weight,
            generator=torch.Generator().manual_seed(derive_seed(seed, 0)),
        ).to(self.device)
        self.optimizer = torch.optim.SGD(self._groups(), momentum=match.momentum)
        self.records: list[dict[str, float]] = []
        """A record of every iteration: ``step`` (from 1), ``total``, the loss, and ``student_rate``."""

    def _groups(self) -> list[dict[str, Any]]:
        rates = {
            "pixels": self.match.pixel_rate,
            "vectors": self.match.text_rate,
            "rate": self.match.student_rate_rate,
        }
        return [
            {"params": [learnt], "lr": rates.get(name, self.match.similarity_rate)}
            for name, learnt in self.pairs.named_parameters()
        ]

    def run(self) -> Iterator[dict[str, float]]:
        """Takes the iterations that are left; yields the record of each when ``state`` includes it.

        Raises:
            UserError: The loss is no finite number.
        """
        while len(self.records) < self.match.iterations:
            yield self._iterate(len(self.records) + 1)

    def _iterate(self, step: int) -> dict[str, float]:
        rng = np.random.default_rng(derive_seed(self.seed, step))
        expert = int(rng.integers(self.experts.count))
        epoch = int(rng.integers(self.match.max_start_epoch + 1))
        start = self._parameters(expert, epoch)
        target = self._parameters(expert, epoch + self.match.expert_epochs)
        for value in start.values():
            value.requires_grad_()
        reached = train_on(self.embedding, start, self.pairs, self._batches(rng), self.match.temperature)
        loss = trajectory_loss(reached, {name: value.detach() for name, value in start.items()}, target)
        if not loss.isfinite():
            raise UserError(
                f"the loss is no finite number in iteration {step} with match.pixel_rate={self.match.pixel_rate:g}, "
                f"match.text_rate={self.match.text_rate:g} and a student's rate of {self.pairs.rate.item():.3g}; lower "
                "match.pixel_rate and match.text_rate"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        record = {"step": step, "total": loss.item(), "student_rate": self.pairs.rate.item()}
        self.records.append(record)
        return record

    def _parameters(self, expert: int, epoch: int) -> Parameters:
        """Those of an expert; its means go into the student that follows it."""
        tensors = {name: torch.from_numpy(value) for name, value in self.read(expert, epoch).items()}
        means = dict(self.embedding.named_buffers())
        for name in MEANS:
            means[name].copy_(tensors.pop(name))
        return {name: value.to(self.device).clone() for name, value in tensors.items()}

    def _batches(self, rng: np.random.Generator) -> list[Tensor]:
        """Rows of each step; the pairs anew in another order when all have been seen."""
        size = min(self.match.batch_pairs, self.match.pairs)
        rows, waiting = [], np.empty(0, np.int64)
        for _ in range(self.match.student_steps):
            if len(waiting) < size:
                waiting = rng.permutation(self.match.pairs)
            rows.append(torch.from_numpy(waiting[:size]).to(self.device))
            waiting = waiting[size:]
        return rows

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, for ``torch.save`` and ``torch.load(weights_only=True)``."""
        return {
            "pairs": self.pairs.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "records": self.records,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a ``state`` of a run with the same settings."""
        self.pairs.load_state_dict(state["pairs"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.records = list(state["records"])


@torch.no_grad()
def learnt_pairs(matcher: TrajectoryMatcher, start: PairSet, captions: list[str]) -> LearntPairs:
    """What was learnt of pairs that began as ``start``.

    Args:
        captions: Real ones, the nearest of which stands beside each vector, for people.
    """
    student, pairs = matcher.embedding.student, matcher.pairs
    tokens = student.text.tokenize(start.flat_captions)
    real_PT = torch.nn.functional.normalize(student.text.encode_captions(captions), dim=1)
    nearest = (torch.nn.functional.normalize(pairs.vectors, dim=1) @ real_PT.T).argmax(dim=1)
    similarity = pairs.similarity()
    width = student.text.vocabulary.shape[1]
    mean, std = (tuple(one.flatten().tolist()) for one in (student.image.mean, student.image.std))
    rate, pooling = pairs.rate.item(), student.form.pooling
    return LearntPairs(
        pixels=pairs.pixels.cpu().numpy(),
        ids=tokens.ids_BL.cpu().numpy(),
        mask=tokens.mask_BL.cpu().numpy(),
        offsets=np.zeros((*tokens.ids_BL.shape, width), np.float32),
        mean=mean,
        std=std,
        vocabulary=student.text.vocabulary_digest(),
        captions=[[caption] for caption in start.flat_captions],
        nearest=[captions[row] for row in nearest.tolist()],
        vectors=pairs.vectors.cpu().numpy(),
        encoder=student.text.weights_digest(),
        pooling="" if pooling == "mean" else pooling,
        similarity=None if similarity is None else similarity.cpu().numpy(),
        rates=(rate, rate) if rate > 0 else None,  # which nothing keeps above 0
    )
