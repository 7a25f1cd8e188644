"""Latents of real images, and the prototypes of each class from them (VLCP, arXiv 2506.23580, section 3).

A pass over the shards encodes images with the generator's VAE. Ray Data then brings the latents of each class together;
a task finds the prototypes of the few classes that share a partition of its shuffle, one class after the other.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from mmdd_ray.config import Data, Finetune
from mmdd_ray.data.shards import list_shards
from mmdd_ray.data.sources import READ_CPUS
from mmdd_ray.engine.cluster import actor_pool, retry_faults
from mmdd_ray.engine.devices import own_device
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.features.shard_pool import ChunkActor, map_shards
from mmdd_ray.features.store import shard_files
from mmdd_ray.features.vectors import vector_column, vectors
from mmdd_ray.methods.vlcp.describe import Descriptions, ImageClass
from mmdd_ray.methods.vlcp.settings import Prototypes
from mmdd_ray.storage.store import Store

PROTOTYPES = "prototypes.parquet"
CENTRES = "centres"
MAX_PARTITIONS = 200  # of the shuffle: five classes of ImageNet-1K each

PROTOTYPE_SCHEMA = pa.schema(
    {
        "label": pa.int64(),
        "slot": pa.int64(),  # 0, 1, … in its class
        "text": pa.string(),
        "text_key": pa.string(),  # of the image that the text describes; empty for the template
        "members": pa.list_(pa.string()),  # keys of the cluster's images
    }
)


class LatentEncoder(ChunkActor):
    """Encodes a chunk of images with the VAE of the generator, on the GPU if there is one."""

    def __init__(self, store: Store, generator: str, descriptions: Descriptions) -> None:

        from mmdd_ray.models.generators.generator import load_generator

        super().__init__(store)
        device = own_device()
        self.generator, self.descriptions = load_generator(generator, device), descriptions

    def work(self, shard: str, number: int, pairs: pa.Table, images_BHWC: np.ndarray) -> pa.Table:
        """A table with shard, index, key (of shard and key), label, description and latent (flattened float16)."""
        import torch

        self.generator.latent_side(images_BHWC.shape[1])  # raises where there is none
        with out_of_memory("prototypes.chunk_images"), torch.inference_mode():
            # whatever the chunk: 64 images of 512 px at a time would need a GPU of 80 GB
            latent_BCHW = self.generator.encode(images_BHWC, one_by_one=True)
        latent_BD = latent_BCHW.flatten(1).cpu().numpy().astype(np.float16)
        texts = [self.descriptions.first({**row, "shard": shard}) for row in pairs.to_pylist()]
        return pa.table(
            {
                "shard": [shard] * len(pairs),
                "index": pairs["index"],
                "key": [f"{shard}/{key}" for key in pairs["key"].to_pylist()],
                "label": pairs["label"],
                "description": texts,
                "latent": vector_column(latent_BD),
            }
        )


def encode_latents(
    stage: StageDir, data: Data, finetune: Finetune, prototypes: Prototypes, descriptions: Descriptions
) -> StageResult:
    """Writes the latents of all images; goes on after the last whole shard."""
    chunks = map_shards(
        stage,
        list_shards(data),
        data,
        LatentEncoder,
        image_px=finetune.image_px,
        chunk_pairs=prototypes.chunk_images,
        pool=actor_pool(prototypes),
        generator=finetune.generator,
        descriptions=descriptions,
    )
    counts = [(rows_in, len(rejects)) for rows_in, rejects in chunks]
    rows, refused = (sum(column) for column in zip(*counts, strict=True))
    return StageResult(rows_in=rows, rows_out=rows - refused)


def find_prototypes(
    stage: StageDir,
    latents: Store,
    classes: Sequence[ImageClass],
    excluded: Sequence[tuple[str, int]],
    prototypes: Prototypes,
    seed: int,
) -> StageResult:
    """Writes the prototypes of all classes; read them with `read_prototypes` and `read_centres`.

    Centres stay out of the driver: at 512 px those of ImageNet-1K are 640 MB at ten images per class.

    Args:
        latents: What `encode_latents` has written.
        excluded: (shard, index) of images that are left out.
        seed: Of K-means, in each class.
    """
    files = [{"file": name} for name in shard_files(latents)]
    names = {one.label: one.name for one in classes}
    items = ray.data.from_items(files, override_num_blocks=len(files))
    retry_faults(items)
    dataset = items.map_batches(
        partial(_read, store=latents, excluded=frozenset(excluded)),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=READ_CPUS,
    )
    grouped = dataset.groupby("label", num_partitions=min(len(classes), MAX_PARTITIONS)).map_groups(
        partial(_prototypes_of_class, store=stage.store, names=names, settings=prototypes, seed=seed),
        batch_format="pyarrow",
    )
    rows = sorted(grouped.iter_rows(), key=lambda row: (row["label"], row["slot"]))
    found = pa.Table.from_pylist(rows, PROTOTYPE_SCHEMA)
    stage.store.write_parquet(PROTOTYPES, found)
    return StageResult(rows_in=sum(one.images for one in classes), rows_out=len(found))


def read_prototypes(store: Store) -> list[dict[str, Any]]:
    """The prototypes of `find_prototypes`, with the columns of `PROTOTYPE_SCHEMA`, ordered by label and slot."""
    return store.read_parquet(PROTOTYPES).to_pylist()


def read_centres(store: Store, label: int) -> np.ndarray:
    """Centres of the clusters of a class by slot, flattened, float32."""
    return vectors(store.read_parquet(_centres_file(label))["latent"], np.float32)


def _centres_file(label: int) -> str:
    return f"{CENTRES}/{label}.parquet"


def _read(batch: pa.Table, store: Store, excluded: frozenset[tuple[str, int]]) -> pa.Table:
    (file,) = batch["file"].to_pylist()
    table = store.read_parquet(file)
    addresses = zip(table["shard"].to_pylist(), table["index"].to_pylist(), strict=True)
    return table.filter(pa.array([address not in excluded for address in addresses], pa.bool_()))


def _prototypes_of_class(
    table: pa.Table, store: Store, names: dict[int, str], settings: Prototypes, seed: int
) -> pa.Table:
    from mmdd_ray.methods.vlcp.prototypes import class_prototypes

    table = table.sort_by([("shard", "ascending"), ("index", "ascending")]).combine_chunks()
    label = table["label"][0].as_py()
    texts, keys = table["description"].to_pylist(), table["key"].to_pylist()
    found = class_prototypes(
        vectors(table["latent"], np.float16).astype(np.float32),
        texts,
        names[label],
        settings.images_per_class,
        neighbours=settings.neighbours,
        contamination=settings.contamination,
        words=settings.words,
        common=settings.common_words,
        mini_batch_from=settings.mini_batch_from,
        seed=derive_seed(seed, label % 2**63),
    )
    centre_KD = np.stack([one.latent_D for one in found])
    store.write_parquet(
        _centres_file(label), pa.table({"latent": vector_column(centre_KD.astype(np.float32))})
    )
    rows = [
        {
            "label": label,
            "slot": slot,
            "text": texts[one.text] if one.text is not None else "",
            "text_key": keys[one.text] if one.text is not None else "",
            "members": [keys[row] for row in one.members],
        }
        for slot, one in enumerate(found)
    ]
    return pa.Table.from_pylist(rows, PROTOTYPE_SCHEMA)
