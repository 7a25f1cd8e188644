"""Drawing images from captions with a pool of generator actors, which also look at what they drew with CLIP.

Every sample has its own seed, and batches are cut by sample index: the same settings draw the same bytes whatever
the number of actors and the order in which they finish.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from mmdd_ray.batches import BatchActor, Rows, read_batches, work_off
from mmdd_ray.cluster import actor_pool
from mmdd_ray.config import Synthesis
from mmdd_ray.data.images import encode_png
from mmdd_ray.models.memory import out_of_memory
from mmdd_ray.run import Stage
from mmdd_ray.store import Store

DRAWN_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "source_key": pa.string(),
        "image": pa.binary(),  # PNG
        "image_feature": pa.list_(pa.float32()),  # of CLIP, unit norm
        "text_feature": pa.list_(pa.float32()),  # of the prompt
    }
)


@dataclass(frozen=True)
class Drawing:
    """One image to draw."""

    index: int
    """Position in the list of all drawings; batches are cut by it."""
    prompt: str
    seed: int
    """Seed of the initial noise."""
    source_key: str
    """Key of the real pair that the prompt comes from."""


def sample_seeds(run_seed: int, count: int) -> list[int]:
    """Seeds of samples 0 to `count`: each depends on the run's seed and its own index only."""
    return [int(np.random.SeedSequence((run_seed, i)).generate_state(1)[0]) for i in range(count)]


def draw(
    stage: Stage,
    drawings: list[Drawing],
    generator: Store,
    synthesis: Synthesis,
    *,
    image_px: int,
    clip: str,
) -> None:
    """Draws all of `drawings` with the pipeline in the folder `generator`; read them with `read_drawn`.

    `clip` names the model of the features that are kept with each drawing.
    """
    work_off(
        stage.name,
        [vars(drawing) for drawing in drawings],
        Painter,
        batch_rows=synthesis.batch_images,
        unit="images",
        store=stage.store,
        pool=actor_pool(synthesis),
        generator=generator,
        synthesis=synthesis,
        image_px=image_px,
        clip=clip,
    )


def read_drawn(store: Store) -> pa.Table:
    """Everything that `draw` drew, in the order of the samples, with the columns of `DRAWN_SCHEMA`."""
    return read_batches(store)


class Painter(BatchActor):
    """Draws a batch and encodes it with CLIP, on the GPU if there is one."""

    def __init__(
        self, store: Store, generator: Store, synthesis: Synthesis, image_px: int, clip: str
    ) -> None:
        import torch

        from mmdd_ray.models.clip import load_clip
        from mmdd_ray.models.generator import draw_images, load_pipeline

        super().__init__(store)
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        self.clip = load_clip(clip, device)
        self.draw = partial(
            draw_images,
            load_pipeline(str(generator.fetch("")), device, half_precision=on_gpu),
            image_px=image_px,
            inference_steps=synthesis.inference_steps,
            guidance=synthesis.guidance,
        )

    def work(self, number: int, rows: Rows) -> pa.Table:
        """The `Drawing`s of `rows`, drawn: a table with the columns of `DRAWN_SCHEMA`."""
        prompts = [row["prompt"] for row in rows]
        with out_of_memory("synthesis.batch_images"):
            images = self.draw(prompts, [row["seed"] for row in rows])
            image_BD = self.clip.encode_images(images).cpu().numpy()
            text_BD = self.clip.encode_texts(prompts).cpu().numpy()
        drawn = [
            {**row, "image": encode_png(image), "image_feature": image_D, "text_feature": text_D}
            for row, image, image_D, text_D in zip(rows, images, image_BD, text_BD, strict=True)
        ]
        return pa.Table.from_pylist(drawn, DRAWN_SCHEMA)
