"""Students trained on a distilled set and on real pairs beside it.

python jobs/evaluate.py local --set runs/edge_cc3m-local/distilled
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("evaluate")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
