"""Everything that a run of trajectory matching depends on."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from mmdd_ray.config import (
    Count,
    Data,
    Essential,
    Evaluation,
    Features,
    Plan,
    Positive,
    Rate,
    Rehearse,
    Run,
    Students,
    Training,
    Weight,
    operational,
)


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Students of all real pairs, whose parameters are kept after every epoch."""

    count: Essential[Count] = 20
    """Experts, each with heads and batches of its own."""
    epochs: Essential[Count] = 3
    """Passes of each over all pairs, at least match.max_start_epoch + match.expert_epochs; later ones (published: 10 in
    all) would not be looked at."""
    learning_rate: Positive = 0.1
    """Learning rate of SGD."""
    momentum: Rate = 0.0
    """Momentum of SGD."""
    batch_pairs: Annotated[int, Ge(2)] = 128
    """Pairs in a step."""
    max_real_mib: Count = 4096
    """Experts hold all real images decoded, each once, in Ray's object store; a run with more of them is refused."""
    gpus_per_expert: Weight = operational(1.0)
    """Share of a GPU for each expert; ignored on clusters without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Trajectories(Training):
    """Learning pairs on which a student moves as the experts did (MTT-VL, arXiv 2308.07545)."""

    section: ClassVar[str] = "match"
    """Name of this section, for messages."""
    pairs: Essential[Annotated[int, Ge(2)]] = 100
    """Image-caption pairs of the distilled set."""
    init: Essential[Literal["random", "herding", "k-center", "clip-score"]] = "random"
    """Real pairs to start from."""
    iterations: Essential[Count] = 3000
    """Updates of the pairs."""
    student_steps: Count = 8
    """N, steps of a student on synthetic pairs in each iteration."""
    expert_epochs: Count = 1
    """M, epochs of an expert that they are to replace."""
    max_start_epoch: Annotated[int, Ge(0)] = 2
    """T, last epoch of an expert from which a student starts."""
    batch_pairs: Annotated[int, Ge(2)] = 20
    """Synthetic pairs in a step of a student. Memory grows with student_steps times this."""
    student_rate: Positive = 0.1
    """Alpha, rate of a student's steps, as it begins; it is learnt."""
    pixel_rate: Positive = 100.0
    """Learning rate of the pixels, which are normalised."""
    text_rate: Positive = 100.0
    """Learning rate of the text vectors."""
    student_rate_rate: Weight = 1e-2
    """Learning rate of alpha, the rate of a student's steps."""
    protocol: Essential[Literal["equal-budget", "lors-frozen-text"]] = "equal-budget"
    """Protocol whose students the pairs are learnt for, and the experts are: how they read captions, their heads, and
    the statistics of pixels. Students of others get the captions that the texts began as."""
    similarity: Essential[Literal["identity", "low-rank"]] = "identity"
    """Whether a pair is similar to itself alone (MTT-VL), or learnt how similar pairs are (LoRS, arXiv 2406.01112)."""
    rank: Count = 10
    """Rank of the learnt similarity; published: 10, 5 and 20 at 100, 200 and 500 pairs."""
    similarity_weight: Positive = 3.0
    """a, weight of the low-rank part; published: 3, 1 and 0.01 at 100, 200 and 500 pairs."""
    similarity_rate: Positive = 10.0
    """Learning rate of the similarity."""
    momentum: Rate = 0.5
    """Momentum of SGD."""
    image_model: Essential[str] = "tiny-nf"
    """Image encoder of experts and of the students that follow them."""
    text_model: Essential[str] = "tiny-bert"
    """Text encoder, which stands still. Students with another one are trained on the captions that the texts began
    as."""
    image_px: Count = 32
    """Side of the images."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Captions are cut to this many tokens."""
    embed_dim: Count = 256
    """Width of the heads."""
    temperature: Positive = 0.07
    """Temperature of the loss."""
    checkpoint_iterations: Count = operational(50)
    """Iterations between checkpoints, from which an interrupted run goes on."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Trajectory matching: learnt pairs on which a student moves as experts did."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    experts: Experts = field(default_factory=Experts)
    match: Trajectories = field(default_factory=Trajectories)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation
