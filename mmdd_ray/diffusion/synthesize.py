"""Drawing images with a pool of generator actors, which may look at what they drew with CLIP.

Every sample has its own seed, and batches are cut by sample index: the same settings draw the same bytes whatever
the number of actors and the order in which they finish.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from mmdd_ray.config import Synthesis
from mmdd_ray.data.images import encode_png
from mmdd_ray.engine.actor_pool import BatchActor, Rows, read_batches, run_batches
from mmdd_ray.engine.cluster import actor_pool
from mmdd_ray.engine.devices import own_device
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:
    from mmdd_ray.models.generators.generator import Drawing

DRAWN_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "source_key": pa.string(),
        "label": pa.int64(),
        "slot": pa.int64(),
        "image": pa.binary(),  # PNG
        "image_feature": pa.list_(pa.float32()),  # of CLIP, unit norm; null without CLIP
        "text_feature": pa.list_(pa.float32()),  # of the prompt
        "redrawn": pa.bool_(),  # in float32, because half precision gave values that are not finite
    }
)


@dataclass(frozen=True)
class SampleRequest:
    """One image to draw."""

    index: int
    """Position in the list of all requests; batches are cut by it."""
    prompt: str
    seed: int
    """Seed of the noise."""
    source_key: str = ""
    """Key of the real pair that the prompt comes from."""
    label: int | None = None
    slot: int | None = None
    """Place among the images of its class: that of its prototype, if it has one."""


class Latents(Protocol):
    """Where images begin; travels to actors."""

    def of(self, rows: Rows) -> np.ndarray:
        """The flattened latents (B, D) that the requests of these rows begin as."""
        ...


@dataclass(frozen=True)
class Guided:
    """Drawing that may begin as an image, with prompts of any length."""

    negative_prompt: str
    """Text that guidance leads away from."""
    strength: float
    """Share of the noise schedule that is drawn again, where it begins as an image."""
    begin: Latents | None = None
    """None begins with noise alone."""


def sample_seeds(run_seed: int, count: int) -> list[int]:
    """Seeds of samples 0 to `count`: each depends on the run's seed and its own index only."""
    return [derive_seed(run_seed, i) for i in range(count)]


def draw(
    stage: StageDir,
    requests: Sequence[SampleRequest],
    generator: Store | str,
    synthesis: Synthesis,
    *,
    image_px: int,
    clip: str | None = None,
    guided: Guided | None = None,
) -> StageResult:
    """Draws all requests; read them with `read_drawn`. The result counts those that were drawn again in float32.

    Args:
        generator: The folder of one in storage, or the name of one.
        clip: The model of the features that are kept with each image; None keeps none.
        guided: None draws from noise, and cuts prompts that are too long.
    """
    run_batches(
        stage.name,
        [vars(request) for request in requests],
        ImageSampler,
        batch_rows=synthesis.batch_images,
        unit="images",
        store=stage.store,
        pool=actor_pool(synthesis),
        generator=generator,
        synthesis=synthesis,
        image_px=image_px,
        clip=clip,
        guided=guided,
    )
    redrawn = sum(read_batches(stage.store, ["redrawn"])["redrawn"].to_pylist())
    if redrawn:
        print(
            f"{stage.name}: {redrawn:,} of {len(requests):,} images were not finite, and drawn again in float32"
        )
    return StageResult(rows_in=len(requests), rows_out=len(requests), extra={"redrawn": redrawn})


def read_drawn(store: Store) -> pa.Table:
    """Everything that `draw` drew, in the order of the samples, with the columns of `DRAWN_SCHEMA`."""
    return read_batches(store)


class ImageSampler(BatchActor):
    """Draws a batch and encodes it with CLIP, on the GPU if there is one."""

    def __init__(
        self,
        store: Store,
        generator: Store | str,
        synthesis: Synthesis,
        image_px: int,
        clip: str | None = None,
        guided: Guided | None = None,
    ) -> None:

        from mmdd_ray.models.clip import load_clip
        from mmdd_ray.models.generators.generator import load_generator

        super().__init__(store)
        device = own_device()
        on_gpu = device.type == "cuda"
        self.clip = load_clip(clip, device) if clip else None
        folder = generator if isinstance(generator, str) else str(generator.fetch(""))
        self.generator = load_generator(folder, device, half_precision=on_gpu)
        if synthesis.compile:
            self.generator.compile_drawing(synthesis.batch_images)
        self.side = self.generator.latent_side(image_px)
        self.synthesis, self.image_px, self.guided = synthesis, image_px, guided

    def work(self, number: int, rows: Rows) -> pa.Table:
        """The `SampleRequest`s of `rows`, drawn: a table with the columns of `DRAWN_SCHEMA`."""
        with out_of_memory("synthesis.batch_images"):
            images, redrawn = self._draw(rows)
            features = self._features(images, [row["prompt"] for row in rows])
        drawn = [
            {**row, "image": encode_png(image), "redrawn": bool(again), **own}
            for row, image, again, own in zip(rows, images, redrawn, features, strict=True)
        ]
        return pa.Table.from_pylist(drawn, DRAWN_SCHEMA)

    def _draw(self, rows: Rows) -> "Drawing":
        import torch

        prompts, seeds = [row["prompt"] for row in rows], [row["seed"] for row in rows]
        settings: dict[str, Any] = {
            "image_px": self.image_px,
            "inference_steps": self.synthesis.inference_steps,
            "guidance": self.synthesis.guidance,
        }
        if self.guided is None:
            return self.generator.sample(prompts, seeds, **settings)
        latents = None
        if self.guided.begin is not None:
            latent_BD = torch.from_numpy(self.guided.begin.of(rows))
            latents = latent_BD.unflatten(1, (-1, self.side, self.side))
        return self.generator.sample_from(
            latents,
            prompts,
            seeds,
            strength=self.guided.strength,
            negative_prompt=self.guided.negative_prompt,
            **settings,
        )

    def _features(self, images: np.ndarray, prompts: list[str]) -> list[dict[str, np.ndarray]]:
        if self.clip is None:
            return [{}] * len(images)
        image_BD = self.clip.encode_images(images).cpu().numpy()
        text_BD = self.clip.encode_texts(prompts).cpu().numpy()
        return [
            {"image_feature": image_D, "text_feature": text_D}
            for image_D, text_D in zip(image_BD, text_BD, strict=True)
        ]
