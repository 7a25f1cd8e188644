"""Train the tiny models of mmdd_ray/zoo again, from the procedural dataset and nothing else.

    python jobs/train_zoo.py                                        # all of them, in order
    python jobs/train_zoo.py --models tiny-bert tiny-nf             # some of them

The order matters: tiny-sd uses the text tower of tiny-clip. About two and a half hours on two cores. A killed training
goes on where it was; models that are done are not trained again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmdd_ray import cli

Model = Literal["tiny-clip", "tiny-sd", "tiny-captioner", "tiny-nf", "tiny-bert"]


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """Training of the tiny zoo."""

    models: tuple[Model, ...] = ("tiny-clip", "tiny-sd", "tiny-captioner", "tiny-nf", "tiny-bert")
    """Which models to train, in this order."""
    out: Path = Path("mmdd_ray/zoo")
    """Folder of the zoo."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    threads: int = 2
    """CPU threads."""


def main() -> int:
    _, settings = cli.parse("python jobs/train_zoo.py", {"zoo": Zoo})
    from mmdd_ray.pretrain import train_zoo

    train_zoo(settings.models, settings.out, seed=settings.seed, threads=settings.threads)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
