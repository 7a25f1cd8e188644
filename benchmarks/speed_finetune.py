"""A step of EDGE's fine-tuning: with encodings that are kept, beside encoding in every step.

    python benchmarks/speed_finetune.py
    python benchmarks/speed_finetune.py --size gpu               # Stable Diffusion 1.5 at 256 px, random weights
    python benchmarks/speed_finetune.py --size gpu --compile     # ours; the straightforward step is as it is

Arms, all on pairs that come again and again (a run that sees each of its pairs once, as the local preset does, gains
nothing):

- kept: ``Training`` as a run has it, latents and text states looked up.
- anew: the same, with finetune.cache_mib=0. With --compile the only one of these two that is timed.
- straightforward: the step as the paper writes it, on diffusers and open_clip alone: float32, images encoded, noise
  added by the pipeline's scheduler, the estimate of the clean latents decoded and embedded, all in plain modules. On a
  GPU the batch is taken in parts of 16 pairs, each contrasted with itself alone, which is less work;
  and it is compared with anew, since a run on a GPU passes over its pairs about once.

Losses of kept and anew are compared, step for step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from diffusers import StableDiffusionPipeline
from published_models import stable_diffusion, vit_b32
from speed import Ratio, Speed, faster, in_turns, record

from mmdd_ray.data import shapes
from mmdd_ray.diffusion.training import Training
from mmdd_ray.methods.edge.objective import EdgeObjective
from mmdd_ray.methods.edge.presets import local
from mmdd_ray.methods.edge.settings import EdgeFinetune
from mmdd_ray.models import zoo
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.generator import load_generator

STEPS = 10**6  # of a training that never ends
STRAIGHT_PAIRS = 16  # at once in a plain step on a GPU: float32 graphs of 128 would not fit
BATCHES = 2  # that come again and again


@dataclass(kw_only=True)
class FinetuneSpeed(Speed):
    """Times a step of fine-tuning."""

    compile: bool = False
    """Compiles ours."""


def settings_of(asked: FinetuneSpeed) -> EdgeFinetune:
    settings = replace(local().finetune, steps=STEPS, compile=asked.compile)
    if asked.size == "gpu":
        return replace(
            settings, generator=stable_diffusion(), image_px=256, batch_pairs=128, parameters="difffit"
        )
    return replace(settings, batch_pairs=4) if asked.size == "tiny" else settings


def steps_of(settings: EdgeFinetune, clip: str, device: str) -> Iterator[dict[str, float]]:
    torch.manual_seed(0)
    generator = load_generator(settings.generator, device)
    generator.prepare_training(settings.parameters, rank=settings.lora_rank, compiled=settings.compile)
    training = Training(EdgeObjective(settings, clip).build(generator), settings, seed=0)
    batches = some_batches(settings)
    return training.run(lambda epoch: iter(batches))


def some_batches(settings: EdgeFinetune) -> list[tuple[np.ndarray, list[str]]]:
    scenes = [shapes.scene(index, seed=5) for index in range(BATCHES * settings.batch_pairs)]
    images = np.stack([np.asarray(scene.render(settings.image_px)) for scene in scenes])
    captions = [scene.captions()[0] for scene in scenes]
    starts = range(0, len(scenes), settings.batch_pairs)
    return [(images[i : i + settings.batch_pairs], captions[i : i + settings.batch_pairs]) for i in starts]


def straightforward(settings: EdgeFinetune, clip_name: str, device: str) -> Callable[[], None]:
    """A step without anything of ours but CLIP's preprocessing and the choice of trained weights."""
    folder = (
        settings.generator if settings.generator.startswith("/") else str(zoo.FOLDER / settings.generator)
    )
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None).to(
        device
    )
    vae, unet, text_encoder = pipeline.vae.requires_grad_(False), pipeline.unet, pipeline.text_encoder
    text_encoder.requires_grad_(False)
    unet.train().requires_grad_(settings.parameters == "full")
    if settings.parameters == "difffit":
        for name, weight in unet.named_parameters():
            weight.requires_grad_("bias" in name or "norm" in name)
    clip = load_clip(clip_name, device)
    optimizer = torch.optim.AdamW([w for w in unet.parameters() if w.requires_grad], settings.learning_rate)
    alpha_bar_T = pipeline.scheduler.alphas_cumprod.to(device)
    batches = some_batches(settings)
    count = 0

    def loss_of(images: np.ndarray, captions: list[str]) -> torch.Tensor:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = pipeline.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            clean = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
            states = text_encoder(tokens.to(device)).last_hidden_state
            text = clip.encode_texts(captions)
        noise = torch.randn_like(clean)
        bound = int(settings.max_timestep_fraction * len(alpha_bar_T))
        level = torch.randint(bound, (len(images),), device=device)
        noisy = pipeline.scheduler.add_noise(clean, noise, level)
        predicted = unet(noisy, level, states).sample
        alpha_bar = alpha_bar_T[level].view(-1, 1, 1, 1)
        implied = (noisy - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
        drawn = (vae.decode(implied / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        image = clip.embed_pixels(drawn)
        logits = image @ text.T / settings.temperature
        own = torch.arange(len(images), device=device)
        contrastive = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        joint = torch.cat([image, text], dim=1) / 2**0.5
        cosine = joint @ joint.T
        diversity = (cosine.sum() - cosine.trace()) / (len(images) * (len(images) - 1))
        return (
            settings.contrastive_weight * contrastive
            + settings.diversity_weight * diversity
            + settings.noise_weight * F.mse_loss(predicted, noise)
        )

    def step() -> None:
        nonlocal count
        images, captions = batches[count % len(batches)]
        count += 1
        optimizer.zero_grad()
        size = STRAIGHT_PAIRS if device == "cuda" else len(images)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            loss = loss_of(images[part], captions[part]) * size / len(images)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), settings.max_grad_norm)
        optimizer.step()
        loss.item()  # waits for a GPU, as the other arms do

    return step


def main() -> None:
    asked = tyro.cli(FinetuneSpeed)
    settings, on_gpu = settings_of(asked), asked.size == "gpu"
    device, clip = ("cuda", vit_b32()) if on_gpu else ("cpu", "tiny-clip")
    losses: dict[str, list[float]] = {"anew": [], "kept": []}

    def arm(name: str, cache_mib: int) -> Callable[[], None]:
        steps = steps_of(replace(settings, cache_mib=cache_mib), clip, device)
        return lambda: losses[name].append(next(steps)["total"])

    arms = {"anew": arm("anew", 0)}
    arms["anew"](), arms["anew"]()
    held = torch.cuda.max_memory_reserved() if on_gpu else 0  # by one arm alone
    if not asked.compile:
        arms["kept"] = arm("kept", 4096)
        arms["kept"](), arms["kept"]()  # as many as there are batches: every pair is new once
    arms["straightforward"] = straightforward(settings, clip, device)
    seconds = in_turns(arms, asked.repetitions if on_gpu else 4 * asked.repetitions)
    title = f"fine-tune step{', compiled' * asked.compile}"
    ratios: list[Ratio] = []
    facts: dict[str, Any] = {"settings": str(settings)}
    if "kept" in arms:
        gaps = [abs(a - b) for a, b in zip(losses["kept"], losses["anew"], strict=True)]
        facts["largest_gap"] = max(gaps)
        if not on_gpu:
            assert max(gaps) < 1e-6, gaps
        ratios.append(
            faster(f"{title}: kept encodings over encoding every step", seconds, "kept", "anew", 1.2)
        )
    ours = "anew" if on_gpu or asked.compile else "kept"
    plain = f"{title}: over the straightforward step"
    ratios.append(faster(plain, seconds, ours, "straightforward", 3 if on_gpu else None))
    if on_gpu:
        ratios.append(Ratio(f"{title}: 40 GB over what it holds", (40e9 / held,), 1.0))
    record(f"finetune{'-compiled' * asked.compile}", asked, ratios, **facts, seconds=seconds)


if __name__ == "__main__":
    main()
