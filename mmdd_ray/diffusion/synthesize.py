"""Drawing images from captions with a pool of generator actors, which also look at what they drew with CLIP.

Every sample has its own seed, and batches are cut by sample index: the same settings draw the same bytes whatever
the number of actors and the order in which they finish. A finished batch is a file named by its number, written
whole, so that a batch that Ray repeats or a restarted run draws nothing twice.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from mmdd_ray.cluster import actor_pool
from mmdd_ray.config import Synthesis
from mmdd_ray.data.images import encode_png
from mmdd_ray.progress import progress
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
    batches = _batches(drawings, synthesis.batch_images)
    todo = [number for number in range(len(batches)) if not stage.store.exists(_batch_file(number))]
    with progress("synthesize", total=len(drawings), unit="images") as bar:
        bar.update(sum(len(batches[n]) for n in range(len(batches)) if n not in todo))
        if not todo:
            return
        drawn = ray.data.from_items(
            [{"number": number} for number in todo], override_num_blocks=len(todo)
        ).map_batches(
            Painter,
            fn_constructor_kwargs={
                "batches": batches,
                "generator": generator,
                "store": stage.store,
                "synthesis": synthesis,
                "image_px": image_px,
                "clip": clip,
            },
            batch_size=1,
            **actor_pool(synthesis.min_actors, synthesis.max_actors, synthesis.gpus_per_actor),
        )
        for row in drawn.iter_rows():
            bar.update(row["images"])


def read_drawn(store: Store) -> pa.Table:
    """Everything that `draw` drew, in the order of the samples, with the columns of `DRAWN_SCHEMA`."""
    return pa.concat_tables(store.read_parquet(name) for name in store.files("batches"))


class Painter:
    """Draws the batch of a given number and encodes it with CLIP, on the GPU if there is one."""

    def __init__(
        self,
        batches: list[list[Drawing]],
        generator: Store,
        store: Store,
        synthesis: Synthesis,
        image_px: int,
        clip: str,
    ) -> None:
        import torch

        from mmdd_ray.models.clip import load_clip
        from mmdd_ray.models.generator import draw_images, load_pipeline

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
        self.batches, self.store = batches, store

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        number = int(batch["number"][0])
        drawings = self.batches[number]
        prompts = [d.prompt for d in drawings]
        images = self.draw(prompts, [d.seed for d in drawings])
        image_BD = self.clip.encode_images(images).cpu().numpy()
        text_BD = self.clip.encode_texts(prompts).cpu().numpy()
        rows = [
            {**vars(drawing), "image": encode_png(image), "image_feature": image_D, "text_feature": text_D}
            for drawing, image, image_D, text_D in zip(drawings, images, image_BD, text_BD, strict=True)
        ]
        self.store.write_parquet(_batch_file(number), pa.Table.from_pylist(rows, DRAWN_SCHEMA))
        return {"images": [len(rows)]}


def _batches(drawings: list[Drawing], size: int) -> list[list[Drawing]]:
    return [drawings[start : start + size] for start in range(0, len(drawings), size)]


def _batch_file(number: int) -> str:
    return f"batches/{number:06d}.parquet"
