"""An encoder as a Ray Data actor: chunks of decoded pairs in, feature files out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from mmdd_ray.engine.devices import own_device
from mmdd_ray.engine.memory import out_of_memory
from mmdd_ray.features.shard_pool import ChunkActor
from mmdd_ray.features.store import feature_table
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:  # 2 s that the driver need not pay
    from torch import Tensor


class Encoder(Protocol):
    """An encoder of images (B, px, px, 3) uint8 and captions into features, (B, D) float32 each."""

    def encode_images(self, images_BHWC: np.ndarray, /) -> "Tensor": ...

    def encode_texts(self, captions: Sequence[str], /) -> "Tensor": ...


class EncoderSource(Protocol):
    """A picklable description of an encoder, which actors load."""

    @property
    def name(self) -> str:
        """Says which encoder features are of."""
        ...

    def load(self, device: Any) -> Encoder: ...


@dataclass(frozen=True)
class ClipSource:
    """A CLIP model, by its name."""

    name: str

    def load(self, device: Any) -> Encoder:
        from mmdd_ray.models.clip import load_clip

        return load_clip(self.name, device)


class FeatureEncoder(ChunkActor):
    """Encodes one chunk a call, on the GPU if there is one."""

    def __init__(self, store: Store, source: EncoderSource) -> None:

        super().__init__(store)
        self.encoder = source.load(own_device())

    def work(self, shard: str, number: int, pairs: pa.Table, images_BHWC: np.ndarray) -> pa.Table:
        """A table as `feature_table` makes it."""
        captions = [caption for captions in pairs["captions"].to_pylist() for caption in captions]
        with out_of_memory("features.chunk_pairs"):
            image_ND = self.encoder.encode_images(images_BHWC).cpu().numpy()
            text_PD = self.encoder.encode_texts(captions).cpu().numpy()
        return feature_table(pairs, shard, image_ND, text_PD)
