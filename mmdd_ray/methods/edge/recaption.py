"""Caption synthesis: further captions for every synthetic image (EDGE, arXiv 2509.15472, section 3.3)."""

import io

import pyarrow as pa
from PIL import Image

from mmdd_ray.engine.actor_pool import BatchActor, Rows, batch_files, read_batches, run_batches
from mmdd_ray.engine.cluster import actor_pool
from mmdd_ray.engine.devices import own_device
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.methods.edge.settings import Captions
from mmdd_ray.models.captioners.token_usage import tokens_of, with_tokens
from mmdd_ray.storage.store import Store

CAPTIONS_SCHEMA = pa.schema({"index": pa.int64(), "captions": pa.list_(pa.string())})


def recaption(stage: StageDir, images: dict[int, bytes], settings: Captions, *, seed: int) -> dict[str, int]:
    """Writes `per_image - 1` captions for each image, by sample index; read them with `read_captions`.

    Returns:
        How many are blank, and the tokens that all of them took.
    """
    run_batches(
        stage.name,
        [{"index": index, "image": images[index]} for index in sorted(images)],
        Recaptioner,
        batch_rows=settings.batch_images,
        unit="images",
        store=stage.store,
        pool=actor_pool(settings),
        settings=settings,
        seed=seed,
    )
    written = read_captions(stage.store)
    blank = sum(not text for own in written.values() for text in own)
    return {"blank_captions": blank} | tokens_of(stage.store, batch_files(stage.store))


def read_captions(store: Store) -> dict[int, list[str]]:
    """The captions that `recaption` wrote, by sample index."""
    return {row["index"]: row["captions"] for row in read_batches(store).to_pylist()}


class Recaptioner(BatchActor):
    """Captions a batch of images, on the GPU if there is one."""

    def __init__(self, store: Store, settings: Captions, seed: int) -> None:

        from mmdd_ray.models.captioners.captioner import load_captioner

        super().__init__(store)
        self.captioner = load_captioner(settings.model, own_device())
        self.settings, self.seed = settings, seed

    def work(self, number: int, rows: Rows) -> pa.Table:
        """Captions for the `image` of each row: a table with the columns of `CAPTIONS_SCHEMA`."""
        before = self.captioner.tokens
        with out_of_memory("captions.batch_images"):
            captions = self.captioner.write(
                [Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows],
                self.settings.per_image - 1,
                instructions=self.settings.instructions,
                max_new_tokens=self.settings.max_new_tokens,
                seed=(self.seed, number),
            )
        table = pa.table(
            {"index": [row["index"] for row in rows], "captions": captions}, schema=CAPTIONS_SCHEMA
        )
        return with_tokens(table, before, self.captioner.tokens)
