"""TensorBoard's event files, written by tensorboardX."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from mmdd_ray.engine.trackers.tracker import Point, plain, to_image
from mmdd_ray.storage.store import Store

FOLDER = "tensorboard"
FLUSH_S = 10


class TensorBoardFiles:
    """Event files below ``tensorboard/`` in the run directory: written there, or uploaded after each stage.

    Each attempt at a run has a file of its own, which begins with the first value.
    """

    key = ""

    def __init__(self, run: Store) -> None:
        self._folder = run.child(FOLDER)
        self._temporary = None if run.is_local else tempfile.TemporaryDirectory(prefix="mmdd-tensorboard-")
        self._written = Path(self._temporary.name if self._temporary else self._folder.uri)
        self._open: Any = None

    def _writer(self) -> Any:
        if self._open is None:
            from tensorboardX import SummaryWriter

            own = f".{uuid4().hex[:8]}"  # files are named by the second, and two attempts may share one
            self._open = SummaryWriter(str(self._written), flush_secs=FLUSH_S, filename_suffix=own)
        return self._open

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.named().items():
                self._writer().add_scalar(plain(name), value, point.step)

    def picture(self, name: str, png: bytes) -> None:
        pixels_HWC = np.asarray(to_image(png).convert("RGB"))
        self._writer().add_image(plain(name), pixels_HWC, dataformats="HWC")

    def flush(self) -> None:
        if self._open is None:
            return
        self._open.flush()
        if self._temporary:
            for file in self._written.iterdir():
                self._folder.write_bytes(file.name, file.read_bytes())

    def close(self, finished: bool) -> None:
        if self._open is not None:
            self.flush()
            self._open.close()
        if self._temporary:
            self._temporary.cleanup()
