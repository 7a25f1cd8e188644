"""CLIP features and moments of a dataset, without distilling it.

python jobs/precompute.py local --data.uri '/data/cc3m/{00000..00331}.tar'
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("precompute")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
