"""Experts: students of all real pairs, whose parameters are kept after every epoch; no Ray."""

# B pairs of a step, P captions, T width of text vectors

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmdd_ray.config import StudentForm
from mmdd_ray.engine.devices import moved
from mmdd_ray.evaluation.batches import batches, draw_shifts, shifted
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.methods.trajectory.objective import Embedding, Parameters
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories
from mmdd_ray.models.pair_losses import info_nce
from mmdd_ray.models.students import ENCODE_ROWS, DualEncoder, load_student
from mmdd_ray.protocols import PUBLISHED_FOR_PAIRS

MEANS = ("student.image_mean", "student.text_mean")  # of the features of the pairs, which are no parameters


def form_of(match: Trajectories) -> StudentForm:
    """How experts, and the students that follow them, are built from their encoders."""
    published = PUBLISHED_FOR_PAIRS.get(match.protocol)
    return published.form if published else StudentForm()


def train_expert(
    pairs: PairSet,
    vector_PT: np.ndarray,
    experts: Experts,
    encoders: Trajectories,
    *,
    seed: int,
    device: str,
) -> Iterator[dict[str, np.ndarray]]:
    """The parameters of an expert before its first epoch and after each, with the means that it centres features by.

    Args:
        vector_PT: Features of all captions from the frozen text encoder.
        seed: Decides its heads, the order of the pairs and the augmentation.
    """
    student = load_student(encoders, seed, device, form_of(encoders)).eval()  # as the students that follow it
    embedding, rng = Embedding(student), np.random.default_rng(seed)
    vectors = torch.tensor(vector_PT, device=device)
    if student.form.centred:
        _centre(student, pairs, vectors, rng, device)
    trained = embedding.trained()
    optimizer = torch.optim.SGD(trained.values(), experts.learning_rate, experts.momentum)
    steps = pairs.n_images // min(experts.batch_pairs, pairs.n_images)
    yield _kept(embedding, trained)
    for _ in range(experts.epochs):
        for image_B, caption_B in batches(pairs, experts.batch_pairs, steps, rng):
            shift_2B = draw_shifts(len(image_B), pairs.image_px, rng)
            image_BHWC = shifted(moved(torch.from_numpy(pairs.images[image_B]), device), shift_2B)
            rows_B = torch.from_numpy(caption_B).to(device)
            image_BD, text_BD = embedding(student.image.normalise(image_BHWC), vectors[rows_B])
            optimizer.zero_grad()
            info_nce(image_BD, text_BD, encoders.temperature).backward()
            optimizer.step()
        yield _kept(embedding, trained)


@torch.no_grad()
def _centre(
    student: DualEncoder, pairs: PairSet, vectors: Tensor, rng: np.random.Generator, device: str
) -> None:
    ((image_B, caption_B),) = batches(pairs, ENCODE_ROWS, 1, rng)
    features = student.image(torch.from_numpy(pairs.images[image_B]).to(device))
    student.centre(features, vectors[torch.from_numpy(caption_B).to(device)])


def _kept(embedding: Embedding, trained: Parameters) -> dict[str, np.ndarray]:
    means = dict(embedding.named_buffers())
    wanted = {**trained, **{name: means[name] for name in MEANS}}
    return {name: value.detach().cpu().numpy().copy() for name, value in wanted.items()}
