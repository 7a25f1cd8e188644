"""Students trained on a distilled set and on real pairs beside it.

python jobs/evaluate.py local --set runs/edge_cc3m-local/distilled
"""

from mmdd_ray import cli
from mmdd_ray.config import Evaluate
from mmdd_ray.presets import evaluate_cc3m, evaluate_local


def run(settings: Evaluate, preset: str) -> str:
    from mmdd_ray.evaluate.distilled_set import evaluate_set
    from mmdd_ray.evaluate.report import summary_table

    return summary_table(evaluate_set(settings, preset))


def main() -> int:
    return cli.start("evaluate", {"local": evaluate_local, "cc3m": evaluate_cc3m}, run)


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
