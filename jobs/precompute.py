"""CLIP features and moments of a dataset, without distilling it.

python jobs/precompute.py local --data.uri '/data/cc3m/{00000..00331}.tar'
"""

from mmdd_ray import cli
from mmdd_ray.config import Precompute
from mmdd_ray.presets import precompute_cc3m, precompute_local


def run(settings: Precompute, preset: str) -> str:
    from mmdd_ray.features.precompute import summary
    from mmdd_ray.start import started

    with started(settings, "precompute", preset) as (_, stage):
        return summary(stage)


def main() -> int:
    return cli.start("precompute", {"local": precompute_local, "cc3m": precompute_cc3m}, run)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
