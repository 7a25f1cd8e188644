"""Drawing an image from each pair of an image and a text prototype (VLCP, arXiv 2506.23580, section 3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd_ray.batches import BatchActor, Rows, read_batches, work_off
from mmdd_ray.cluster import actor_pool
from mmdd_ray.config import VlcpSynthesis
from mmdd_ray.data.images import encode_png
from mmdd_ray.diffusion.synthesize import sample_seeds
from mmdd_ray.models.memory import out_of_memory
from mmdd_ray.run import Stage, StageResult
from mmdd_ray.store import Store
from mmdd_ray.vlcp.describe import Descriptions, ImageClass
from mmdd_ray.vlcp.latents import read_centres

DRAWN_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "label": pa.int64(),
        "slot": pa.int64(),
        "image": pa.binary(),  # PNG
    }
)


@dataclass(frozen=True)
class Drawing:
    """One image to draw."""

    index: int
    """Position in the list of all drawings; batches are cut by it."""
    prompt: str
    seed: int
    """Seed of the noise."""
    label: int
    slot: int
    """Place among the drawings of its class: that of its prototype, if it has one."""


def drawings_of(
    prototypes: Iterable[dict[str, Any]], descriptions: Descriptions, synthesis: VlcpSynthesis, seed: int
) -> list[Drawing]:
    """A drawing for each prototype, in their order."""
    rows = list(prototypes)
    return [
        Drawing(
            index,
            (row["text"] if synthesis.use_text else "") or descriptions.template(row["label"]),
            own_seed,
            row["label"],
            row["slot"],
        )
        for index, (row, own_seed) in enumerate(zip(rows, sample_seeds(seed, len(rows)), strict=True))
    ]


def prompted(
    classes: Iterable[ImageClass], per_class: int, descriptions: Descriptions, seed: int
) -> list[Drawing]:
    """What the baseline draws: the template with the name of each class, from noise alone."""
    places = [(one.label, slot) for one in classes for slot in range(per_class)]
    return [
        Drawing(index, descriptions.template(label), own_seed, label, slot)
        for index, ((label, slot), own_seed) in enumerate(
            zip(places, sample_seeds(seed, len(places)), strict=True)
        )
    ]


def draw(
    stage: Stage,
    drawings: list[Drawing],
    prototypes: Store | None,
    generator: Store | str,
    synthesis: VlcpSynthesis,
    image_px: int,
) -> StageResult:
    """Draws all of `drawings`; read them with `read_drawn`.

    Args:
        prototypes: What `find_prototypes` has written; without it, or `synthesis.use_image`, noise alone is begun with.
        generator: The folder of a pipeline in storage, or the name of one.
    """
    work_off(
        stage.name,
        [vars(drawing) for drawing in drawings],
        Painter,
        batch_rows=synthesis.batch_images,
        unit="images",
        store=stage.store,
        pool=actor_pool(synthesis),
        prototypes=prototypes,
        generator=generator,
        synthesis=synthesis,
        image_px=image_px,
    )
    return StageResult(rows_in=len(drawings), rows_out=len(drawings))


class Painter(BatchActor):
    """Draws a batch, on the GPU if there is one."""

    def __init__(
        self,
        store: Store,
        prototypes: Store | None,
        generator: Store | str,
        synthesis: VlcpSynthesis,
        image_px: int,
    ) -> None:
        import torch

        from mmdd_ray.models.generator import draw_from_latents, load_pipeline

        super().__init__(store)
        self.prototypes = prototypes if synthesis.use_image else None
        on_gpu = torch.cuda.is_available()
        folder = generator if isinstance(generator, str) else str(generator.fetch(""))
        self.pipeline = load_pipeline(folder, "cuda" if on_gpu else "cpu", half_precision=on_gpu)
        self.draw = partial(
            draw_from_latents,
            self.pipeline,
            image_px=image_px,
            inference_steps=synthesis.inference_steps,
            guidance=synthesis.guidance,
            strength=synthesis.strength,
            negative_prompt=synthesis.negative_prompt,
        )
        self.side = image_px // self.pipeline.vae_scale_factor

    def work(self, number: int, rows: Rows) -> pa.Table:
        """The `Drawing`s of `rows`, drawn: a table with the columns of `DRAWN_SCHEMA`."""
        import torch

        latents = None
        if self.prototypes is not None:
            centres = {
                label: read_centres(self.prototypes, label) for label in {row["label"] for row in rows}
            }
            latent_BD = np.stack([centres[row["label"]][row["slot"]] for row in rows])
            latents = torch.from_numpy(latent_BD).unflatten(1, (-1, self.side, self.side))
        with out_of_memory("synthesis.batch_images"):
            images = self.draw([row["prompt"] for row in rows], [row["seed"] for row in rows], latents)
        drawn = [{**row, "image": encode_png(image)} for row, image in zip(rows, images, strict=True)]
        return pa.Table.from_pylist(drawn, DRAWN_SCHEMA)


def read_drawn(store: Store) -> list[dict[str, Any]]:
    """What `draw` has drawn, in the order of the drawings, with the columns of `DRAWN_SCHEMA`."""
    return read_batches(store).to_pylist()
