"""A distilled set in the layouts of other tools; those that read WebDataset tars need none of this.

- ``imagefolder``: images beside a ``metadata.jsonl`` of ``file_name`` and ``text``, which the text-to-image scripts of
  diffusers and ``load_dataset("imagefolder")`` read. ``text`` is a list where an image has several captions; the
  scripts draw one of them each time.
- ``parquet``: the columns of img2dataset's ``output_format=parquet`` with the encoded image in ``png``. ``caption`` is
  the first caption, ``captions`` holds all.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import pyarrow as pa
from PIL import Image

from mmdd_ray.distilled.read import read_distilled, read_manifest
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

Layout = Literal["imagefolder", "parquet"]
METADATA = "metadata.jsonl"
COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("status", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("png", pa.binary()),
        ("label", pa.int64()),
        ("seed", pa.int64()),
        ("source_key", pa.string()),
    ]
)


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    images: int
    pairs: int
    is_shown_only: bool
    """Whether the set has learnt pixels and texts, which no such layout holds; the images only show them."""


def export(uri: str, folder: str, layout: Layout) -> Exported:
    """Writes the images and captions of a distilled set in another layout.

    Args:
        uri: The folder of the set, a local path or a URI.
        folder: Where to; a local path or a URI of a folder that is empty or not there.
        layout: "imagefolder" or "parquet".

    Raises:
        UserError: The set is damaged, there is no such layout, or the folder has files.
    """
    if layout not in get_args(Layout):
        raise UserError(f"there is no layout {layout}; choose one of {', '.join(get_args(Layout))}")
    target = Store(folder)
    if found := target.entries():
        raise UserError(f"{redact(folder)} is not empty, it has {found[0]}; name a new folder")
    source = Store(uri)
    manifest, samples = read_manifest(source), read_distilled(source)
    if layout == "imagefolder":
        _write_images(samples, target)
    else:
        rest = iter(samples)
        for shard in manifest["shards"]:
            table = pa.Table.from_pylist([_row(one) for one in islice(rest, shard["rows"])], COLUMNS)
            target.write_parquet(shard["name"].replace(".tar", ".parquet"), table)
    pairs = sum(len(sample.captions) for sample in samples)
    return Exported(len(samples), pairs, manifest.get("learnt") is not None)


def _write_images(samples: Sequence[Sample], target: Store) -> None:
    one_each = all(len(sample.captions) == 1 for sample in samples)
    lines = []
    for number, sample in enumerate(samples):
        name = f"{number:09d}.png"
        target.write_bytes(name, sample.image)
        line = {
            "file_name": name,
            "text": sample.captions[0] if one_each else list(sample.captions),
            "key": sample.key,
            "seed": sample.seed,
            "source_key": sample.source_key,
        }
        lines.append(line | ({} if sample.label is None else {"label": sample.label}))
    content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    target.write_bytes(METADATA, content.encode())


def _row(sample: Sample) -> dict[str, Any]:
    width, height = Image.open(io.BytesIO(sample.image), formats=["PNG"]).size
    return {
        "key": sample.key,
        "caption": sample.captions[0],
        "captions": list(sample.captions),
        "status": "success",
        "width": width,
        "height": height,
        "sha256": hashlib.sha256(sample.image).hexdigest(),
        "png": sample.image,
        "label": sample.label,
        "seed": sample.seed,
        "source_key": sample.source_key,
    }
