"""CovMatch: learn a few hundred image-caption pairs whose cross-covariance is that of the whole dataset.

python jobs/covmatch_flickr30k.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/covmatch_flickr30k.py flickr30k --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli
from mmdd_ray.check import check
from mmdd_ray.presets import covmatch_cc3m, covmatch_coco, covmatch_flickr30k, covmatch_local


def main() -> int:
    presets = {
        "local": covmatch_local,
        "flickr30k": covmatch_flickr30k,
        "coco": covmatch_coco,
        "cc3m": covmatch_cc3m,
    }
    preset, settings = cli.parse("covmatch_flickr30k", presets)
    check(settings)  # mistakes show before Ray is even imported
    from mmdd_ray.covmatch.stages import distill
    from mmdd_ray.evaluate.report import summary_table

    print(summary_table(distill(settings, preset)))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
