"""Trajectory matching: pairs on which a student moves as experts moved on the real data; no Ray.

MTT-VL (Wu et al., "Vision-Language Dataset Distillation", arXiv 2308.07545), and LoRS (Xu et al., ICML 2024, arXiv
2406.01112), which learns how similar pairs are along with them. The text encoder stands still, so a text is the vector
that it gives.
"""

# N synthetic pairs, B of a step, HW image size, T width of text features, D of the shared space, R rank

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmdd_ray.models.pair_losses import pair_loss
from mmdd_ray.models.students import DualEncoder

Parameters = dict[str, Tensor]
Similarity = Literal["identity", "low-rank"]
TEXT_SIDE = "student.text_head."  # all other parameters are of the image side


class SyntheticPairs(nn.Module):
    """Learnt parameters: pixels, text vectors, the rate of a student's steps and, if wanted, how similar pairs are."""

    def __init__(
        self,
        pixels_NCHW: Tensor,
        vector_NT: Tensor,
        *,
        rate: float,
        similarity: Similarity,
        rank: int,
        scale: float,
        generator: torch.Generator,
    ) -> None:
        """Begins as these pairs, each similar to itself alone.

        Args:
            rate: Of the steps.
            rank: R, of the similarity.
            scale: a, its weight.
            generator: Draws one of the two factors of the similarity.
        """
        super().__init__()
        n_pairs = len(pixels_NCHW)
        self.pixels = nn.Parameter(pixels_NCHW.clone())
        self.vectors = nn.Parameter(vector_NT.clone())
        self.rate = nn.Parameter(torch.tensor(rate))
        self.scale = scale / rank
        if similarity == "low-rank":
            left_NR = torch.randn(n_pairs, rank, generator=generator)
            self.own_N = nn.Parameter(torch.ones(n_pairs))
            self.left_NR = nn.Parameter(left_NR)
            self.right_NR = nn.Parameter(torch.zeros(n_pairs, rank))
        self.similarity_kind = similarity

    def similarity(self) -> Tensor | None:
        """s_ij = ω_i δ_ij + (a/r) (L Rᵀ)_ij, (N, N) (LoRS); None where pairs are similar to themselves alone."""
        if self.similarity_kind == "identity":
            return None
        return torch.diag(self.own_N) + self.scale * self.left_NR @ self.right_NR.T


class Embedding(nn.Module):
    """A student as a function of normalised pixels (B, 3, H, W) and text vectors (B, T)."""

    def __init__(self, student: DualEncoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, pixels_BCHW: Tensor, vector_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm embeddings of images and texts, (B, D) each."""
        image_BD = self.student.embed_image(self.student.image.encode(pixels_BCHW))
        return image_BD, self.student.embed_text(vector_BT)

    def trained(self) -> Parameters:
        """Parameters that a student with a frozen text encoder trains, by name: image encoder and both heads."""
        text_encoder = "student.text."
        return {name: value for name, value in self.named_parameters() if not name.startswith(text_encoder)}


def train_on(
    embedding: Embedding,
    parameters: Parameters,
    pairs: SyntheticPairs,
    batches: Sequence[Tensor],
    temperature: float,
) -> Parameters:
    """A student's parameters after a step of gradient descent on each batch of pairs.

    They keep their graph, so that a gradient goes through all steps to what is learnt of the pairs.

    Args:
        parameters: Where it starts.
        batches: Rows (B,) of each step.
    """
    similarity_NN = pairs.similarity()
    for row_B in batches:
        image_BD, text_BD = functional_call(
            embedding, parameters, (pairs.pixels[row_B], pairs.vectors[row_B])
        )
        similarity_BB = None if similarity_NN is None else similarity_NN[row_B][:, row_B]
        gradients = torch.autograd.grad(
            pair_loss(image_BD, text_BD, similarity_BB, temperature),
            list(parameters.values()),
            create_graph=True,
        )
        parameters = {
            name: value - pairs.rate * gradient
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
        }
    return parameters


def trajectory_loss(reached: Parameters, start: Parameters, target: Parameters) -> Tensor:
    """‖θ̂_N − θ*_{t+M}‖² / ‖θ*_t − θ*_{t+M}‖², of the image side plus that of the text side (MTT-VL)."""
    text_side = [name for name in start if name.startswith(TEXT_SIDE)]
    sides = ([name for name in start if name not in text_side], text_side)
    return torch.stack(
        [_square(reached, target, names) / _square(start, target, names) for names in sides]
    ).sum()


def _square(one: Parameters, other: Parameters, names: Sequence[str]) -> Tensor:
    return torch.stack([(one[name] - other[name]).square().sum() for name in names]).sum()
