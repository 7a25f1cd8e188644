"""An encoder as a Ray Data actor: chunks of decoded pairs in, feature files out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from mmdd_ray.features.chunks import read_ipc
from mmdd_ray.features.store import chunk_file, feature_table
from mmdd_ray.models.memory import out_of_memory
from mmdd_ray.store import Store

if TYPE_CHECKING:  # 2 s that the driver need not pay
    from torch import Tensor


class Encoder(Protocol):
    """What gives images (B, px, px, 3) uint8 and captions their features, (B, D) float32 each."""

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


class FeatureEncoder:
    """Encodes one chunk a call and writes its features; gives back counts and rejects.

    File name and content depend on the chunk alone, so a call that Ray repeats after a crash changes nothing.
    """

    def __init__(self, source: EncoderSource, store: Store) -> None:
        import torch

        self.encoder = source.load(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.store = store

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` has one row, made by `Chunk.to_row`."""
        chunk: dict[str, Any] = batch.to_pylist()[0]
        pairs, side = read_ipc(chunk.pop("pairs")), chunk.pop("image_px")
        if len(pairs):
            images = np.stack([np.frombuffer(image, np.uint8) for image in pairs["image"].to_pylist()])
            images = images.reshape(-1, side, side, 3)
            captions = [caption for captions in pairs["captions"].to_pylist() for caption in captions]
            with out_of_memory("features.chunk_pairs"):
                image_ND = self.encoder.encode_images(images).cpu().numpy()
                text_PD = self.encoder.encode_texts(captions).cpu().numpy()
            table = feature_table(pairs.drop_columns("image"), chunk["shard"], image_ND, text_PD)
            self.store.write_parquet(chunk_file(chunk["shard"], chunk["number"]), table)
        return pa.Table.from_pylist([{**chunk, "rows_out": len(pairs)}])
