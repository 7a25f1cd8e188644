"""VLCP: distil labelled images into a few synthetic ones of each class.

python jobs/vlcp_imagenette.py                         # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/vlcp_imagenette.py imagenette --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli
from mmdd_ray.config import Vlcp
from mmdd_ray.presets import vlcp_imagenet1k, vlcp_imagenette, vlcp_local


def run(settings: Vlcp, preset: str) -> str:
    from mmdd_ray.evaluate.report import summary_table
    from mmdd_ray.vlcp.stages import distill

    return summary_table(distill(settings, preset))


def main() -> int:
    presets = {"local": vlcp_local, "imagenette": vlcp_imagenette, "imagenet1k": vlcp_imagenet1k}
    return cli.start("vlcp_imagenette", presets, run)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
