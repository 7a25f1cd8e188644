"""Classifiers trained on labelled sets and on real images beside them.

python jobs/evaluate_labelled.py local --set runs/vlcp_imagenette-local/distilled runs/other/distilled
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("evaluate_labelled")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
