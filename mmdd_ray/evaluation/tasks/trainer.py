"""The loop that trains every student."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmdd_ray.protocols import Training


@contextmanager
def reproducible(seed: int, device: str) -> Iterator[None]:
    """Seeds torch, and leaves its random state as it was; kernels of a GPU are deterministic meanwhile."""
    gpus = [] if device == "cpu" else [device]
    # enabled, because torch's own default of this call switches cuDNN off
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False)
    with torch.random.fork_rng(gpus), cudnn:
        torch.manual_seed(seed)
        yield


Look = Callable[[int], None]
"""Tests a student on its way; is given the number of steps that are done."""


def looking(student: nn.Module, look: Callable[[Any, int], None] | None) -> Look | None:
    """Lets `look` see a student in eval mode on its way, which then goes on in the modes that its parts had."""
    if look is None:
        return None

    def at_step(done: int) -> None:
        modes = {module: module.training for module in student.modules()}
        look(student.eval(), done)
        for module, was_training in modes.items():
            module.training = was_training

    return at_step


def descend(
    batch_losses: Iterable[Tensor], optimizer: Optimizer, training: Training, look: Look | None = None
) -> np.ndarray:
    """A step down each loss, which is computed as it is asked for; gives the losses (steps,) float32.

    Args:
        training: The rates of the optimiser are those of its first steps, and fall as it says.
        look: Called after each of the training's steps to look at.
    """
    schedule = LambdaLR(optimizer, training.rate_factor)
    losses = []
    for done, loss in enumerate(batch_losses, 1):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())  # still on the device: reading it here would wait for each step
        if look is not None and done in training.looks_at:
            look(done)
    return torch.stack(losses).cpu().numpy()
