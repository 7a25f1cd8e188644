"""Losses of EDGE's diffusion fine-tuning (Zhao et al., NeurIPS 2025, arXiv 2509.15472).

``L = λ_C L_C + λ_D L_D + λ_N ‖ε̂ − ε‖²``: a bidirectional contrastive loss, a diversity loss, and the usual
denoising loss. L_C and L_D compare a pair with all others of the *global* batch.

Data-parallel convention: every rank gathers the embeddings of all ranks and computes the full global loss.
The gradient of ``gather_with_grad`` is the sum over ranks (the true adjoint of a gather), that is, world size
times the gradient of one global loss; DDP's averaging divides by the world size again. Nothing is to be
rescaled: k workers with equal local batches give the one-worker loss and gradient.
"""

# B pairs of a rank, G pairs of the global batch, V and L embedding widths, CHW latent or image

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmdd_ray.errors import UserError


def edge_objective(
    image_BV: Tensor,
    text_BL: Tensor,
    prediction_BCHW: Tensor,
    target_BCHW: Tensor,
    *,
    contrastive_weight: float,
    diversity_weight: float,
    noise_weight: float,
    temperature: float = 0.1,
) -> dict[str, Tensor]:
    """EDGE's weighted objective from this rank's embeddings and denoiser output, as scalar terms.

    Args:
        image_BV: embeddings of the denoised latents.
        text_BL: embeddings of the captions, V wide.
        prediction_BCHW: what the U-Net predicted.
        target_BCHW: what it should have: the noise, or the velocity for v-prediction.
        contrastive_weight: λ_C.
        diversity_weight: λ_D.
        noise_weight: λ_N.
        temperature: τ of the contrastive loss.

    Returns:
        ``contrastive``, ``diversity``, ``noise`` (unweighted) and ``total``, the one to differentiate. The
        first two are of the global batch and equal on all ranks; ``noise`` is this rank's, so ``noise`` and
        ``total`` are to be averaged over the ranks for a report. Gradients need no such care.
    """
    image_GV, text_GL = gather_with_grad(image_BV), gather_with_grad(text_BL)
    contrastive = contrastive_loss(image_GV, text_GL, temperature=temperature)
    diversity = diversity_loss(image_GV, text_GL)
    noise = F.mse_loss(prediction_BCHW.float(), target_BCHW.float())
    total = contrastive_weight * contrastive + diversity_weight * diversity + noise_weight * noise
    return {"contrastive": contrastive, "diversity": diversity, "noise": noise, "total": total}


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, *, temperature: float = 0.1) -> Tensor:
    """L_C = ½[CE(v yᵀ/τ) + CE(y vᵀ/τ)] with unit-norm rows: pair i against all other pairs, both directions.

    Embeddings (B, D) of any norm and float dtype; the scalar loss is computed in float32 at least, also under
    autocast.

    Raises:
        ValueError: if there are fewer than two pairs, so that there are no negatives.
    """
    _check_pairs(image_BD, text_BD)
    with torch.autocast(image_BD.device.type, enabled=False):  # bf16 logits near 1/τ = 10 are 0.06 apart
        logits_BB = _unit_rows(image_BD) @ _unit_rows(text_BD).T / temperature
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


def diversity_loss(image_BV: Tensor, text_BL: Tensor) -> Tensor:
    """L_D: the mean cosine similarity between [v_i; y_i] and [v_j; y_j] over all i ≠ j, in [−1, 1].

    v_i and y_i are brought to unit norm *before* they are joined, so that the cosine is
    ½(cos(v_i, v_j) + cos(y_i, y_j)): image and text weigh the same whatever their norms and widths.

    Raises:
        ValueError: if there are fewer than two pairs, so that there are no different samples.
    """
    _check_pairs(image_BV, text_BL)
    n_pairs = len(image_BV)
    joint_BD = torch.cat([_unit_rows(image_BV), _unit_rows(text_BL)], dim=1) / 2**0.5
    # Σ_{i≠j} u_i·u_j = ‖Σ u_i‖² − Σ ‖u_i‖², without the B x B matrix
    off_diagonal = joint_BD.sum(dim=0).square().sum() - joint_BD.square().sum()
    return off_diagonal / (n_pairs * (n_pairs - 1))


def sample_timesteps(
    batch: int, num_train_timesteps: int, max_timestep_fraction: float, generator: torch.Generator
) -> Tensor:
    """Uniform diffusion steps in [0, max_timestep_fraction · num_train_timesteps), (batch,) int64.

    The bound keeps the contrastive loss away from latents that are mostly amplified error, which those of the last
    steps are; the generator's clean estimate says by how much.

    Raises:
        ValueError: if the fraction is not in (0, 1].
    """
    if not 0 < max_timestep_fraction <= 1:
        raise UserError(f"finetune.max_timestep_fraction={max_timestep_fraction} must be above 0, at most 1")
    bound = max(1, round(max_timestep_fraction * num_train_timesteps))
    return torch.randint(bound, (batch,), generator=generator, device=generator.device)


def gather_with_grad(local_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (world size · B, D); the identity without a process group.

    All ranks must hold equal B (drop the last incomplete batch). See the module's data-parallel convention.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local_BD
    return _Gather.apply(local_BD)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(local_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> Tensor:
        summed_GD = grad_GD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_GD)
        return summed_GD.chunk(dist.get_world_size())[dist.get_rank()]


def _unit_rows(rows_BD: Tensor) -> Tensor:
    return F.normalize(rows_BD.to(torch.promote_types(rows_BD.dtype, torch.float32)), dim=1)


def _check_pairs(image_BV: Tensor, text_BL: Tensor) -> None:
    if len(image_BV) != len(text_BL):
        raise ValueError(f"{len(image_BV)} image embeddings do not pair with {len(text_BL)} text embeddings")
    if len(image_BV) < 2:
        raise UserError(
            f"a global batch of {len(image_BV)} has no negatives; set finetune.batch_pairs to 2 or more"
        )
