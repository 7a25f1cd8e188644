"""Results of a GPU against those of the CPU: features, drawing, captions, and a step of each training; without Ray.

pytest -m gpu
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tiny_llava import write_llava
from torch.nn.parallel import DistributedDataParallel

from mmdd_ray.config import Classifiers, Finetune, Students
from mmdd_ray.data import shapes
from mmdd_ray.diffusion.objective import NoiseObjective
from mmdd_ray.diffusion.training import Training
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.tasks.classifiers import train_classifier
from mmdd_ray.evaluation.tasks.students import evaluate_student, train_student
from mmdd_ray.matching.initial_pairs import start_from
from mmdd_ray.matching.real_batches import cached_batches
from mmdd_ray.matching.training import PairOptimizer
from mmdd_ray.methods.covmatch.settings import Match
from mmdd_ray.methods.edge.objective import EdgeObjective
from mmdd_ray.methods.edge.settings import EdgeFinetune
from mmdd_ray.methods.preset_parts import NFNET_AND_BERT, STABLE_DIFFUSION
from mmdd_ray.methods.trajectory.experts import train_expert
from mmdd_ray.methods.trajectory.settings import Experts, Trajectories
from mmdd_ray.methods.trajectory.training import TrajectoryMatcher
from mmdd_ray.models.captioners.captioner import load_captioner
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.generator import load_generator
from mmdd_ray.models.published import build
from mmdd_ray.models.students import load_student
from mmdd_ray.planning.memory import CONTEXT_BYTES, finetune_bytes, student_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DRAW: dict[str, Any] = {"image_px": 32, "inference_steps": 20, "guidance": 4.0}
CPU, GPU = "cpu", "cuda"


def scenes(count: int) -> tuple[np.ndarray, list[str]]:
    drawn = [shapes.scene(index, seed=5) for index in range(count)]
    return np.stack([np.asarray(one.render(32)) for one in drawn]), [one.captions()[0] for one in drawn]


def pair_set(count: int) -> PairSet:
    images, captions = scenes(count)
    return PairSet(images, [[caption] for caption in captions])


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one.float().cpu(), other.float().cpu(), dim=-1)


def test_features_of_clip_in_float16() -> None:
    images, captions = scenes(32)
    cpu, gpu = load_clip("tiny-clip", CPU), load_clip("tiny-clip", GPU)
    assert cosine(cpu.encode_images(images), gpu.encode_images(images)).min() > 0.9999
    assert cosine(cpu.encode_texts(captions), gpu.encode_texts(captions)).min() > 0.9999


@pytest.mark.parametrize("from_latents", [False, True])
def test_drawing_in_float16(from_latents: bool) -> None:
    images, captions = scenes(8)
    cpu, gpu = load_generator("tiny-sd", CPU), load_generator("tiny-sd", GPU, half_precision=True)
    seeds = list(range(8))
    if from_latents:
        latents = cpu.encode(images)
        settings = {**DRAW, "strength": 0.7, "negative_prompt": ""}
        one, other = (
            each.sample_from(latents.to(each.device), captions, seeds, **settings) for each in (cpu, gpu)
        )
    else:
        one, other = (each.sample(captions, seeds, **DRAW) for each in (cpu, gpu))
    assert not other.redrawn_B.any()
    assert np.abs(one.images_BHW3.astype(int) - other.images_BHW3).mean() < 6  # levels of 255


def test_latents_of_images() -> None:
    images, _ = scenes(8)
    one, other = (
        load_generator("tiny-sd", device).encode(images, one_by_one=True).cpu() for device in (CPU, GPU)
    )
    torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def losses_of(device: str, settings: Finetune, *, ddp: bool = False) -> list[float]:
    """Losses of some steps: bfloat16 and checkpointed on a GPU, float32 on the CPU."""
    torch.manual_seed(0)
    generator = load_generator(settings.generator, device)
    generator.prepare_training(settings.parameters, rank=settings.lora_rank, compiled=settings.compile)
    objective: Any = (
        EdgeObjective(settings, "tiny-clip")
        if isinstance(settings, EdgeFinetune)
        else NoiseObjective(settings)
    )
    loss = objective.build(generator)
    training = Training(DistributedDataParallel(loss) if ddp else loss, settings, seed=0)
    return [record["total"] for record in training.run(lambda epoch: iter([scenes(16)]))]


@pytest.mark.parametrize("kind", ["difffit", "lora", "full"])
@pytest.mark.parametrize("losses", ["clip", "latent", "noise"])
def test_fine_tuning(kind: Any, losses: Any) -> None:
    shared: dict[str, Any] = {"steps": 3, "batch_pairs": 16, "parameters": kind, "ema_decay": 0.9}
    settings = (
        Finetune(**shared) if losses == "noise" else EdgeFinetune(**shared, space=losses, noise_weight=1.0)
    )
    np.testing.assert_allclose(losses_of(GPU, settings), losses_of(CPU, settings), rtol=0.05)


def test_compiled_fine_tuning() -> None:
    settings = EdgeFinetune(steps=3, batch_pairs=16)
    np.testing.assert_allclose(
        losses_of(GPU, replace(settings, compile=True)), losses_of(GPU, settings), rtol=0.02
    )


def test_fine_tuning_with_nccl() -> None:
    settings = EdgeFinetune(steps=3, batch_pairs=16)
    alone = losses_of(GPU, settings)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    dist.init_process_group("nccl", rank=0, world_size=1)
    try:
        np.testing.assert_allclose(losses_of(GPU, settings, ddp=True), alone, rtol=0.02)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("encoder_updates", [False, True])
def test_learning_pairs(encoder_updates: bool) -> None:
    settings = Match(
        pairs=8,
        iterations=4,
        real_batch=16,
        optimizer="adam",
        pixel_rate=0.01,
        token_rate=0.01,
        encoder_rate=1e-3,
        head_rate=1e-2,
        embed_dim=64,
        relative=True,
        encoder_updates=encoder_updates,
    )

    def losses(device: str) -> list[float]:
        encoders = load_student(settings, 0, device)
        images, captions = scenes(8)
        learnt = PairOptimizer(encoders, start_from(encoders, images, captions, settings), settings, seed=3)
        return [record["total"] for record in learnt.run(lambda epoch: iter([scenes(16)]))]

    np.testing.assert_allclose(losses(GPU), losses(CPU), rtol=0.05)


def test_real_batches_are_augmented_on_the_gpu_as_on_the_cpu() -> None:
    one, other = (list(cached_batches(pair_set(64), 16, 1, 0, 1, device)) for device in (CPU, GPU))
    for (ours, captions), (theirs, others) in zip(one, other, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs).cpu(), atol=0, rtol=0)
        assert captions == others


def test_experts_and_a_student_that_follows_them() -> None:
    match = Trajectories(
        iterations=3, pairs=8, batch_pairs=4, student_steps=2, max_start_epoch=0, pixel_rate=1.0, text_rate=0.1,
        student_rate=0.01, student_rate_rate=1e-5,
    )  # fmt: skip
    settings, real = Experts(count=1, epochs=1, batch_pairs=16), pair_set(64)

    def losses(device: str) -> list[float]:
        student = load_student(match, 0, device).eval()
        vectors = student.text.encode_captions(real.flat_captions)
        kept = list(train_expert(real, vectors.cpu().numpy(), settings, match, seed=1, device=device))
        pixels = student.image.normalise(torch.tensor(real.images[:8], device=device)).float()
        matcher = TrajectoryMatcher(
            student, pixels, vectors[:8], match, settings, lambda number, epoch: kept[epoch], seed=7
        )
        return [record["total"] for record in matcher.run()]

    np.testing.assert_allclose(losses(GPU), losses(CPU), rtol=0.1)


def test_students_and_classifiers() -> None:
    pairs, students = pair_set(256), Students(steps=40)
    found = {}
    for device in (CPU, GPU):
        student, losses, *_ = train_student(pairs, students, learning_rate=0.1, seed=1, device=device)
        found[device] = losses[-10:].mean(), evaluate_student(student, pairs)["mean_recall"]
    assert found[GPU][0] == pytest.approx(found[CPU][0], rel=0.15)
    assert found[GPU][1] == pytest.approx(found[CPU][1], rel=0.3)

    drawn = [shapes.scene(index, seed=5) for index in range(64)]
    labels = np.array([index % 4 for index in range(64)])
    labelled = LabelledSet(np.stack([np.asarray(one.render(32)) for one in drawn]), labels, (0, 1, 2, 3))
    ends = [
        train_classifier(
            labelled, Classifiers(width=32, steps=20), learning_rate=0.01, seed=0, device=device
        )[1][-5:]
        for device in (CPU, GPU)
    ]
    assert ends[1].mean() == pytest.approx(ends[0].mean(), rel=0.15)


@pytest.mark.parametrize("kind", ["tiny-captioner", "llava"])
def test_captions_in_bfloat16(kind: str, tmp_path: Path) -> None:
    name = kind
    if kind == "llava":
        write_llava(tmp_path)
        name = str(tmp_path)
    pictures = [Image.fromarray(image) for image in scenes(8)[0]]
    one, other = (
        load_captioner(name, torch.device(device)).describe(pictures, ["what is this"] * 8, max_new_tokens=12)
        for device in (CPU, GPU)
    )
    assert sum(a == b for a, b in zip(one, other, strict=True)) >= 5  # likeliest words are near in places
    assert all(other)


def peak_of(step: Any) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_reserved()


@pytest.mark.parametrize("trained", ["frozen-text", "both-encoders"])
def test_memory_of_a_published_student_is_as_counted(trained: Any, tmp_path: Path) -> None:
    """Within a fifth: kernels choose their workspaces."""
    counted = student_bytes(replace(NFNET_AND_BERT, trained=trained))
    assert counted is not None
    students = replace(
        NFNET_AND_BERT,
        trained=trained,
        steps=3,
        image_model=build("image encoder", NFNET_AND_BERT.image_model, tmp_path),
        text_model=build("text encoder", NFNET_AND_BERT.text_model, tmp_path),
    )
    rng = np.random.default_rng(0)
    pairs = PairSet(rng.integers(0, 256, (128, 224, 224, 3), np.uint8), [["a word " * 60]] * 128)
    held = peak_of(lambda: train_student(pairs, students, learning_rate=0.1, seed=1, device=GPU))
    assert held == pytest.approx(counted - CONTEXT_BYTES, rel=0.2)


def test_memory_of_a_published_generator_is_as_counted(tmp_path: Path) -> None:
    settings = EdgeFinetune(generator=STABLE_DIFFUSION, image_px=256, batch_pairs=16, steps=2)
    clip = "ViT-B-32/laion2b_s34b_b79k"
    counted = finetune_bytes(settings, clip)
    assert counted is not None
    with torch.device(GPU):  # draws a gigabyte of weights at once
        folder = build("generator", STABLE_DIFFUSION, tmp_path)
    generator = load_generator(folder, GPU)

    def step() -> None:
        generator.prepare_training(settings.parameters, rank=8)
        loss = EdgeObjective(settings, build("CLIP model", clip, tmp_path)).build(generator)
        images, captions = scenes(16)
        large = np.repeat(np.repeat(images, 8, axis=1), 8, axis=2)
        list(Training(loss, settings, seed=0).run(lambda epoch: iter([(large, captions)])))

    assert peak_of(step) == pytest.approx(counted - CONTEXT_BYTES, rel=0.25)
