"""trackio."""

import os
from collections.abc import Sequence

import trackio

from mmdd_ray.engine.trackers.tracker import PROJECT, About, Point, to_image


class TrackioRun:
    """trackio; a Space that it makes is private."""

    def __init__(self, about: About, key: str | None) -> None:
        self.key = key or f"{about.name}-{os.urandom(3).hex()}"
        self._run = trackio.init(
            project=PROJECT,
            name=self.key,
            config=dict(about.settings),
            resume="allow",
            private=True,
            embed=False,
        )

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log(point.named(), step=point.step)

    def picture(self, name: str, png: bytes) -> None:
        self._run.log({name: trackio.Image(to_image(png))}, step=0)

    def flush(self) -> None:
        pass  # it sends by itself

    def close(self, finished: bool) -> None:
        self._run.finish()
