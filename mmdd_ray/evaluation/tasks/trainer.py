"""The loop that trains every student."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


@contextmanager
def reproducible(seed: int, device: str) -> Iterator[None]:
    """Seeds torch, and leaves its random state as it was; kernels of a GPU are deterministic meanwhile."""
    gpus = [] if device == "cpu" else [device]
    # enabled, because torch's own default of this call switches cuDNN off
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False)
    with torch.random.fork_rng(gpus), cudnn:
        torch.manual_seed(seed)
        yield


def descend(batch_losses: Iterable[Tensor], optimizer: Optimizer, schedule: LRScheduler) -> np.ndarray:
    """A step down each loss, which is computed as it is asked for; gives the losses (steps,) float32."""
    losses = []
    for loss in batch_losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())  # still on the device: reading it here would wait for each step
    return torch.stack(losses).cpu().numpy()
