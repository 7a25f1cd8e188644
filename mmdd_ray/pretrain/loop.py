"""What every training of the zoo shares: the optimiser with its schedule, and a line of progress."""

from collections.abc import Iterable

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm


def cosine_adamw(
    parameters: Iterable[torch.nn.Parameter], *, lr: float, steps: int, weight_decay: float = 0.01
) -> tuple[AdamW, LRScheduler]:
    """AdamW that warms up over 5 % of `steps` and then decays to zero along a cosine."""
    optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False)
    return optimizer, schedule


class Progress:
    """A progress bar that shows a running mean of the losses, one line every 20 seconds."""

    def __init__(self, name: str, steps: int) -> None:
        self._bar = tqdm(total=steps, desc=name, mininterval=20, ascii=True)
        self.mean: dict[str, float] = {}

    def step(self, **losses: float) -> None:
        """Count one step."""
        for name, value in losses.items():
            self.mean[name] = 0.98 * self.mean.get(name, value) + 0.02 * value
        self._bar.set_postfix({k: f"{v:.4f}" for k, v in self.mean.items()}, refresh=False)
        self._bar.update()
