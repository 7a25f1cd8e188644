"""Pairs, and the reasons to refuse one."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import pyarrow as pa

from mmdd_ray.config import Data

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif", "jpe")
PAIR_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("reject", pa.string()),
    ]
)

UNSAID = "neither label nor caption"
NO_LABEL = -1  # as test sets have it whose labels are kept secret
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("shard", "key", "reason")])


@dataclass(frozen=True, slots=True)
class Row:
    """One image-caption pair, or the reason why it is none.

    ``(shard, index)`` is a stable address: ``index`` counts every row of the shard from 0, refused ones
    included. ``image`` holds the encoded file, not yet decoded. A row with ``reject`` set has neither image
    nor captions; its key is empty where the damage hid it.
    """

    shard: str
    index: int
    key: str
    image: bytes | None
    captions: list[str]
    label: int | None
    reject: str | None

    @property
    def name(self) -> str:
        """Shard and key, for people; what tells rows apart is shard and index."""
        return f"{self.shard}/{self.key}"


def digest64(*parts: bytes) -> int:
    """A hash of these parts, an int64: among 3.3 million, two different ones share it with a chance of 3e-7."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return int.from_bytes(found.digest(), "little", signed=True)


def pairs_table(rows: Sequence[Row]) -> pa.Table:
    """``rows`` as an Arrow table of ``PAIR_SCHEMA``."""
    columns = {name: [getattr(row, name) for row in rows] for name in PAIR_SCHEMA.names}
    return pa.table(columns, schema=PAIR_SCHEMA)


def safe_name(text: str) -> str:
    """``text`` as a file name without dots: [A-Za-z0-9_-] only, at most 100 characters.

    A text that had to be changed ends in a hash of the original, so two texts never become one name.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:90].lstrip("-") or "_"
    if name == text:
        return name
    return f"{name}-{hashlib.blake2s(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


class _Reject(Exception):
    """Why a row is refused."""


class RowMaker:
    """Numbers the rows of one shard and refuses, with the reason, those that are no usable pair."""

    def __init__(self, shard: str, data: Data) -> None:
        self.shard = shard
        self.data = data
        self.max_bytes = data.max_member_mib * 2**20
        self.index = 0  # of the next row

    def skip(self, rows: int) -> None:
        """Leaves out ``rows`` rows that nobody asked for; the addresses of later rows stay the same."""
        self.index += rows

    def make(
        self, key: str, image: bytes | None, captions: object, label: object = None, reject: str | None = None
    ) -> Row:
        """The next row. ``captions`` and ``label`` are as found in the file: of any type, or None."""
        key = safe_name(key) if key else ""
        index, self.index = self.index, self.index + 1
        try:
            if reject is not None:
                raise _Reject(reject)
            if label == NO_LABEL:
                label = None
            return Row(
                shard=self.shard,
                index=index,
                key=key,
                image=self._image(image),
                captions=self._captions(captions, label),
                label=_label(label),
                reject=None,
            )
        except _Reject as reason:
            return Row(self.shard, index, key, None, [], None, str(reason))

    def _image(self, image: bytes | None) -> bytes:
        if image is None:
            raise _Reject("missing image")
        if not image:
            raise _Reject("zero-byte image")
        if len(image) > self.max_bytes:
            raise _Reject("member too large")
        if image.startswith(LFS_POINTER):
            raise _Reject("Git LFS pointer")
        return image

    def _captions(self, found: object, label: object) -> list[str]:
        """Captions with white space collapsed; blank ones beside good ones say nothing and are left out.

        Where none is needed, the label stands in for one that is not there.
        """
        texts = [found] if isinstance(found, str | bytes) else found or []
        if not isinstance(texts, list | tuple):
            raise _Reject("caption is not text")
        texts = [text for text in texts if text is not None]
        captions = [caption for text in texts if (caption := " ".join(_text(text).split()))]
        if not captions and label is not None and not self.data.needs_captions:
            return [str(label)]
        if not texts and not self.data.needs_captions:
            raise _Reject(UNSAID)
        if not captions:
            raise _Reject("blank caption" if texts else "missing caption")
        if max(map(len, captions)) > self.data.max_caption_chars:
            raise _Reject("caption too long")
        return captions


def _text(found: object) -> str:
    try:
        text = found.decode("utf-8-sig") if isinstance(found, bytes) else found
        if isinstance(text, str):
            text.encode()  # JSON can smuggle in lone surrogates, which Arrow cannot store
            if "\0" in text:  # UTF-16 without a byte order mark
                raise _Reject("caption is not UTF-8")
            return text
    except UnicodeError:
        raise _Reject("caption is not UTF-8") from None
    raise _Reject("caption is not text")


def _label(found: object) -> int | None:
    if not is_label(found):
        raise _Reject("label is not an integer")
    return found


def is_label(found: object) -> TypeGuard[int | None]:
    """Whether ``found`` is a class, an integer of 64 bits, or None for no class."""
    if found is None:
        return True
    return isinstance(found, int) and not isinstance(found, bool) and -(2**63) <= found < 2**63
