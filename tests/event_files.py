"""Reads TensorBoard's event files: TFRecords whose checksums are checked, each with an Event."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reversed


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit."""
    found = 0xFFFFFFFF
    for byte in content:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ _POLYNOMIAL * (found & 1)
    return found ^ 0xFFFFFFFF


def _masked(content: bytes) -> int:
    found = crc32c(content)
    return ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(content: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file."""
    at = 0
    while at < len(content):
        (length, of_length) = struct.unpack("<QI", content[at : at + 12])
        assert of_length == _masked(content[at : at + 8])
        record = content[at + 12 : at + 12 + length]
        (of_record,) = struct.unpack("<I", content[at + 12 + length : at + 16 + length])
        assert of_record == _masked(record)
        yield record
        at += 16 + length


class Events:
    """The scalars, as (step, value), and the encoded pictures of all event files of a folder, by tag."""

    def __init__(self, folder: Path) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.pictures: dict[str, bytes] = {}
        self.files = sorted(folder.glob("events.out.tfevents.*")) if folder.exists() else []
        for file in self.files:
            for record in records(file.read_bytes()):
                event = Event.FromString(record)
                for value in event.summary.value:
                    if value.HasField("image"):
                        self.pictures[value.tag] = value.image.encoded_image_string
                    else:
                        self.scalars[value.tag].append((event.step, value.simple_value))
