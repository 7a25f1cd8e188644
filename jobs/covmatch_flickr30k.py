"""CovMatch: learn a few hundred image-caption pairs whose cross-covariance is that of the whole dataset.

python jobs/covmatch_flickr30k.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/covmatch_flickr30k.py flickr30k --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli
from mmdd_ray.config import Covmatch
from mmdd_ray.presets import covmatch_cc3m, covmatch_coco, covmatch_flickr30k, covmatch_local


def run(settings: Covmatch, preset: str) -> str:
    from mmdd_ray.covmatch.stages import distill
    from mmdd_ray.evaluate.report import summary_table

    return summary_table(distill(settings, preset))


def main() -> int:
    presets = {
        "local": covmatch_local,
        "flickr30k": covmatch_flickr30k,
        "coco": covmatch_coco,
        "cc3m": covmatch_cc3m,
    }
    return cli.start("covmatch_flickr30k", presets, run)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
