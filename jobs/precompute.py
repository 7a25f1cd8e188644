"""CLIP features and moments of a dataset, without distilling it.

python jobs/precompute.py local --data.uri '/data/cc3m/{00000..00331}.tar'
"""

from mmdd_ray import cli
from mmdd_ray.check import check
from mmdd_ray.presets import precompute_cc3m, precompute_local


def main() -> int:
    preset, settings = cli.parse("precompute", {"local": precompute_local, "cc3m": precompute_cc3m})
    check(settings)
    from mmdd_ray.features.precompute import precompute_run

    print(precompute_run(settings, preset))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
