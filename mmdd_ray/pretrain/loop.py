"""The loop of every training of the zoo: batches, optimiser steps, a line of progress, and going on when killed."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from mmdd_ray.pretrain.corpus import batches

SAVE_SECONDS = 120.0


class Stateful(Protocol):
    """Anything whose state goes into a checkpoint beside the weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


class Fit:
    """AdamW that warms up over 5 % of `steps` and then decays to zero along a cosine.

    Shows a running mean of the losses, one line every 20 seconds. With a folder `work`, the state is kept there every
    two minutes and after the last step; the same training, started again, goes on from it.
    """

    def __init__(
        self,
        name: str,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        steps: int,
        seed: int,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
        work: Path | None = None,
        beside: Mapping[str, Stateful] | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._optimizer = AdamW(self._parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        self._schedule = OneCycleLR(
            self._optimizer, lr, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
        )
        self._max_norm, self._steps, self._seed = max_norm, steps, seed
        self._file = work / f"{name}.pt" if work else None
        self._beside: dict[str, Stateful] = {
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            **(beside or {}),
        }
        self.mean: dict[str, float] = {}
        """Running means of the loss and of all other figures."""
        self.done = 0
        """Steps taken."""
        self.seconds = 0.0
        """Time that they took, in this process and in earlier ones."""
        if self._file and self._file.exists():
            self._restore(torch.load(self._file, weights_only=True))
        self._bar = tqdm(total=steps, initial=self.done, desc=name, mininterval=20, ascii=True)

    def batches(self, rows: int, batch: int) -> Iterator[Tensor]:
        """Index tensors (batch,) of the steps that are left; torch's generator is seeded anew for each."""
        saved = begun = monotonic()
        for step, picked in enumerate(batches(rows, batch, self._steps, seed=self._seed)):
            if step < self.done:
                continue
            torch.manual_seed(int(np.random.SeedSequence((self._seed, step)).generate_state(1)[0]))
            yield picked
            now = monotonic()
            self.seconds, begun = self.seconds + now - begun, now
            if now - saved > SAVE_SECONDS:
                self._save()
                saved = now
        self._save()

    def step(self, loss: Tensor, **figures: float) -> None:
        """One optimiser step down `loss`, with gradients scaled down to `max_norm`."""
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._optimizer.step()
        self._schedule.step()
        self.done += 1
        for name, value in {"loss": loss.item(), **figures}.items():
            self.mean[name] = 0.98 * self.mean.get(name, value) + 0.02 * value
        self._bar.set_postfix({k: f"{v:.4f}" for k, v in self.mean.items()}, refresh=False)
        self._bar.update()

    def _save(self) -> None:
        if not self._file:
            return
        state = {
            "parameters": [p.detach() for p in self._parameters],
            "beside": {name: one.state_dict() for name, one in self._beside.items()},
            "mean": self.mean,
            "done": self.done,
            "seconds": self.seconds,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        torch.save(state, part)
        part.rename(self._file)

    def _restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for ours, theirs in zip(self._parameters, state["parameters"], strict=True):
                ours.copy_(theirs)
        for name, one in self._beside.items():
            one.load_state_dict(state["beside"][name])
        self.mean, self.done, self.seconds = state["mean"], state["done"], state["seconds"]
