"""Arrays and a few facts about them in one safetensors file: equal content gives equal bytes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

_LENGTH_BYTES = 8  # of the JSON header, a little-endian number


def pack(kind: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of the arrays, whose metadata hold the facts as JSON under the name `kind`.

    One entry, because safetensors writes several in random order.
    """
    contiguous = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    return save(contiguous, {kind: json.dumps(facts)})


def unpack(kind: str, content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and facts that `pack` was given.

    Raises:
        ValueError: the bytes are no safetensors file, or one of another kind.
    """
    try:
        arrays = load(content)
    except SafetensorError as error:
        raise ValueError(f"this is no safetensors file: {error}") from error
    header = json.loads(content[_LENGTH_BYTES:][: int.from_bytes(content[:_LENGTH_BYTES], "little")])
    facts = header.get("__metadata__", {})
    if kind not in facts:
        raise ValueError(f"this safetensors file holds no {kind.replace('_', ' ')}")
    return arrays, json.loads(facts[kind])
