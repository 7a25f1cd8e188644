"""Settings of a generator: fine-tuning it, and drawing with it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from mmdd_ray.config.fields import Count, Essential, Positive, Rate, Weight, operational, share
from mmdd_ray.config.pools import Pool, Training


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Fine-tuning of a text-to-image diffusion model."""

    generator: Essential[str] = "tiny-sd"
    """Text-to-image model to start from: a zoo name, a hub name, or a folder; of Stable Diffusion
    or Stable Diffusion XL."""
    image_px: Count = 32
    """Side of the images the generator sees and draws."""
    steps: Essential[Annotated[int, Ge(0)]] = 60
    """Optimiser steps; 0 keeps the generator as it is."""
    batch_pairs: Annotated[int, Ge(2)] = 32
    """Pairs in a step, over all workers. They are each other's negatives where the loss contrasts them."""
    accumulate: Count = 1
    """Batches whose gradients are averaged before each optimiser step."""
    parameters: Essential[Literal["difffit", "lora", "full"]] = "difffit"
    """Trained parameters: biases, norms and scale factors; low-rank adapters; or the whole UNet."""
    lora_rank: Count = 8
    """Rank of the adapters of "lora"."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser; EDGE's authors use SGD, VLCP's AdamW."""
    learning_rate: Essential[Positive] = 1e-3
    """Learning rate."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    max_grad_norm: Weight = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    ema_decay: Rate = 0.99
    """Decay of the averaged weights that synthesis uses; 0 switches averaging off."""
    compile: bool = False
    """Compiles U-Net and VAE (torch.compile): minutes of each worker, for faster steps on a GPU. Rounds otherwise, so
    this setting is part of the result."""
    cache_mib: Annotated[int, Ge(0)] = operational(1024)
    """Memory of each worker for latents and text states of pairs, which help from the second time on that all pairs of
    a batch come to the same worker. What does not fit is encoded anew every time: as a rule the text states, which are
    larger."""
    checkpoint_steps: Count = operational(50)
    """Steps between checkpoints, from which an interrupted run goes on."""

    @property
    def pairs_per_worker(self) -> int:
        """A worker's share of a batch; raises ``UserError`` when the batch cannot be shared evenly."""
        return share("finetune.batch_pairs", self.batch_pairs, "finetune.workers", self.workers)


@dataclass(frozen=True, kw_only=True)
class Synthesis(Pool):
    """Drawing images with the generator."""

    inference_steps: Essential[Count] = 20
    """DPM-Solver++ steps an image."""
    guidance: Essential[Weight] = 3.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    batch_images: Count = 50
    """Images drawn together. Batches are cut by sample index, so this setting is part of the result."""
    compile: bool = False
    """Compiles the generator for whole batches (torch.compile): minutes of each actor, which pay on a GPU from some
    1,600 images of 512 px an actor on. Rounds otherwise, so this setting is part of the result."""
