"""Refused rows: listed with their reasons, and judged against the share of rows that may be refused."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from mmdd_ray.data.pair import REJECT_SCHEMA
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

REJECTS = "rejects.parquet"
REASONS_SHOWN = 3
# A source whose size is not known is judged by this many rows, 20 shards of CC3M. They come in the order in which
# readers finish, so with fewer one bad shard that is read first would stop a good source.
ROWS_TO_JUDGE = 200_000

Reject = tuple[str, str, str]
"""Shard, key and reason of a row that is no usable pair."""


def most_frequent(reasons: Counter[str]) -> str:
    """The commonest reasons with their counts, for a message."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(REASONS_SHOWN))


class RejectList:
    """The refused rows of one stage, on file in its folder; the run's own file is that of all its stages.

    Saving replaces the stage's rows, so a resumed stage lists nothing twice. Without a run nothing is saved: another
    stage has read the same source and listed its rows.
    """

    def __init__(self, stage: Store, run: Store | None) -> None:
        self.rows: list[Reject] = []
        self._stage, self._run = stage, run

    @property
    def path(self) -> str:
        """Path of the file that a user looks at."""
        return redact((self._run or self._stage).path(REJECTS))

    def save(self) -> None:
        if self._run is None:
            return
        rows = [dict(zip(REJECT_SCHEMA.names, row, strict=True)) for row in self.rows]
        self._stage.write_parquet(REJECTS, pa.Table.from_pylist(rows, REJECT_SCHEMA))
        files = [name for folder in self._run.entries() if self._run.exists(name := f"{folder}/{REJECTS}")]
        self._run.write_parquet(REJECTS, pa.concat_tables(map(self._run.read_parquet, files)))


class RejectBudget:
    """Counts the rows of one source, and stops a run whose source is mostly broken.

    Args:
        source: The setting that names the source, for the message.
        max_ratio: Share of the rows that may be refused.
        listed: Takes the refused rows.
        total_rows: Rows of the source, where they are known before it is read.
    """

    def __init__(self, source: str, max_ratio: float, listed: RejectList, total_rows: int | None) -> None:
        self.rows_in = 0
        self.reasons: Counter[str] = Counter()
        self._source, self._max_ratio, self._listed = source, max_ratio, listed
        self._least_rows = ROWS_TO_JUDGE if total_rows is None else total_rows

    def add(self, rows_in: int, rejects: Iterable[Reject]) -> None:
        """Counts `rows_in` rows, refused ones included, and stops when the rows to come cannot mend it.

        Raises:
            UserError: More rows were refused already than the whole source, or a large sample of it, may have.
        """
        refused = list(rejects)
        self.rows_in += rows_in
        self.reasons.update(reason for *_, reason in refused)
        self._listed.rows += refused
        self._judge(max(self.rows_in, self._least_rows))

    def judge(self) -> None:
        """Judges a source that was read to its end.

        Raises:
            UserError: More of its rows were refused than allowed.
        """
        self._judge(self.rows_in)

    def _judge(self, rows: int) -> None:
        rejected = self.reasons.total()
        if rejected > self._max_ratio * rows:
            self._listed.save()
            raise UserError(
                f"{self._source}: {rejected:,} of the first {self.rows_in:,} rows were refused "
                f"({most_frequent(self.reasons)}), more than data.max_reject_ratio={self._max_ratio:g} allows; "
                f"look at {self._listed.path}, and mend the data or raise that setting"
            )
