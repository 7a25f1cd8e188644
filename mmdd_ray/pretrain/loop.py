"""What every training of the zoo shares: one optimiser step, and a line of progress."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm


class Fit:
    """AdamW that warms up over 5 % of `steps` and then decays to zero along a cosine.

    Shows a running mean of the losses, one line every 20 seconds.
    """

    def __init__(
        self,
        name: str,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        steps: int,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
    ) -> None:
        self._parameters = list(parameters)
        self._optimizer = AdamW(self._parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        self._schedule = OneCycleLR(
            self._optimizer, lr, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
        )
        self._max_norm = max_norm
        self._bar = tqdm(total=steps, desc=name, mininterval=20, ascii=True)
        self.mean: dict[str, float] = {}
        """Running means of the loss and of all other figures."""

    def step(self, loss: Tensor, **figures: float) -> None:
        """One optimiser step down `loss`, with gradients scaled down to `max_norm`."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        self._schedule.step()
        for name, value in {"loss": loss.item(), **figures}.items():
            self.mean[name] = 0.98 * self.mean.get(name, value) + 0.02 * value
        self._bar.set_postfix({k: f"{v:.4f}" for k, v in self.mean.items()}, refresh=False)
        self._bar.update()
