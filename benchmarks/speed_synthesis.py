"""Synthesis: images a second beside one prompt at a time.

    python benchmarks/speed_synthesis.py
    python benchmarks/speed_synthesis.py --size gpu     # Stable Diffusion 1.5 at 512 px with random weights

Arms:

- ours: what an actor of the synthesis stage does with its batches: drawing, CLIP features of each image and its
  prompt (not on a GPU), PNG, a Parquet file.
- ours with ``--compile``, on a GPU: the same, once it is compiled.
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

IMAGES = {"tiny": 4, "cpu": 256, "gpu": 32}
ALONE = {"tiny": 1, "cpu": 16, "gpu": 2}  # images of an arm that draws one at a time
RELEASE_STEPS = 50
GUIDANCE = 7.5
PEAK_SIZE = 8192  # side of the matrices whose product is the limit


@dataclass(kw_only=True)
class SynthesisSpeed(Speed):
    """Times synthesis."""

    batch_images: int | None = None
    """Images drawn together; default: those of the presets."""
    compile: bool = False
    """Compiles ours, on a GPU."""


class Bench:
    """The prompts that all arms draw, and their models."""

    def __init__(self, asked: SynthesisSpeed, scratch: Store) -> None:
        self.on_gpu = asked.size == "gpu"
        folder = stable_diffusion() if self.on_gpu else str(zoo.FOLDER / "tiny-sd")
        self.image_px = 512 if self.on_gpu else 32
        self.batch = asked.batch_images or (16 if self.on_gpu else Synthesis().batch_images)
        self.synthesis = Synthesis(batch_images=self.batch, guidance=GUIDANCE, compile=asked.compile)
        self.prompts = [shapes.scene(index, seed=5).captions()[0] for index in range(IMAGES[asked.size])]
        self.seeds = sample_seeds(0, len(self.prompts))
        self.alone = ALONE[asked.size]
        dtype = torch.float16 if self.on_gpu else torch.float32
        self.plain = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, safety_checker=None)
        self.plain.set_progress_bar_config(disable=True)
        self.plain.to("cuda" if self.on_gpu else "cpu")
        self._scheduler = self.plain.scheduler
        clip = None if self.on_gpu else "tiny-clip"
        self._scratch = scratch
        self._sampler = ImageSampler(scratch, folder, self.synthesis, self.image_px, clip)

    def arms(self) -> dict[str, Callable[[], None]]:
        return {
            "ours": self._ours,
            "release": self._release,
            "one by one": lambda: self._in_batches(1, self.alone),
            "bare": lambda: self._in_batches(self.batch, len(self.prompts)),
        }

    def _ours(self) -> None:
        pairs = zip(self.prompts, self.seeds, strict=True)
        rows = [vars(SampleRequest(index, *pair)) for index, pair in enumerate(pairs)]
        for start in range(0, len(rows), self.batch):
            drawn = self._sampler.work(start // self.batch, rows[start : start + self.batch])
            self._scratch.write_parquet(f"{start}.parquet", drawn)

    def _release(self) -> None:
        self.plain.scheduler = self._scheduler
        px = self.image_px
        for prompt in self.prompts[: self.alone]:
            self.plain(
                prompt, height=px, width=px, num_inference_steps=RELEASE_STEPS, guidance_scale=GUIDANCE
            )

    def _in_batches(self, size: int, images: int) -> None:
        steps = self.synthesis.inference_steps
        for start in range(0, images, size):
            prompts, seeds = (part[start : start + size] for part in (self.prompts, self.seeds))
            draw_images(
                self.plain,
                prompts,
                seeds,
                image_px=self.image_px,
                inference_steps=steps,
                guidance=GUIDANCE,
            )

    def floor(self) -> float:
        """Seconds of all images at the peak of matrix products."""
        passes = len(self.prompts) * 2 * self.synthesis.inference_steps
        return passes * _unet_flops(self.plain) / matmul_peak(torch.bfloat16)


def main() -> None:
    asked = tyro.cli(SynthesisSpeed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked, Store(folder))
        seconds = in_turns(bench.arms(), asked.repetitions)
    scale, equal = len(bench.prompts) / bench.alone, 3 if bench.on_gpu else 4
    title = f"synthesis{', compiled' * asked.compile}"
    ratios = [
        faster(f"{title}: over one prompt at a time, 50 steps", seconds, "ours", "release", 10, scale),
        faster(
            f"{title}: over one prompt at a time, equal steps", seconds, "ours", "one by one", equal, scale
        ),
        faster(f"{title}: over a bare loop over batches", seconds, "ours", "bare"),
    ]
    if bench.on_gpu:
        shares = tuple(bench.floor() / one for one in seconds["ours"])
        ratios.append(Ratio(f"{title}: share of the matmul limit", shares, 0.45))
    facts = {"images": len(bench.prompts), "alone": bench.alone, "settings": str(bench.synthesis)}
    record(f"synthesis{'-compiled' * asked.compile}", asked, ratios, **facts, seconds=seconds)


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
