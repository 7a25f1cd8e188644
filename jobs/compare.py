"""One table of several finished runs, and the paired differences of their sets.

python jobs/compare.py runs/edge_cc3m-local runs/covmatch_flickr30k-local --out comparison
"""

from dataclasses import dataclass

import tyro

from mmdd_ray import cli


@dataclass(frozen=True)
class Compare:
    """One table of several finished runs, and the paired differences of their distilled sets."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories: local folders or URIs, at least two. Their students must be alike: the same task, settings and
    test data."""
    out: str = "comparison"
    """Folder or URI for comparison.json and comparison.html."""


def main() -> int:
    asked = tyro.cli(Compare, prog="jobs/compare.py")
    from mmdd_ray.evaluation.beside_runs import compare_runs
    from mmdd_ray.evaluation.report.comparison import comparison_table, write_comparison
    from mmdd_ray.storage.store import Store

    found = compare_runs(asked.runs)
    print(comparison_table(found))
    print("\n".join(write_comparison(found, Store(asked.out))))
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
