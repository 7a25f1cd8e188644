"""CovMatch's iterations on one worker: the pairs, the encoders they are matched under, and an exact state to resume.

Lee et al., "CovMatch: Cross-Covariance Guided Multimodal Dataset Distillation with Trainable Text Encoder", arXiv
2510.18583. Knows no Ray: ``matching/learn.py`` feeds it.
"""

# N synthetic pairs, B pairs of this rank in a batch, G of all ranks, V and L feature widths

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmdd_ray.config import PairLearning
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.data_position import DataPosition
from mmdd_ray.engine.precision import autocast
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.engine.settings_changes import differences, resolved
from mmdd_ray.errors import UserError
from mmdd_ray.matching.objective import (
    Encode,
    Heads,
    Matching,
    PairMoments,
    backward_covmatch,
    backward_in_micro_batches,
    micro_batches,
    pair_moments,
)
from mmdd_ray.models.pair_losses import info_nce
from mmdd_ray.models.students import DualEncoder, Tokens

ENCODER_MOMENTUM = 0.9
RealBatch = tuple[np.ndarray | Tensor, list[str]]
"""Images (B, H, W, 3), uint8, on any device, and one caption each."""


class PairOptimizer:
    """Pixels and token embeddings that are learnt, at the start or resumed.

    Rank r of k holds every k-th synthetic pair from the r-th on, and its share of every real batch. What depends on
    chance depends on seed and iteration only, so ``state`` holds no random state, an interrupted distillation ends with
    the pairs of an unbroken one, and k workers take the steps of one. Compiled, both hold but for rounding: which
    kernels are compiled depends on the lengths of texts that a process sees first.

    Encoders run in evaluation mode: batch statistics and dropout would make the features of a pair depend on its
    micro-batch.
    """

    def __init__(
        self,
        encoders: DualEncoder,
        start: LearntPairs,
        settings: PairLearning,
        *,
        seed: int,
        rank: int = 0,
        workers: int = 1,
        whole: PairMoments | None = None,
    ) -> None:
        """
        Args:
            encoders: ``load_student`` of the settings, on the device of this worker.
            start: all pairs, as ``start_from`` or ``start_from_learnt`` makes them.
            whole: moments of all real pairs under the initial encoders, for ``real_moments="whole"``.
        """
        self.settings, self.seed, self.rank, self.workers, self.whole = settings, seed, rank, workers, whole
        self.encoders = encoders.eval()
        self.device = encoders.device
        if settings.frozen_text:
            encoders.text.requires_grad_(False)
        if settings.compile:
            for encoder in (encoders.image, encoders.text):
                encoder.backbone.compile()
        self._start = start
        self._pretrained = [
            {name: value.detach().cpu().clone() for name, value in part.state_dict().items()}
            for part in (encoders.image, encoders.text)
        ]
        own = slice(rank, None, workers)
        self.pixels = nn.Parameter(torch.tensor(start.pixels[own], device=self.device))
        self.offsets = nn.Parameter(torch.tensor(start.offsets[own], device=self.device))
        words, mask = (torch.tensor(values[own], device=self.device) for values in (start.ids, start.mask))
        self.tokens = Tokens(words, mask, self.offsets)
        self.pixels.requires_grad_(settings.learn != "texts")
        self.offsets.requires_grad_(settings.learn != "pixels")
        self.optimizer = self._pair_optimizer()
        self.encoder_optimizer = self._encoder_optimizer()
        self.position = DataPosition()
        self.records: list[dict[str, float]] = []
        """A record of every iteration: ``step`` (from 1), terms of the loss, InfoNCE of the encoders, seconds."""

    def run(self, open_epoch: Callable[[int], Iterable[RealBatch]]) -> Iterator[dict[str, float]]:
        """Takes the iterations that are left; yields the record of each when ``state`` includes it.

        ``open_epoch`` gives this rank's share of the real batches: equal ones on all ranks.

        Raises:
            UserError: a loss is no finite number, or an epoch has no batch.
        """
        batches = self.position.batches(
            open_epoch,
            too_few=f"the data has fewer usable pairs than {self.settings.section}.real_batch="
            f"{self.settings.real_batch}; lower {self.settings.section}.real_batch or add data",
        )
        while len(self.records) < self.settings.iterations:
            started = time.monotonic()  # waiting for real pairs counts
            images, captions = next(batches)
            # enabled, because torch's own default of this call switches cuDNN off
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
                record = self._iterate(images, captions)
            record["seconds"] = time.monotonic() - started
            self.records.append(record)
            yield record

    def _iterate(self, images: np.ndarray | Tensor, captions: list[str]) -> dict[str, float]:
        iteration = len(self.records)
        is_restart = iteration % self.settings.restart_iterations == 0
        if is_restart:
            self._restart(iteration // self.settings.restart_iterations)
        record = {"step": float(iteration + 1)}
        features = self._real_features(images, captions)
        # Real pairs first, so that their graph is gone when that of the synthetic ones is made. Their gradients wait:
        # both updates are under the encoders as they are now.
        if self.settings.encoder_updates:
            real, record["contrastive"] = self._backward_encoders(features, len(images), is_restart)
        elif self.whole is None or is_restart:
            real = self._moments(features, len(images))
        if self.whole is not None and (is_restart or not self.settings.encoder_updates):
            if is_restart:
                record |= _sampling_error(real, self.whole)
            real = self.whole
        rows = self._rows(iteration)
        self.optimizer.zero_grad()
        with no_gradients_of(self.encoders):
            terms = backward_covmatch(
                lambda part: self._synthetic_features(rows[part]),
                len(rows),
                real,
                self._matching(),
                micro_batch=self.settings.micro_batch,
            )
        record |= {name: term.item() for name, term in terms.items()}
        record["relative_covariance"] = (
            record["covariance"] if self.settings.relative else record["covariance"] / _square(real)
        )
        self._check_finite(record)
        self._update()
        return record

    def _restart(self, number: int) -> None:
        """The pretrained encoders with new heads, and an optimiser that has seen nothing."""
        for part, state in zip((self.encoders.image, self.encoders.text), self._pretrained, strict=True):
            part.load_state_dict(state)
        self.encoders.draw_heads(_seed(self.seed, "heads", number))
        self.encoder_optimizer = self._encoder_optimizer()

    def _real_features(self, images: np.ndarray | Tensor, captions: list[str]) -> Encode:
        images_BHWC = torch.as_tensor(images)
        text = self.encoders.text.tokenize(captions)

        def features(part: slice) -> tuple[Tensor, Tensor]:
            pixels = self.encoders.image.normalise(images_BHWC[part].to(self.device))
            return self._encode(pixels, text.rows(part))

        return features

    def _synthetic_features(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        if not len(rows_B):  # a batch of S that has no pair of this rank: transformers refuses empty batches
            widths = self.encoders.image.width, self.encoders.text.width
            return tuple(torch.zeros(0, width, device=self.device) for width in widths)  # type: ignore[return-value]
        return self._encode(self.pixels[rows_B], self.tokens.rows(rows_B))

    def _encode(self, pixels_BCHW: Tensor, text: Tokens) -> tuple[Tensor, Tensor]:
        with autocast(self.device, self.settings.precision):
            return self.encoders.image.encode(pixels_BCHW), self.encoders.text(text)

    @torch.no_grad()
    def _moments(self, features: Encode, rows: int) -> PairMoments:
        found = [features(part) for part in micro_batches(rows, self.settings.micro_batch)]
        image_BV, text_BL = (torch.cat(parts) for parts in zip(*found, strict=True))
        return pair_moments(image_BV, text_BL)

    def _backward_encoders(self, features: Encode, rows: int, is_restart: bool) -> tuple[PairMoments, float]:
        """Gradients of InfoNCE on the real batch of all ranks, for encoders and heads; its moments and loss."""
        self.encoder_optimizer.zero_grad()
        found: list[tuple[PairMoments, float]] = []

        def gradients(image_BV: Tensor, text_BL: Tensor) -> tuple[Tensor, Tensor]:
            real = pair_moments(image_BV, text_BL)
            if is_restart:
                self.encoders.centre(real.mean_V[None], real.mean_L[None])
            image_GV, text_GL = _gather(image_BV.float()), _gather(text_BL.float())
            with torch.enable_grad():
                loss = info_nce(
                    self.encoders.embed_image(image_GV.requires_grad_()),
                    self.encoders.embed_text(text_GL.requires_grad_()),
                    self.settings.temperature,
                )
            loss.backward()
            found.append((real, loss.item()))
            own = slice(self.rank * rows, (self.rank + 1) * rows)
            return image_GV.grad[own], text_GL.grad[own]  # type: ignore[index]

        backward_in_micro_batches(features, rows, gradients, micro_batch=self.settings.micro_batch)
        self._sum_encoder_gradients()
        return found[0]

    def _sum_encoder_gradients(self) -> None:
        """Every rank has the gradient of its own rows for the encoders, and the whole one for the heads."""
        if self.workers > 1:
            heads = [self.encoders.image_head.weight, self.encoders.text_head.weight]
            gradients = [w.grad for w in (*self._encoder_weights(), *heads) if w.grad is not None]
            for sent in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
                sent.wait()
            for head in heads:  # equal but for rounding, which must not drive ranks apart
                head.grad = head.grad / self.workers if head.grad is not None else None

    def _rows(self, iteration: int) -> Tensor:
        """Which of this rank's pairs are in the batch of S: indices into its share."""
        count, batch = self._start.n_pairs, self.settings.synthetic_batch
        chosen = np.arange(count)
        if batch < count:
            rng = np.random.default_rng(_seed(self.seed, "rows", iteration))
            chosen = np.sort(rng.choice(count, size=batch, replace=False))
        own = chosen[chosen % self.workers == self.rank] // self.workers
        return torch.from_numpy(own).to(self.device)

    def _matching(self) -> Matching:
        settings, heads = self.settings, None
        if settings.means == "embeddings":
            heads = Heads(self.encoders.image_head.weight.detach(), self.encoders.text_head.weight.detach())
        return Matching(settings.rho, settings.mean_weight, heads, settings.relative)

    def _check_finite(self, record: dict[str, float]) -> None:
        # all terms are those of all ranks, so all of them stop here or none
        broken = [name for name in ("total", "contrastive") if not np.isfinite(record.get(name, 0.0))]
        if broken:
            rates = ["pixel_rate", "token_rate"]
            if self.settings.encoder_updates:
                rates += ["encoder_rate", "head_rate"]
            section = self.settings.section
            rates_set = ", ".join(f"{section}.{name}={getattr(self.settings, name):g}" for name in rates)
            raise UserError(
                f"the {'InfoNCE' if broken == ['contrastive'] else 'matching'} loss is no finite number in "
                f"iteration {record['step']:.0f} with {rates_set}; lower them"
            )

    @torch.no_grad()
    def _update(self) -> None:
        for values in (self.pixels, self.offsets):
            if values.requires_grad and values.grad is None:  # none of this rank's pairs is in the batch
                values.grad = torch.zeros_like(values)  # they move by momentum, as they would on one worker
        self.optimizer.step()
        if self.settings.keep_range:
            least, greatest = self.encoders.image.pixel_range
            self.pixels.clamp_(least, greatest)
        if self.settings.encoder_updates:
            self.encoder_optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, for ``torch.save`` and ``torch.load(weights_only=True)``.

        Encoders are in it where the next iteration goes on with them.
        """
        goes_on = len(self.records) % self.settings.restart_iterations != 0
        return {
            "settings": resolved(self.settings),
            "pixels": self.pixels.detach(),
            "offsets": self.offsets.detach(),
            "optimizer": self.optimizer.state_dict(),
            "encoders": self.encoders.state_dict() if goes_on else None,
            "encoder_optimizer": self.encoder_optimizer.state_dict() if goes_on else None,
            "records": self.records,
            "epoch": self.position.epoch,
            "batch": self.position.batch,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a ``state`` of the same rank of a distillation with the same settings.

        Raises:
            UserError: the state is of another distillation.
        """
        wanted, section = resolved(self.settings), self.settings.section
        if changes := differences(state["settings"], wanted, self.settings, section):
            raise UserError(
                f"the checkpoint is of another distillation ({'; '.join(changes)}); set run.dir to a new folder"
            )
        self.pixels.copy_(state["pixels"])
        self.offsets.copy_(state["offsets"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["encoders"] is not None:
            self.encoders.load_state_dict(state["encoders"])
            self.encoder_optimizer.load_state_dict(state["encoder_optimizer"])
        self.records = list(state["records"])
        self.position = DataPosition(state["epoch"], state["batch"])

    @torch.no_grad()
    def share(self) -> LearntPairs:
        """This rank's pairs as they are exported, in the end: pixels in the range of an image.

        Puts the pretrained text encoder back.

        Raises:
            UserError: a pixel or an offset is no finite number.
        """
        self._check_finite(
            {"step": len(self.records), "total": (self.pixels.sum() + self.offsets.sum()).item()}
        )
        own, text = slice(self.rank, None, self.workers), self.encoders.text
        text.load_state_dict(self._pretrained[1])  # whose word embeddings the offsets are of
        least, greatest = self.encoders.image.pixel_range
        return replace(
            self._start,
            pixels=self.pixels.clamp(least, greatest).cpu().numpy(),
            ids=self._start.ids[own],
            mask=self._start.mask[own],
            offsets=self.offsets.detach().cpu().numpy(),
            captions=self._start.captions[own],
            nearest=text.nearest_words(self.tokens),
        )

    def _pair_optimizer(self) -> torch.optim.Optimizer:
        rates = ((self.pixels, self.settings.pixel_rate), (self.offsets, self.settings.token_rate))
        groups: list[dict[str, Any]] = [
            {"params": [values], "lr": rate} for values, rate in rates if values.requires_grad
        ]
        if self.settings.optimizer == "adam":
            return torch.optim.Adam(groups)
        return torch.optim.SGD(groups, lr=self.settings.pixel_rate, momentum=self.settings.momentum)

    def _encoder_optimizer(self) -> torch.optim.Optimizer:
        heads = [self.encoders.image_head.weight, self.encoders.text_head.weight]
        groups: list[dict[str, Any]] = [
            {"params": self._encoder_weights(), "lr": self.settings.encoder_rate},
            {"params": heads, "lr": self.settings.head_rate},
        ]
        if self.settings.encoder_optimizer == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, lr=self.settings.encoder_rate, momentum=ENCODER_MOMENTUM)

    def _encoder_weights(self) -> list[nn.Parameter]:
        encoders = (self.encoders.image, self.encoders.text)
        return [weight for part in encoders for weight in part.parameters() if weight.requires_grad]


def _sampling_error(batch: PairMoments, whole: PairMoments) -> dict[str, float]:
    """How far the moments of a batch are from those of all pairs, relative to their norms."""
    cross = (batch.cross_VL - whole.cross_VL).norm() / whole.cross_VL.norm()
    means = torch.cat([batch.mean_V - whole.mean_V, batch.mean_L - whole.mean_L]).norm()
    return {
        "cross_sampling_error": cross.item(),
        "mean_sampling_error": (means / torch.cat([whole.mean_V, whole.mean_L]).norm()).item(),
    }


def _square(moments: PairMoments) -> float:
    return moments.cross_VL.square().sum().item()


def _gather(local_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without a graph; all ranks hold equally many."""
    if not (dist.is_available() and dist.is_initialized()):
        return local_BD.detach().clone()
    parts = [torch.empty_like(local_BD) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local_BD.contiguous())
    return torch.cat(parts)


def _seed(seed: int, purpose: str, number: int) -> int:
    return derive_seed(seed, *purpose.encode(), number)


@contextmanager
def no_gradients_of(encoders: nn.Module) -> Iterator[None]:
    """The weights as constants inside the block: gradients flow through them, none are computed for them."""
    trained = [weight for weight in encoders.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
