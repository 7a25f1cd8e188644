"""Synthesis: images a second beside one prompt at a time.

    python benchmarks/speed_synthesis.py
    python benchmarks/speed_synthesis.py --size gpu     # Stable Diffusion 1.5 at 512 px with random weights

Arms:

- ours: what an actor of the synthesis stage does with its batches: drawing, CLIP features of each image and its
  prompt (not on a GPU), PNG, a Parquet file.
- release: one prompt at a time with the pipeline's own scheduler and 50 steps, as EDGE's release draws; images alone.
- one by one: ``draw_images`` of one prompt at a time, with our scheduler and steps; images alone.
- bare: ``draw_images`` of the same batches in a loop, beside which ours shows what features, PNG and files cost.
- limit (on a GPU): the U-Net's floating-point operations at the speed of the largest bfloat16 matrix product.

One prompt at a time is slow, so these arms draw fewer images; ratios are of images a second.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
import tyro
from diffusers import StableDiffusionPipeline
from published_models import stable_diffusion
from speed import Ratio, Speed, faster, in_turns, record
from torch.utils.flop_counter import FlopCounterMode

from mmdd_ray.config import Synthesis
from mmdd_ray.data import shapes
from mmdd_ray.diffusion.synthesize import ImageSampler, SampleRequest, sample_seeds
from mmdd_ray.models import zoo
from mmdd_ray.models.generators.stable_diffusion.drawing import draw_images
from mmdd_ray.storage.store import Store

IMAGES = {"tiny": 4, "cpu": 256, "gpu": 64}
ALONE = {"tiny": 1, "cpu": 16, "gpu": 4}  # images of an arm that draws one at a time
RELEASE_STEPS = 50
GUIDANCE = 7.5
PEAK_SIZE = 8192  # side of the matrices whose product is the limit


@dataclass(kw_only=True)
class SynthesisSpeed(Speed):
    """Times synthesis."""

    batch_images: int | None = None
    """Images drawn together; default: those of the presets."""


def main() -> None:
    asked = tyro.cli(SynthesisSpeed)
    on_gpu = asked.size == "gpu"
    folder = stable_diffusion() if on_gpu else str(zoo.FOLDER / "tiny-sd")
    image_px = 512 if on_gpu else 32
    batch = asked.batch_images or (16 if on_gpu else Synthesis().batch_images)
    synthesis = Synthesis(batch_images=batch, guidance=GUIDANCE)
    prompts = [shapes.scene(index, seed=5).captions()[0] for index in range(IMAGES[asked.size])]
    seeds = sample_seeds(0, len(prompts))
    rows = [vars(SampleRequest(i, *pair)) for i, pair in enumerate(zip(prompts, seeds, strict=True))]
    dtype = torch.float16 if on_gpu else torch.float32
    plain = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.to("cuda" if on_gpu else "cpu")
    own_scheduler = plain.scheduler

    def release() -> None:
        plain.scheduler = own_scheduler
        for prompt in prompts[: ALONE[asked.size]]:
            plain(
                prompt,
                height=image_px,
                width=image_px,
                num_inference_steps=RELEASE_STEPS,
                guidance_scale=GUIDANCE,
            )

    def in_batches(size: int, images: int) -> Callable[[], None]:
        def draw() -> None:
            for start in range(0, images, size):
                part = slice(start, start + size)
                draw_images(
                    plain,
                    prompts[part],
                    seeds[part],
                    image_px=image_px,
                    inference_steps=synthesis.inference_steps,
                    guidance=GUIDANCE,
                )

        return draw

    with tempfile.TemporaryDirectory() as scratch:
        clip = None if on_gpu else "tiny-clip"
        sampler = ImageSampler(Store(scratch), folder, synthesis, image_px, clip)
        batches = [(start // batch, rows[start : start + batch]) for start in range(0, len(rows), batch)]

        def ours() -> None:
            for number, part in batches:
                Store(scratch).write_parquet(f"{number}.parquet", sampler.work(number, part))

        alone = ALONE[asked.size]
        arms = {
            "ours": ours,
            "release": release,
            "one by one": in_batches(1, alone),
            "bare": in_batches(batch, len(prompts)),
        }
        seconds = in_turns(arms, asked.repetitions)
    scale = len(prompts) / alone
    ratios = [
        faster("synthesis: over one prompt at a time, 50 steps", seconds, "ours", "release", 10, scale),
        faster(
            "synthesis: over one prompt at a time, equal steps",
            seconds,
            "ours",
            "one by one",
            3 if on_gpu else 4,
            scale,
        ),
        faster("synthesis: over a bare loop over batches", seconds, "ours", "bare"),
    ]
    if on_gpu:
        floor = (
            len(prompts) * _unet_flops(plain) * 2 * synthesis.inference_steps / matmul_peak(torch.bfloat16)
        )
        ratios.append(
            Ratio("synthesis: share of the matmul limit", tuple(floor / one for one in seconds["ours"]), 0.45)
        )
    record(
        "synthesis", asked, ratios, images=len(prompts), alone=alone, settings=str(synthesis), seconds=seconds
    )


def _unet_flops(pipeline: StableDiffusionPipeline) -> float:
    """Floating-point operations of the U-Net for one latent of 64 x 64."""
    unet = pipeline.unet
    latent = torch.zeros(1, 4, 64, 64, device=unet.device, dtype=unet.dtype)
    states = torch.zeros(1, 77, 768, device=unet.device, dtype=unet.dtype)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        unet(latent, 0, states)
    return counter.get_total_flops()


def matmul_peak(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on this GPU."""
    left, right = torch.randn(2, PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=dtype)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        started = perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = min(best, perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best


if __name__ == "__main__":
    main()
