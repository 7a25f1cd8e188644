"""Weights & Biases."""

import os
from collections.abc import Sequence

import wandb

from mmdd_ray.engine.trackers.tracker import PROJECT, About, Point, to_image


class WandbRun:
    """Weights & Biases; each group of curves has its own steps."""

    def __init__(self, about: About, key: str | None) -> None:
        self._groups = set[str]()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=about.name,
            id=key,
            resume="allow",
            config=dict(about.settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.key = str(self._run.id)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            step = f"{point.group}/step"
            if point.group not in self._groups:
                self._groups.add(point.group)
                self._run.define_metric(step, hidden=True)
                self._run.define_metric(f"{point.group}/*", step_metric=step)
            self._run.log({step: point.step, **point.named()})

    def picture(self, name: str, png: bytes) -> None:
        self._run.log({name: wandb.Image(to_image(png))})

    def flush(self) -> None:
        pass  # it sends by itself

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
