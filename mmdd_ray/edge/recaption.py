"""Caption synthesis: further captions for every synthetic image (EDGE, arXiv 2509.15472, section 3.3)."""

import io
from typing import Any

import pyarrow as pa
import ray.data
from PIL import Image

from mmdd_ray.cluster import actor_pool
from mmdd_ray.config import Captions
from mmdd_ray.progress import progress
from mmdd_ray.run import Stage
from mmdd_ray.store import Store

CAPTIONS_SCHEMA = pa.schema({"index": pa.int64(), "captions": pa.list_(pa.string())})


def recaption(stage: Stage, images: dict[int, bytes], settings: Captions, *, seed: int) -> None:
    """Writes `per_image - 1` captions for each image, by sample index; read them with `read_captions`.

    Batches are cut in the order of the samples and named by their number, so they do not depend on the actors.
    """
    indices = sorted(images)
    batches = [indices[i : i + settings.batch_images] for i in range(0, len(indices), settings.batch_images)]
    todo = [number for number in range(len(batches)) if not stage.store.exists(_batch_file(number))]
    with progress("recaption", total=len(images), unit="images") as bar:
        bar.update(sum(len(batches[n]) for n in range(len(batches)) if n not in todo))
        if not todo:
            return
        rows = [{"number": n, "index": batches[n], "image": [images[i] for i in batches[n]]} for n in todo]
        written = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Recaptioner,
            fn_constructor_kwargs={"settings": settings, "seed": seed, "store": stage.store},
            batch_size=1,
            batch_format="pyarrow",
            **actor_pool(settings.min_actors, settings.max_actors, settings.gpus_per_actor),
        )
        for row in written.iter_rows():
            bar.update(row["images"])


def read_captions(store: Store) -> dict[int, list[str]]:
    """The captions that `recaption` wrote, by sample index."""
    tables = [store.read_parquet(name) for name in store.files("batches")]
    return {row["index"]: row["captions"] for table in tables for row in table.to_pylist()}


class Recaptioner:
    """Captions the batch of images it is given."""

    def __init__(self, settings: Captions, seed: int, store: Store) -> None:
        import torch

        from mmdd_ray.models.captioner import Captioner

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.captioner = Captioner(settings.model, device)
        self.settings, self.seed, self.store = settings, seed, store

    def __call__(self, batch: pa.Table) -> dict[str, list[int]]:
        row: dict[str, Any] = batch.to_pylist()[0]
        captions = self.captioner.write(
            [Image.open(io.BytesIO(png)).convert("RGB") for png in row["image"]],
            self.settings.per_image - 1,
            instructions=self.settings.instructions,
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.seed + row["number"],
        )
        table = pa.table({"index": row["index"], "captions": captions}, schema=CAPTIONS_SCHEMA)
        self.store.write_parquet(_batch_file(row["number"]), table)
        return {"images": [len(captions)]}


def _batch_file(number: int) -> str:
    return f"batches/{number:06d}.parquet"
