"""EDGE: distil an image-caption dataset into a few hundred synthetic pairs.

python jobs/edge_cc3m.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/edge_cc3m.py cc3m --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("edge_cc3m")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
