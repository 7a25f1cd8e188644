"""Descriptions of real images: the data's own captions, a template, or a vision-language model's (VLCP, section 3)."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.class_names import read_class_names
from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.data.shards import list_shards
from mmdd_ray.engine.cluster import actor_pool
from mmdd_ray.engine.devices import own_device
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.features.shard_pool import ChunkActor, map_shards
from mmdd_ray.features.store import FeatureStore, shard_files
from mmdd_ray.methods.vlcp.settings import Describe
from mmdd_ray.models.captioners.token_usage import tokens_of, with_tokens
from mmdd_ray.storage.store import Store

CLASSES = "classes.json"
SHARDS_HELD = 4  # of descriptions, in a reading task
# in a URI that is no image folder's; the labels of a folder are places among its sub-folders
FILES = re.compile(r"\.(tar|parquet|json)\b|^shapes:")
UNKNOWN = "object"  # class of a row that is left out in the end, because an earlier row is the same


@dataclass(frozen=True)
class ImageClass:
    """A class of the data."""

    label: int
    """Label in the data."""
    name: str
    images: int
    """Usable images of it."""


def read_classes(features: FeatureStore, data: Data, describe: Describe) -> list[ImageClass]:
    """The classes of the usable images, by label.

    Raises:
        UserError: an image has no label; there are fewer than two classes; or a class has no name.
    """
    images: Counter[int | None] = Counter()
    for table in features.tables(["label"]):
        images.update(table["label"].to_pylist())
    if None in images:
        raise UserError(
            f"{images[None]:,} of the {images.total():,} images of {data.uri} have no label; name the column that has "
            "it as data.label_column, or use an image folder with one sub-folder per class"
        )
    labels = sorted(label for label in images if label is not None)
    if len(labels) < 2:
        raise UserError(f"all images of {data.uri} are of one class; VLCP needs at least two")
    names = _names(labels, features, data, describe)
    return [ImageClass(label, names[label], images[label]) for label in labels]


def _names(labels: list[int], features: FeatureStore, data: Data, describe: Describe) -> Mapping[int, str]:
    if describe.class_names is not None:
        lines = read_class_names(describe.class_names)
        if unnamed := [label for label in labels if not 0 <= label < len(lines)]:
            raise UserError(
                f"describe.class_names={describe.class_names} has {len(lines)} lines, one for each class from 0 on, "
                f"but {data.uri} has the label {unnamed[0]}"
            )
        if not FILES.search(data.uri) and len(lines) > len(labels) == labels[-1] + 1:
            shared = features.shared_captions()
            # a label may stand in for a caption, in Parquet without any
            if all(len(shared[label]) == 1 and shared[label] != {str(label)} for label in labels):
                raise UserError(
                    f"describe.class_names={describe.class_names} has {len(lines)} lines, but {data.uri} has "
                    f"{len(labels)} classes, called {', '.join(min(shared[label]) for label in labels[:3])} …; give "
                    "each a line, in this order"
                )
        return dict(enumerate(lines))
    if data.uri.startswith("shapes:"):
        return dict(enumerate(CLASS_NAMES))
    shared = features.shared_captions()
    unnamed = [label for label in labels if len(shared[label]) != 1]
    if unnamed:
        raise UserError(
            f"the images of class {unnamed[0]} of {data.uri} share no caption that could be its name; name a text file "
            "with the name of a class on each line as describe.class_names"
        )
    return {label: next(iter(shared[label])) for label in labels}


@dataclass(frozen=True)
class Descriptions:
    """Where the descriptions of real images come from; travels to reading tasks and actors."""

    describe: Describe
    names: Mapping[int, str]
    """Names of classes, by label."""
    store: Store | None
    """The store that `describe_images` has written to, for "vlm"."""
    version: str = ""
    """When that was; processes that read descriptions hold them for a while."""

    def of(self, row: Mapping[str, Any]) -> list[str]:
        """All descriptions of a row with `shard`, `index`, `captions` and `label`; at least one, none of them blank."""
        if self.describe.source == "captions":
            return [self._prefixed(caption, row["label"]) for caption in row["captions"]]
        return [self.first(row) or self.template(row["label"])]

    def first(self, row: Mapping[str, Any]) -> str:
        """The first description of a row; blank where the model had nothing to say."""
        if self.describe.source == "captions":
            return self._prefixed(row["captions"][0], row["label"])
        if self.describe.source == "template":
            return self.template(row["label"])
        assert self.store is not None
        text = _written(self.store.uri, self.version, row["shard"]).get(row["index"], "")
        return text and self._prefixed(text, row["label"])

    def _prefixed(self, text: str, label: int) -> str:
        return _named(self.describe.prefix, self.names, label) + text

    def template(self, label: int) -> str:
        """The template with the name of the class."""
        return _named(self.describe.template, self.names, label)

    def templates(self) -> dict[int, str]:
        """The template of every class, by label, in the order of the names."""
        return {label: self.template(label) for label in self.names}


def _named(text: str, names: Mapping[int, str], label: int) -> str:
    return text.replace("{class_name}", names.get(label, UNKNOWN))


@lru_cache(maxsize=SHARDS_HELD)
def _written(uri: str, version: str, shard: str) -> dict[int, str]:
    store = Store(uri)
    tables = [store.read_parquet(file, ["index", "description"]) for file in shard_files(store, shard)]
    return {row["index"]: row["description"] for table in tables for row in table.to_pylist()}


def check_names(store: Store, classes: list[ImageClass], setting: str | None) -> None:
    """Refuses to go on with a run whose descriptions speak of classes by other names.

    Raises:
        UserError: They do.
    """
    if store.exists(CLASSES) and store.read_json(CLASSES) != [vars(one) for one in classes]:
        raise UserError(
            f"the classes or their names (describe.class_names={setting}) are not those that this run was begun with; "
            "set run.dir to a new folder"
        )


def describe_images(
    stage: StageDir, data: Data, describe: Describe, classes: list[ImageClass]
) -> StageResult:
    """Has every usable image described, where descriptions are to be written; goes on after the last whole shard.

    Raises:
        UserError: the model has nothing to say of any image.
    """
    stage.store.write_json(CLASSES, [vars(one) for one in classes])
    images = sum(one.images for one in classes)
    described = blank = 0
    tokens: dict[str, int] = {}
    if describe.source == "vlm":
        chunks = map_shards(
            stage,
            list_shards(data),
            data,
            Describer,
            image_px=describe.image_px,
            chunk_pairs=describe.chunk_images,
            pool=actor_pool(describe),
            settings=describe,
            names={one.label: one.name for one in classes},
        )
        for _ in chunks:  # what is refused was listed by the features stage
            pass
        for file in shard_files(stage.store):
            written = stage.store.read_parquet(file, ["description"])["description"].to_pylist()
            described += len(written)
            blank += sum(not text.strip() for text in written)
        tokens = tokens_of(stage.store, shard_files(stage.store))
        if blank == described:
            raise UserError(
                f"describe.model={describe.model} has nothing to say of any image; change describe.instruction, or "
                "choose another model"
            )
    return StageResult(
        rows_in=images,
        rows_out=images,
        extra={"classes": len(classes), "blank_descriptions": blank} | tokens,
    )


class Describer(ChunkActor):
    """Describes a chunk of images, on the GPU if there is one."""

    def __init__(self, store: Store, settings: Describe, names: Mapping[int, str]) -> None:

        from mmdd_ray.models.captioners.captioner import load_captioner

        super().__init__(store)
        device = own_device()
        self.captioner = load_captioner(settings.model, device, "describe.model")
        self.settings, self.names = settings, names

    def work(self, shard: str, number: int, pairs: pa.Table, images_BHWC: np.ndarray) -> pa.Table:
        """A table with `index`, `key` and `description`, which may be blank."""
        labels, before = pairs["label"].to_pylist(), self.captioner.tokens
        with out_of_memory("describe.chunk_images"):
            written = self.captioner.describe(
                [Image.fromarray(image) for image in images_BHWC],
                [_named(self.settings.instruction, self.names, label) for label in labels],
                max_new_tokens=self.settings.max_new_tokens,
            )
        table = pa.table({"index": pairs["index"], "key": pairs["key"], "description": written})
        return with_tokens(table, before, self.captioner.tokens)
