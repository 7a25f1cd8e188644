"""EDGE: distil an image-caption dataset into a few hundred synthetic pairs.

python jobs/edge_cc3m.py                      # laptop: minutes, no network, no GPU
ray job submit --working-dir . -- python jobs/edge_cc3m.py cc3m --data.uri s3://… --run.dir s3://…
"""

from mmdd_ray import cli
from mmdd_ray.config import Edge
from mmdd_ray.presets import edge_cc3m, edge_local


def run(settings: Edge, preset: str) -> str:
    from mmdd_ray.edge.distill import distill
    from mmdd_ray.evaluate.report import summary_table

    return summary_table(distill(settings, preset))


def main() -> int:
    return cli.start("edge_cc3m", {"local": edge_local, "cc3m": edge_cc3m}, run)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
