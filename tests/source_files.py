"""Small source files of each format, and what is read of them."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.pair import Row
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import find_shards, list_shards

Members = list[tuple[str, bytes]]


def jpeg(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level % 256, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def pair(key: str, caption: str = "a dog", level: int = 0) -> Members:
    return [(f"{key}.jpg", jpeg(level)), (f"{key}.txt", caption.encode())]


def tar_bytes(members: Members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, members: Members) -> str:
    path.write_bytes(tar_bytes(members))
    return str(path)


def write_json(path: Path, document: object) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def write_images(folder: Path, *names: str) -> None:
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(level))


def read(data: Data, only: set[int] | None = None) -> list[Row]:
    return [row for shard in list_shards(data) for row in iter_shard(shard, data, only)]


def fates(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row.key, row.reject) for row in rows]


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def coco(*file_names: str) -> dict[str, list[dict[str, object]]]:
    images = [{"id": n, "file_name": name} for n, name in enumerate(file_names)]
    return {
        "images": images,
        "annotations": [{"image_id": image["id"], "caption": "a dog"} for image in images],
    }


def captions_of(data: Data) -> dict[str, list[str]]:
    """Captions by key; fails where a row is refused."""
    rows = read(data)
    assert {row.reject for row in rows} == {None}
    return {row.key: row.captions for row in rows}


def says(uri: object, **settings: object) -> list[str]:
    return find_shards(Data(uri=str(uri), **settings)).says  # type: ignore[arg-type]
