"""Token counts of captions, in the metadata of their files. Imports no torch."""

import json
from collections.abc import Iterable

import pyarrow as pa

from mmdd_ray.storage.store import Store

TOKENS = b"tokens"


def with_tokens(table: pa.Table, before: tuple[int, int], after: tuple[int, int]) -> pa.Table:
    """The table with the token counts of a ``Captioner`` since ``before`` in its metadata."""
    spent = [now - then for now, then in zip(after, before, strict=True)]
    return table.replace_schema_metadata({TOKENS: json.dumps(spent)})


def tokens_of(store: Store, files: Iterable[str]) -> dict[str, int]:
    """Tokens that all of these files took, for a manifest."""
    read, written = 0, 0
    for file in files:
        spent = json.loads(store.parquet_metadata(file).get(TOKENS, b"[0, 0]"))
        read, written = read + spent[0], written + spent[1]
    return {"prompt_tokens": read, "completion_tokens": written}
