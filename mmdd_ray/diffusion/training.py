"""The steps of a fine-tuning on one worker: gradients, clipping, averaged weights, and a state that resumes exactly.

Knows no method: what is minimised is an ``Objective``. Knows no Ray either: ``diffusion/finetune.py`` feeds it.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmdd_ray.config import Finetune
from mmdd_ray.engine.data_position import Batch, DataPosition, OpenEpoch
from mmdd_ray.engine.precision import autocast
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.models.generators.generator import Generator


class Objective(Protocol):
    """The objective of a fine-tuning: a small picklable description that becomes a loss on each worker."""

    def build(self, generator: Generator) -> nn.Module:
        """The loss as a module that holds the generator and has every trained parameter.

        Called with the two parts of a ``Batch`` and a CPU ``torch.Generator`` for its noise, it returns
        scalar terms by name, of which ``total`` is minimised. All are means over the pairs of the worker or
        of all workers, so that their average over workers is what one worker would report.
        """
        ...


class Training:
    """An optimiser, averaged weights and the position in the data, at the start of a training or resumed.

    The noise of a batch depends on seed, step, number of the batch in it, and rank only. So ``state`` holds
    no random state, and an interrupted training ends with the weights of an unbroken one.
    """

    def __init__(self, loss: nn.Module, settings: Finetune, *, seed: int, rank: int = 0) -> None:
        """``loss`` is what ``Objective.build`` made, on its device, in ``DistributedDataParallel`` or not."""
        self.loss, self.settings, self.seed, self.rank = loss, settings, seed, rank
        bare = loss.module if isinstance(loss, DistributedDataParallel) else loss
        self.parameters = {name: p for name, p in bare.named_parameters() if p.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = _optimizer(self.parameters.values(), settings)
        self.average = _average(self.parameters.values(), settings.ema_decay)
        self.losses: list[dict[str, float]] = []
        """A record of every step: its number (from 1), terms, gradient norm, learning rate and seconds."""
        self.position = DataPosition()

    def run(self, open_epoch: OpenEpoch) -> Iterator[dict[str, float]]:
        """Takes the steps that are left; yields the record of each when ``state`` includes it.

        Raises:
            ValueError: the loss or its gradient is no finite number, or an epoch has no batch.
        """
        stream = self.position.batches(
            open_epoch,
            too_few=f"the data has fewer usable pairs than finetune.batch_pairs={self.settings.batch_pairs}; "
            "lower finetune.batch_pairs, or set finetune.steps=0 to keep the generator as it is",
        )
        while len(self.losses) < self.settings.steps:
            yield self._step(islice(stream, self.settings.accumulate))

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        started, share = time.monotonic(), 1 / self.settings.accumulate
        step = len(self.losses) + 1
        terms: dict[str, Tensor] = {}
        for number, (images, captions) in enumerate(batches, start=1):
            with self._synchronised(last=number == self.settings.accumulate):
                with autocast(self.device):
                    found = self.loss(images, captions, self._noise(step, number))
                (found["total"] * share).backward()
            terms = {name: terms.get(name, 0) + share * term.detach() for name, term in found.items()}
        # After DDP's averaging the gradient is the same everywhere, so all workers stop here or none.
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm or math.inf)
        if not norm.isfinite():
            raise UserError(
                f"the loss or its gradient is no finite number at step {step} with finetune.learning_rate="
                f"{self.settings.learning_rate:g}; lower finetune.learning_rate, or set "
                "finetune.max_grad_norm=1"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.step(self.parameters.values())
        record = {
            "step": step,
            **_mean_over_workers(terms),
            "gradient_norm": norm.item(),
            "learning_rate": self.settings.learning_rate,
            "seconds": time.monotonic() - started,
        }
        self.losses.append(record)
        return record

    def _synchronised(self, *, last: bool) -> Any:
        """DDP exchanges gradients once a step, with the last of its batches."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()

    def _noise(self, step: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, step, number, self.rank, bits=64))

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, for ``torch.save`` and ``torch.load(weights_only=True)``."""
        return {
            "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "losses": self.losses,
            "epoch": self.position.epoch,
            "batch": self.position.batch,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a ``state`` of a training with the same settings."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
        self.losses = list(state["losses"])
        self.position = DataPosition(state["epoch"], state["batch"])

    def finish(self) -> None:
        """Puts the averaged weights, if there are any, in place of the last ones."""
        if self.average:
            self.average.copy_to(self.parameters.values())


def _average(parameters: Iterable[nn.Parameter], decay: float) -> Any:
    """diffusers' averaged weights, whose decay rises to ``decay`` over the first steps; None without decay."""
    if decay <= 0:
        return None
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=decay, foreach=True)


def _optimizer(parameters: Iterable[nn.Parameter], settings: Finetune) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        # no decay: it would pull biases, norms and scale factors to zero
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0)
    return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=settings.momentum)


def _mean_over_workers(terms: dict[str, Tensor]) -> dict[str, float]:
    values = torch.stack([term.float() for term in terms.values()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(terms, values.tolist(), strict=True))
