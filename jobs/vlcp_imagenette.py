"""VLCP: distil labelled images into a few synthetic ones of each class.

python jobs/vlcp_imagenette.py                         # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/vlcp_imagenette.py imagenette --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("vlcp_imagenette")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
