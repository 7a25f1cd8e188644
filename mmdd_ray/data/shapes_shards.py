"""`shapes` written to disk or object storage, as WebDataset or Parquet shards that any reader of those takes.

For what cannot read `shapes:` URIs, and to measure reading itself. The same arguments give the same bytes.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import pyarrow as pa

from mmdd_ray.data.formats.tar import write_tar_samples
from mmdd_ray.data.shapes import pairs
from mmdd_ray.data.web_scenes import World
from mmdd_ray.data.web_scenes import pairs as web_pairs
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

Layout = Literal["webdataset", "parquet"]

_SUFFIX = {"webdataset": ".tar", "parquet": ".parquet"}
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int64()),
    ]
)


def write_shards(
    store: Store,
    rows: int,
    *,
    seed: int,
    image_px: int = 32,
    labelled: bool = False,
    world: World | None = None,
    layout: Layout,
    rows_per_shard: int = 1000,
) -> list[str]:
    """Writes pairs 0 to `rows` of `world` (default: the clean one) into the folder `store`; gives the shards' names.

    "webdataset" is the layout of img2dataset: 00000.tar and so on, with KEY.png, KEY.txt (the first caption) and
    KEY.json (key, all captions and, if `labelled`, the label). "parquet" is 00000.parquet and so on, with the
    columns key, image (PNG bytes), captions and label (null unless `labelled`). A tar is streamed; of Parquet one
    shard is held in memory. Shards of an earlier call with as many rows are replaced.

    Raises:
        UserError: for a count below 1, an unknown layout, or a folder that holds other shards, which would become
            part of the dataset.
    """
    for name, count in (("rows", rows), ("image_px", image_px), ("rows_per_shard", rows_per_shard)):
        if count < 1:
            raise UserError(f"{name}={count} must be at least 1")
    if seed < 0:
        raise UserError(f"seed={seed} must not be negative")
    if layout not in get_args(Layout):
        raise UserError(f"layout={layout!r} must be one of {', '.join(get_args(Layout))}")
    starts = range(0, rows, rows_per_shard)
    names = [f"{number:05d}{_SUFFIX[layout]}" for number in range(len(starts))]
    others = [
        name for name in store.entries() if name.endswith(tuple(_SUFFIX.values())) and name not in names
    ]
    if others:
        raise UserError(
            f"{redact(store.uri)} already holds other shards, e.g. {others[0]}; name an empty folder"
        )
    for name, start in zip(names, starts, strict=True):
        stop = min(start + rows_per_shard, rows)
        drawing: dict[str, Any] = {"seed": seed, "image_px": image_px, "labelled": labelled}
        drawn = web_pairs(start, stop, world=world, **drawing) if world else pairs(start, stop, **drawing)
        if layout == "webdataset":
            with store.create(name) as file:
                write_tar_samples(file, ((pair["key"], _members(pair)) for pair in drawn))
        else:
            store.write_parquet(name, pa.Table.from_pylist(list(drawn), _SCHEMA))
    return names


def _members(pair: Mapping[str, Any]) -> dict[str, bytes]:
    """Content of the tar members of a pair by suffix, sorted."""
    record = {"key": pair["key"], "caption": pair["captions"][0], "captions": pair["captions"]}
    if pair["label"] is not None:
        record["label"] = pair["label"]
    return {
        "json": json.dumps(record, sort_keys=True).encode(),
        "png": pair["image"],
        "txt": pair["captions"][0].encode(),
    }
