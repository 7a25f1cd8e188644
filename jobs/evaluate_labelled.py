"""Classifiers trained on a labelled set and on real images beside it.

python jobs/evaluate_labelled.py local --set runs/vlcp_imagenette-local/distilled
"""

from mmdd_ray import cli


def main() -> int:
    return cli.start("evaluate_labelled")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
