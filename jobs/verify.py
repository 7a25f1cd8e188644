"""Checks a distilled set: all checksums, and with --regenerate that its images can be made again.

python jobs/verify.py runs/edge_cc3m-local/distilled --regenerate 5
"""

from mmdd_ray import cli
from mmdd_ray.cli import tools


def main() -> int:
    return tools.verify(called="python jobs/verify.py")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
