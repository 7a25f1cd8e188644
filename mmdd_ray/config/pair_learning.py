"""Settings of learning the pixels and texts of pairs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from mmdd_ray.config.fields import Count, Essential, Positive, Precision, Rate, Weight, operational, share
from mmdd_ray.config.pools import Training


@dataclass(frozen=True, kw_only=True)
class PairLearning(Training):
    """CovMatch's optimisation of pixels and token embeddings (arXiv 2510.18583), whatever the pairs begin as."""

    section: ClassVar[str]
    """Name of this section, for messages."""
    learn: Literal["both", "pixels", "texts"] = "both"
    """The modalities that are learnt; the rest stays as the pairs were in the beginning."""
    iterations: Essential[Annotated[int, Ge(0)]] = 200
    """Updates of the pairs; 0 keeps them as they begin."""
    real_batch: Annotated[int, Ge(2)] = 128
    """Real pairs of an iteration, over all workers: to match, and to update the encoders on."""
    synthetic_batch: Annotated[int, Ge(2)] = 256
    """Synthetic pairs of an iteration, over all workers; all of them where they are fewer."""
    micro_batch: Count = operational(128)
    """Pairs whose graph a worker holds at once. Lower it where a GPU runs out of memory: the gradient is the same."""
    rho: Positive = 1.0
    """Factor of the real cross-covariance; published: 2 at 100 pairs, 1 at 200 and 500."""
    mean_weight: Weight = 0.1
    """Lambda, weight of the means; 0 leaves them out. Published: 0.1, and 0.5 to 0.6 at 500 pairs."""
    means: Literal["embeddings", "features"] = "embeddings"
    """Whether means are compared after the heads, as published, or before."""
    relative: bool = False
    """Divides the covariance term by the squared norm of the real cross-covariance, so that lambda means the same
    whatever the scale of the features."""
    real_moments: Literal["batches", "whole"] = "batches"
    """Real moments under the initial encoders from the batch, or from one pass over the whole data; then the sampling
    error of the batches is recorded. Encoders that were updated are always matched on batches."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the pairs; published: SGD."""
    pixel_rate: Essential[Positive] = 1.0
    """Learning rate of the pixels, which are normalised."""
    token_rate: Essential[Positive] = 1.0
    """Learning rate of the token embeddings."""
    momentum: Rate = 0.5
    """Momentum of SGD."""
    keep_range: bool = True
    """Keeps pixels in the range of an image after every update; otherwise they are cut in the end."""
    image_model: Essential[str] = "tiny-nf"
    """Image encoder to match under; students may have another. Names as for students.image_model."""
    text_model: Essential[str] = "tiny-bert"
    """Text encoder to match under, whose token embeddings are learnt. Students with another text encoder are trained
    on the captions that the texts began as."""
    image_px: Count = 32
    """Side of the images."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Length of the texts; longer captions are cut to it, as for students."""
    embed_dim: Count = 256
    """Width of the heads; published: 2304."""
    frozen_text: bool = False
    """Leaves the text encoder as it was pretrained, as earlier work does."""
    encoder_updates: bool = True
    """One InfoNCE step of the encoders on the real batch in every iteration."""
    encoder_optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of those steps; SGD has momentum 0.9."""
    encoder_rate: Positive = 0.01
    """Learning rate of the encoders."""
    head_rate: Positive = 0.1
    """Learning rate of the heads."""
    temperature: Positive = 0.07
    """Temperature of InfoNCE."""
    restart_iterations: Count = 50
    """Iterations after which the encoders are pretrained ones again, with new heads."""
    precision: Precision = "auto"
    """Precision of matrix products and convolutions; "auto" is bfloat16 on GPUs and float32 on CPUs."""
    compile: bool = False
    """Compiles both encoders (torch.compile): minutes of each worker, for faster iterations on a GPU. Rounds otherwise,
    and after an interruption otherwise again, so this setting is part of the result."""
    cache_mib: Annotated[int, Ge(0)] = 256
    """Real images are held decoded in Ray's object store where they take no more than this, in MiB; otherwise they are
    streamed from storage and decoded again in every epoch."""
    checkpoint_iterations: Count = operational(50)
    """Iterations between checkpoints, from which an interrupted run goes on; small ones at multiples of
    restart_iterations, as the encoders need not be saved there."""

    @property
    def real_pairs_per_worker(self) -> int:
        """A worker's share of a real batch; raises ``UserError`` when it cannot be shared evenly."""
        return share(f"{self.section}.real_batch", self.real_batch, f"{self.section}.workers", self.workers)
