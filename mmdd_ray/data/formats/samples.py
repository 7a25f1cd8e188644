"""Samples as WebDataset has them: files of one key, told apart by suffix, in a tar or beside each other in a folder."""

import json
import re
from ast import literal_eval
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from token import STRING
from tokenize import TokenError, generate_tokens
from typing import Any

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import Seen
from mmdd_ray.data.pair import IMAGE_SUFFIXES, Row, RowMaker, is_label
from mmdd_ray.data.shard import Texts

TEXT_SUFFIXES = ("txt", "json", "cls")
READ_SUFFIXES = (*IMAGE_SUFFIXES, *TEXT_SUFFIXES)
SAMPLES_SHOWN = 2


def last_suffix(suffix: str) -> str:
    """The part of a suffix behind its last dot: ``jpg`` of ``input.jpg``."""
    return suffix.rpartition(".")[2]


@dataclass(slots=True)
class Sample:
    """The members of one key. ``parts`` by lower-case suffix, from the first dot on; b"" for those not read."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    reject: str | None = None

    def images(self, data: Data) -> list[str]:
        """Suffixes of the members that could be its image: one, unless it is unclear which of several is."""
        if data.names_image_column:
            return [data.image_column.lower()] if data.image_column.lower() in self.parts else []
        plain = [suffix for suffix in IMAGE_SUFFIXES if suffix in self.parts]
        return plain or [suffix for suffix in self.parts if last_suffix(suffix) in IMAGE_SUFFIXES]

    def member(self, kind: str) -> bytes | None:
        """The member of this suffix, or else the only one whose suffix ends in it, as ``caption.txt``."""
        if kind in self.parts:
            return self.parts[kind]
        found = [suffix for suffix in self.parts if last_suffix(suffix) == kind]
        return self.parts[found[0]] if len(found) == 1 else None

    def image(self, data: Data) -> bytes | None:
        """The encoded image; where there are several, sets ``reject``."""
        found = self.images(data)
        if len(found) > 1:
            self.reject = self.reject or "several images in one sample"
        return self.parts[found[0]] if found else None

    def record(self) -> dict[str, Any]:
        """The fields of its .json member, none if there is none; sets ``reject`` if it is unreadable."""
        content = self.member("json")
        if content is None or self.reject is not None:
            return {}
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self.reject = "unreadable json"
            return {}
        return record

    def label(self, record: dict[str, Any], data: Data) -> object:
        """The value under ``data.label_column`` in the JSON record, or else the .cls member.

        A text in .cls is no class, which matters where a label stands in for captions.
        """
        if (found := record.get(data.label_column)) is not None or not data.label_column:
            return found
        text = (self.member("cls") or b"").decode(errors="replace").strip()
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            return int(text)
        return None if data.needs_captions else text or None

    def captions(self, record: dict[str, Any], data: Data, texts: Texts) -> object:
        """The value that the JSON record has under ``data.caption_columns``, then the .txt member: the first not blank.

        If all are blank, the first there is; None if there is none.
        """
        text: object = self.member("txt")
        if texts == "lines" and isinstance(text, bytes):
            text = text.splitlines()
        candidates = [*(record.get(name) for name in data.caption_columns), text]
        found = [candidate for candidate in candidates if candidate is not None]
        said = (candidate for candidate in found if is_text(candidate) and not is_blank(candidate))
        return next(said, found[0] if found else None)

    def says_two_things(self, record: dict[str, Any], data: Data) -> bool:
        """Whether its .txt and its JSON record have different captions."""
        own = self.captions(record, data, "whole")
        text = (self.member("txt") or b"").decode(errors="replace").split()
        return bool(text) and isinstance(own, str) and own.split() != text


def sample_row(sample: Sample, maker: RowMaker, texts: Texts, folder_label: int | None = None) -> Row:
    """The row that a sample is; its label is that of its folder, if it has none of its own."""
    record = sample.record()
    captions, label = sample.captions(record, maker.data, texts), sample.label(record, maker.data)
    label = folder_label if label is None else label
    image = sample.image(maker.data)  # may set the reason to refuse it
    return maker.make(sample.key, image, captions, label, sample.reject)


def _is_json(content: bytes | None) -> bool:
    try:
        json.loads(content or b"")
    except (ValueError, RecursionError):
        return False
    return True


def is_blank(found: object) -> bool:
    """Whether a caption, or each of a list, says nothing."""
    texts = found if isinstance(found, list) else [found]
    return not any(text.strip() if isinstance(text, str | bytes) else text is not None for text in texts)


def is_text(found: object) -> bool:
    """Whether it is a text, or a list with one."""
    return any(isinstance(text, str | bytes) for text in (found if isinstance(found, list) else [found]))


def all_listed(texts: Sequence[object]) -> bool:
    """Whether all texts that are not blank are lists of texts, as JSON or Python write them."""
    said = [text for text in texts if not is_blank(text)]
    listed = [listed_texts(text) if isinstance(text, str) else None for text in said]
    return None not in listed and any(listed)


def listed_texts(text: str) -> list[str | None] | None:
    """The list of texts that a text is, as JSON, Python or NumPy (without commas) write one; None for any other."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
        return found if all(isinstance(one, str | None) for one in found) else None
    except (ValueError, RecursionError):
        return _python_texts(text)


def _python_texts(text: str) -> list[str | None] | None:
    """By its tokens, as two texts side by side would become one if Python read them."""
    found: list[str | None] = []
    try:
        tokens = [one for one in generate_tokens(StringIO(text.strip()).readline) if one.string.strip()]
    except (TokenError, SyntaxError):
        return None
    if [token.string for token in (*tokens[:1], *tokens[-1:])] != ["[", "]"]:
        return None
    for token in tokens[1:-1]:
        if token.type == STRING and token.string[0] in "'\"":
            found.append(literal_eval(token.string))
        elif token.string == "None":
            found.append(None)
        elif token.string != ",":
            return None
    return found


class Judge:
    """Looks at the samples at the head of a source and tells whether the settings fit them."""

    def __init__(self, where: str, data: Data) -> None:
        self._where, self._data = where, data
        self._rows = self._judged = self._fitting = self._differing = 0
        self._lines: list[int] = []  # of each .txt
        self._suffixes: set[str] = set()
        self._json_keys: set[str] = set()
        self._keys: list[str] = []
        self._several: list[str] = []
        self._odd: object = None  # caption that is no text
        self._reasons: Counter[str] = Counter()  # why samples with all members are refused
        self._no_labels: list[object] = []  # of samples that are pairs otherwise

    def skip(self) -> None:
        """Counts a sample that proves nothing, as it is damaged or cut off."""
        self._rows += 1

    def look(self, sample: Sample) -> None:
        """Counts a sample."""
        self._rows += 1
        data, was_whole, record = self._data, sample.reject is None, sample.record()
        if sample.reject is not None:
            if was_whole and _is_json(sample.member("json")):  # a list, say; damage proves nothing
                self._judged += 1
                self._reasons["JSON is no object"] += 1
            return
        self._judged += 1
        self._keys.append(sample.key)
        self._suffixes |= sample.parts.keys()
        self._json_keys |= record.keys()
        if (text := sample.member("txt")) is not None:
            self._lines.append(sum(map(bool, map(bytes.strip, text.splitlines()))))
        label, images = sample.label(record, data), sample.images(data)
        captions = sample.captions(record, data, "whole")
        says = is_text(captions)
        self._odd = self._odd if says or captions is None else captions
        if len(images) > 1:
            self._several = self._several or images
        elif images and (says or not (label is None or data.needs_captions)):
            if not is_label(label):
                self._no_labels.append(label)
            elif reject := sample_row(sample, RowMaker("", data), "whole").reject:
                self._reasons[reject] += 1
            else:
                self._fitting += 1
                self._differing += sample.says_two_things(record, data)

    def seen(self) -> Seen:
        """The verdict on all of them."""
        if not self._judged:
            return Seen(self._rows)
        if not self._fitting:
            return Seen(self._rows, complaint=self._complaint())
        return Seen(
            self._rows, fits=True, texts=self._texts(), may_differ=bool(self._lines), notes=self._notes()
        )

    def _texts(self) -> Texts:
        return "lines" if self._lines and min(self._lines) > 1 else "whole"

    def _notes(self) -> tuple[str, ...]:
        notes = []
        several = sum(lines > 1 for lines in self._lines)
        if self._texts() == "lines":
            notes.append("each line of a .txt is a caption")
        elif several:
            notes.append(
                f"{several} of the first {len(self._lines)} .txt have several lines and the others one: the lines "
                "of each are read as one caption"
            )
        if self._differing:
            keys = ", ".join(self._data.caption_columns)
            notes.append(
                f"of {self._differing} of the first {self._judged} samples, JSON ({keys}) and .txt differ: JSON is "
                "read; for .txt give --data.caption_columns without a name"
            )
        return tuple(notes)

    def _complaint(self) -> str:
        data, where = self._data, self._where
        found = f"found members {', '.join('.' + suffix for suffix in sorted(self._suffixes))}"
        found += f" and JSON keys {sorted(self._json_keys)}"
        if self._several:
            return (
                f"samples of {where} have several images: .{', .'.join(self._several)}; name one, e.g. "
                f"data.image_column={self._several[0]}"
            )
        if self._no_labels:
            holder = f"data.label_column={data.label_column!r}"
            if data.label_column not in self._json_keys:
                holder = ".cls"
            return (
                f"{holder} holds {self._no_labels[0]!r:.50} in {where}, not integers; name another key as "
                f"data.label_column, or '' for none: found JSON keys {sorted(self._json_keys)}"
            )
        if len(set(self._keys)) < len(self._keys):
            twice = next(key for key in self._keys if self._keys.count(key) > 1)
            return (
                f"the members of a sample are not neighbours in {where}, e.g. those of {twice!r}; write it anew "
                "in the order of names (tar --sort=name)"
            )
        if self._reasons:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
            return f"none of the first {self._judged} samples of {where} can be used: {reasons}"
        if self._odd is not None:
            return f"captions of {where} are no texts, e.g. {self._odd!r:.80}; name another key as data.caption_columns"
        dotted = next((suffix for suffix in sorted(self._suffixes) if "." in suffix), None)
        if data.names_image_column:
            return f"no sample of {where} has data.image_column={data.image_column!r}: {found}"
        return (
            f"none of the first {self._judged} samples of {where} has both an image ({', '.join(IMAGE_SUFFIXES)}) "
            f"and captions (txt, or json with {', '.join(data.caption_columns)}); {found}"
            + ("; a key ends at the first dot of its name" if dotted else "")
        )
