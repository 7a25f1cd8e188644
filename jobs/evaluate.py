"""Students trained on a distilled set and on real pairs beside it.

python jobs/evaluate.py local --set runs/edge_cc3m-local/distilled
"""

from mmdd_ray import cli
from mmdd_ray.check import check
from mmdd_ray.presets import evaluate_cc3m, evaluate_local


def main() -> int:
    preset, settings = cli.parse("evaluate", {"local": evaluate_local, "cc3m": evaluate_cc3m})
    check(settings)
    from mmdd_ray.evaluate.distilled_set import evaluate_set
    from mmdd_ray.evaluate.report import summary_table

    print(summary_table(evaluate_set(settings, preset)))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
