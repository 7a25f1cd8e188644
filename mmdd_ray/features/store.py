"""The feature store: Parquet files of CLIP features, one per chunk of a shard, and their moments.

Files are `pairs/<shard>/<chunk>.parquet`, so that their sorted order is the order of the dataset.
"""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa

from mmdd_ray.data.class_names import shared_captions
from mmdd_ray.data.inventory import require_rows
from mmdd_ray.features.agreement import Agreeing, images_of, pair_numbers, score_table
from mmdd_ray.features.coresets import joint_features, pair_scores
from mmdd_ray.features.moments import Moments, MomentsSum
from mmdd_ray.features.vectors import vector_column, vectors
from mmdd_ray.storage.store import Store

FEATURES = ["captions", "image", "text"]  # columns of a chunk that features are read from
MOMENTS = "moments.safetensors"
DUPLICATES = "duplicates.parquet"
SCORES = "scores"  # of the pairs of each shard, where the moments are those of a share of the pairs
AGREEMENT = "agreement.json"  # and the score from which on a pair is one of them


def chunk_file(shard: str, number: int) -> str:
    """Where the features of a chunk lie in the store."""
    return f"pairs/{shard}/{number:05d}.parquet"


def score_file(shard: str) -> str:
    """Where the scores of a shard's pairs lie in the store."""
    return f"{SCORES}/{shard}.parquet"


def shard_of(file: str) -> str:
    """The shard that a chunk's file is of."""
    return file.split("/")[1]


def shard_files(store: Store, shard: str = "") -> list[str]:
    """The files of a shard's chunks, or of all, in the order of the dataset."""
    return [name for name in store.files(f"pairs/{shard}".rstrip("/")) if name.endswith(".parquet")]


def feature_table(pairs: pa.Table, shard: str, image_ND: np.ndarray, text_PD: np.ndarray) -> pa.Table:
    """A chunk as a table: one row per image, whose `text` column holds a feature for each of its captions.

    Args:
        pairs: The columns index, key, captions, label and more of N images.
        shard: Where they come from.
        image_ND: Image features, stored as float16.
        text_PD: Features of all captions, image by image.
    """
    offsets = pa.array(np.cumsum([0, *_counts(pairs)]), pa.int32())
    text = pa.ListArray.from_arrays(offsets, vector_column(text_PD.astype(np.float16)))
    table = pairs.add_column(0, "shard", pa.array([shard] * len(pairs), pa.string()))
    return table.append_column("image", vector_column(image_ND.astype(np.float16))).append_column(
        "text", text
    )


def image_features(table: pa.Table) -> np.ndarray:
    """(N, D) float16."""
    return vectors(table["image"], np.float16)


def text_features(table: pa.Table) -> np.ndarray:
    """(P, D) float16, all captions of the first image, then of the second, and so on."""
    return vectors(table["text"].combine_chunks().flatten(), np.float16)


def _on_disk(blocks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The blocks as one that the system reads as it is looked at; none, if there are none. Its file is gone with it."""
    rows, width = 0, 0
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
            rows, width = rows + len(block), block.shape[1]
        file.flush()
        # mapped as if it could be written to, though nobody does: torch warns of what cannot
        return [np.memmap(file, np.float16, "r+", shape=(rows, width))] if rows else []


def _counts(table: pa.Table) -> np.ndarray:
    """(N,) number of captions of each image."""
    return table["captions"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)


def add_table(total: MomentsSum, table: pa.Table, weight_P: np.ndarray | None = None) -> None:
    """Adds a chunk's pairs, from the features as they are stored; weighted, if there are weights."""
    total.add(_image_features_of_pairs(table), text_features(table), weight_P)


def table_pairs(table: pa.Table) -> np.ndarray:
    """Numbers of a chunk's pairs within their shard, (P,) int64."""
    return pair_numbers(table["index"].to_numpy(), _counts(table))


def table_scores(table: pa.Table) -> pa.Table:
    """How far image and caption of a chunk's pairs agree, by the features as they are stored."""
    scores = pair_scores(_image_features_of_pairs(table), text_features(table))
    return score_table(table_pairs(table), scores)


def _image_features_of_pairs(table: pa.Table) -> np.ndarray:
    """(P, V): an image with c captions is c pairs."""
    image_ND, count_N = image_features(table), _counts(table)
    return image_ND if (count_N == 1).all() else np.repeat(image_ND, count_N, axis=0)


class Addresses(Sequence[tuple[str, int]]):
    """(shard, index) of each row, where the source has it; 12 bytes a row."""

    def __init__(self, shards: pa.ChunkedArray, indices: pa.ChunkedArray) -> None:
        self._shards, self._indices = shards, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, row: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, row: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, row: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(row, slice):
            return [self[at] for at in range(len(self))[row]]
        return self._shards[row].as_py(), self._indices[row].as_py()


class StoredImage(NamedTuple):
    """An image of the dataset."""

    address: tuple[str, int]
    """(shard, index), where the source has it."""
    feature: np.ndarray
    """(D,) float16."""


class FeatureStore:
    """Reads a committed feature stage. Rows are images, numbered in the order of the dataset.

    What it gives of all rows takes no memory that grows with them, but for some bytes a row: features lie in a file of
    the machine's temporary folder (TMPDIR), 2 kB a row at 512 + 512 features, 7 GB for CC3M.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def files(self) -> list[str]:
        """Paths of the chunks, in the order of the dataset."""
        return shard_files(self._store)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The chunks, one at a time."""
        for name in self.files:
            yield self._store.read_parquet(name, columns)

    def moments(self, encoder: str | None = None) -> Moments:
        """Moments of all pairs, or of those that agree best where features.clip_score_fraction is below 1; with
        `encoder`, checks that they are of that CLIP model."""
        return Moments.from_bytes(self._store.read_bytes(MOMENTS), encoder)

    def scores(self, shard: str | None = None) -> dict[str, pa.Table]:
        """Scores of the pairs of one shard or of all, by shard, without duplicates."""
        repeated: dict[str, list[int]] = defaultdict(list)
        for name, index in self.duplicates():
            repeated[name].append(index)
        files = [score_file(shard)] if shard else self._store.files(SCORES)
        found = {}
        for file in files:
            name, table = Path(file).stem, self._store.read_parquet(file)
            if name in repeated:
                is_repeated = np.isin(images_of(table["pair"].to_numpy()), repeated[name])
                table = table.filter(pa.array(~is_repeated))
            found[name] = table
        return found

    def agreeing(self, shard: str | None = None) -> Agreeing:
        """The pairs of one shard or of all whose moments these are, where features.clip_score_fraction is below 1."""
        return Agreeing.of(self.scores(shard), self._store.read_json(AGREEMENT)["threshold"])

    def duplicates(self) -> list[tuple[str, int]]:
        """(shard, index) of the rows that were left out because an earlier one has their image, captions and label."""
        table = self._store.read_parquet(DUPLICATES, ["shard", "index"])
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    @cached_property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """(shard, index) of each row, where the source has it."""
        shards, indices = [], []
        for table in self.tables(["shard", "index"]):
            shards += table["shard"].dictionary_encode().chunks
            indices += table["index"].chunks
        kind = pa.dictionary(pa.int32(), pa.string())
        return Addresses(pa.chunked_array(shards, kind), pa.chunked_array(indices, pa.int64()))

    def shared_captions(self, at_least: int = 1) -> dict[int | None, set[str]]:
        """As the function of that name."""
        tables = self.tables(["label", "captions"])
        pairs = (pair for t in tables for pair in zip(*(c.to_pylist() for c in t.columns), strict=True))
        return shared_captions(pairs, at_least)

    def require(self, needs: Mapping[str, int], uri: str) -> None:
        """Finds before expensive work that there are too few rows for what comes after it.

        Args:
            needs: Rows by the setting that asks for them.
            uri: Of the source, for the message.

        Raises:
            UserError: There are fewer; names the setting.
        """
        require_rows(len(self.addresses), needs, uri)

    def clip_scores(self, class_texts: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
        """CLIP score of every row, (rows,) float32; one pass, and no features in memory.

        Args:
            class_texts: Text feature (D,) of each label, to compare the images of that label with. Default: an image
                is compared with its first caption, the only one that students of a coreset see.
        """

        def scores(table: pa.Table) -> np.ndarray:
            if class_texts is not None:
                text = np.stack([class_texts[label] for label in table["label"].to_pylist()])
            else:
                text = text_features(table)[np.cumsum([0, *_counts(table)[:-1]])]
            return pair_scores(image_features(table), text)

        columns = FEATURES if class_texts is None else ["label", "image"]
        return np.concatenate([scores(table) for table in self.tables(columns) if len(table)])

    def joint_features(self) -> list[np.ndarray]:
        """Blocks of [image, mean text] rows, each part of unit norm, float16: what coresets of pairs are chosen by."""

        def joint(table: pa.Table) -> np.ndarray:
            starts = np.cumsum([0, *_counts(table)[:-1]])
            text = np.add.reduceat(text_features(table).astype(np.float32), starts)
            return joint_features(image_features(table), text).astype(np.float16)

        return _on_disk(joint(table) for table in self.tables(FEATURES) if len(table))

    def caption_features(self) -> list[np.ndarray]:
        """Blocks of the text features of all captions, (P, D) float16."""
        return _on_disk(map(text_features, self.tables(["text"])))

    @cached_property
    def n_captions(self) -> int:
        """P, the number of captions of all rows."""
        return sum(int(_counts(table).sum()) for table in self.tables(["captions"]) if len(table))

    def captions_at(self, numbers: np.ndarray) -> list[tuple[str, str]]:
        """(caption, shard/key of its image) of the captions with these numbers among all, in their order."""
        found: dict[int, tuple[str, str]] = {}
        wanted, start = np.unique(numbers), 0
        for table in self.tables(["shard", "key", "captions"]):
            counts = _counts(table)
            ends = start + np.cumsum(counts)
            stop = int(ends[-1]) if len(ends) else start
            for number in wanted[(wanted >= start) & (wanted < stop)].tolist():
                row = int(np.searchsorted(ends, number, side="right"))
                captions = table["captions"][row].as_py()
                name = f"{table['shard'][row].as_py()}/{table['key'][row].as_py()}"
                found[number] = captions[number - (int(ends[row]) - len(captions))], name
            start = stop
        return [found[number] for number in numbers.tolist()]

    def image_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features (R, D) float16 of the images of each chunk, and (R,) int64 digests of their files."""
        for table in self.tables(["image_digest", "image"]):
            if len(table):
                yield image_features(table), table["image_digest"].to_numpy()

    def image_digests(self) -> np.ndarray:
        """(rows,) int64 digests of the image files."""
        columns = [table["image_digest"].to_numpy() for table in self.tables(["image_digest"])]
        return np.concatenate([np.empty(0, np.int64), *columns])

    def images_of(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], StoredImage]:
        """The images with these shard/keys and captions, without those that no row has.

        Reads the keys and captions of the shards that are named, and features of the chunks that have one of the rows.
        """
        left = set(wanted)
        shards = {name.partition("/")[0] for name, _ in left}
        found: dict[tuple[str, str], StoredImage] = {}
        for file in self.files:
            shard = shard_of(file)
            if shard not in shards or not left:
                continue
            table = self._store.read_parquet(file, ["key", "captions"])
            said = zip(table["key"].to_pylist(), table["captions"].to_pylist(), strict=True)
            rows = {}
            for row, (key, captions) in enumerate(said):
                for one in {(f"{shard}/{key}", caption) for caption in captions} & left:
                    rows[one] = row
            if rows:
                table = self._store.read_parquet(file, ["index", "image"])
                feature_ND = image_features(table)
                for one, row in rows.items():
                    found[one] = StoredImage((shard, table["index"][row].as_py()), feature_ND[row])
                left -= rows.keys()
        return found
