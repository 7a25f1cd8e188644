"""Trajectory matching: learn pairs on which a student moves as experts did on the whole dataset.

python jobs/trajectory_flickr30k.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/trajectory_flickr30k.py flickr30k --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("trajectory_flickr30k")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
