"""Students trained on given sets of pairs, whoever made them, and on real pairs beside them.

python jobs/evaluate.py local --set runs/edge_cc3m-local/distilled photos/
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("evaluate")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
