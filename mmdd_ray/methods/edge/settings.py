"""Everything that an EDGE run depends on."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from mmdd_ray.config import (
    Count,
    Data,
    Essential,
    Evaluation,
    Features,
    Finetune,
    PairLearning,
    Plan,
    Pool,
    Positive,
    Rehearse,
    Run,
    Students,
    Synthesis,
    Weight,
)


@dataclass(frozen=True, kw_only=True)
class EdgeFinetune(Finetune):
    """EDGE's fine-tuning of the generator (arXiv 2509.15472, section 3)."""

    space: Literal["clip", "latent"] = "clip"
    """Where the losses look: CLIP embeddings of the decoded image, or a projection of the latent."""
    contrastive_weight: Weight = 1.0
    """Lambda_C, weight of the bidirectional contrastive loss."""
    diversity_weight: Weight = 1.0
    """Lambda_D, weight of the diversity loss."""
    noise_weight: Weight = 0.0
    """Lambda_N, weight of the denoising loss of ordinary diffusion training (0 in the authors' release)."""
    temperature: Positive = 0.1
    """Temperature of the contrastive loss."""
    max_timestep_fraction: Annotated[float, Gt(0), Le(1)] = 0.5
    """Noise levels are drawn from the first part of the schedule only: at its end, recovering the clean
    latent divides by almost zero."""


@dataclass(frozen=True, kw_only=True)
class EdgeSynthesis(Synthesis):
    """Drawing images from captions."""

    pairs: Essential[Count] = 100
    """Image-caption pairs of the distilled set; an image with c captions counts as c pairs."""
    prompts: Literal["random", "k-means"] = "k-means"
    """Real captions to draw from: random ones, or one for each k-means cluster of CLIP's text features."""
    candidates_per_image: Essential[Count] = 1
    """Images drawn for each one kept, each from a caption of its own. Above 1, the subset is kept whose moments match
    the real data best."""
    clip_score_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of these images, those that agree best with their captions by CLIP, from which that subset is chosen; the
    others are failed drawings, and drawings of captions that say little. At 1 / candidates_per_image the score alone
    decides."""
    mean_weight: Weight = 1.0
    """Weight of the means against the cross-covariance in that selection."""


@dataclass(frozen=True, kw_only=True)
class Captions(Pool):
    """Further captions, written by a vision-language model that looks at the synthetic images."""

    model: Essential[str] = "tiny-captioner"
    """Captioner: a zoo name, a hub name or a folder of any transformers model that describes images."""
    per_image: Essential[Count] = 2
    """Captions of each image: the prompt it was drawn from and per_image - 1 written ones."""
    instructions: Annotated[tuple[str, ...], MinLen(1)] = ("Describe the image in one sentence.",)
    """Instructions for a chat model, one per further caption, in turn. Others ignore them."""
    max_new_tokens: Count = 48
    """Length limit of a written caption, in tokens."""
    batch_images: Count = 50
    """Images captioned together."""


@dataclass(frozen=True, kw_only=True)
class Refine(PairLearning):
    """CovMatch's optimisation of the pairs that EDGE has drawn and captioned, as a last step."""

    section: ClassVar[str] = "refine"
    iterations: Essential[Annotated[int, Ge(0)]] = 0
    """Updates of the pairs; 0 leaves EDGE's images and captions as they are."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """EDGE: pairs that a fine-tuned diffusion model draws from real captions."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    rehearse: Rehearse = field(default_factory=Rehearse)
    data: Data
    features: Features = field(default_factory=Features)
    finetune: EdgeFinetune = field(default_factory=EdgeFinetune)
    synthesis: EdgeSynthesis = field(default_factory=EdgeSynthesis)
    captions: Captions = field(default_factory=Captions)
    refine: Refine = field(default_factory=Refine)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation

    @property
    def matching(self) -> PairLearning:
        """How drawn pairs are refined."""
        return self.refine

    @property
    def images(self) -> int:
        """Images of the distilled set; each stands for ``captions.per_image`` pairs."""
        return self.synthesis.pairs // self.captions.per_image

    @property
    def candidates(self) -> int:
        """Images that are drawn, of which ``images`` are kept."""
        return self.images * self.synthesis.candidates_per_image
