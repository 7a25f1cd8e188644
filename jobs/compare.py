"""One table of several finished runs, and the paired differences of their sets.

python jobs/compare.py runs/edge_cc3m-local runs/covmatch_flickr30k-local --out comparison
"""

from mmdd_ray import cli
from mmdd_ray.cli import tools


def main() -> int:
    return tools.compare(called="python jobs/compare.py")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
