"""Numbered batches of rows, shared out among a pool of actors: the same files whoever does which batch.

Batches are cut by the order of the rows, so floating-point sums do not depend on who was free. A finished batch is
a Parquet file named by its number and written whole: a batch that Ray repeats changes nothing, and a restarted run
does only what is missing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mmdd_ray.engine.cluster import ActorPool, missing, retry_faults
from mmdd_ray.engine.memory import peak_bytes
from mmdd_ray.engine.progress import progress
from mmdd_ray.storage.store import Store

FOLDER = "batches"

Rows = list[dict[str, Any]]


class BatchActor(ABC):
    """An actor of the pool."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @abstractmethod
    def work(self, number: int, rows: Rows) -> pa.Table:
        """The result of the rows of a batch."""

    def __call__(self, batch: pa.Table) -> dict[str, list[int]]:
        """Works off one batch and writes its file."""
        (row,) = batch.to_pylist()
        self._store.write_parquet(_file(row["number"]), self.work(row["number"], row["rows"]))
        return {"rows": [len(row["rows"])], "peak_bytes": [peak_bytes()]}


def run_batches(
    name: str,
    rows: Sequence[dict[str, Any]],
    actor: type[BatchActor],
    *,
    batch_rows: int,
    unit: str,
    store: Store,
    pool: ActorPool,
    **arguments: Any,
) -> None:
    """Has every batch of `rows` worked off into `store`; read the results with `read_batches`.

    Args:
        name: Of the progress line, which counts rows in `unit`.
        actor: Constructed with `store` and `arguments`.
        batch_rows: Rows of a batch, part of the result.
    """
    import ray.data  # here, since what an actor does is measured and tested where there is no Ray

    batches = [rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows)]
    todo = [number for number in range(len(batches)) if not store.exists(_file(number))]
    with progress(name, total=len(rows), unit=unit, missing=missing) as bar:
        bar.resume(len(rows) - sum(len(batches[number]) for number in todo))
        if not todo:
            return
        items = [{"number": number, "rows": batches[number]} for number in todo]
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        retry_faults(dataset)
        done = dataset.map_batches(
            actor,
            fn_constructor_kwargs={"store": store, **arguments},
            batch_size=1,
            batch_format="pyarrow",
            **pool,
        )
        for row in done.iter_rows():
            bar.note_memory(row["peak_bytes"])
            bar.update(row["rows"])


def read_batches(store: Store, columns: list[str] | None = None) -> pa.Table:
    """The results of all batches, in their order; all columns, or those."""
    return pa.concat_tables(store.read_parquet(name, columns) for name in batch_files(store))


def batch_files(store: Store) -> list[str]:
    """The files of all batches, in their order."""
    return store.files(FOLDER)


def _file(number: int) -> str:
    return f"{FOLDER}/{number:06d}.parquet"
