"""CovMatch: learn a few hundred image-caption pairs whose cross-covariance is that of the whole dataset.

python jobs/covmatch_flickr30k.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/covmatch_flickr30k.py flickr30k --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("covmatch_flickr30k")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
