"""Records what finished runs took, for the plans of others: mmdd_ray/figures/JOB.json.

python benchmarks/figures.py runs/edge_cc3m-local runs/covmatch_flickr30k-local runs/vlcp_imagenette-local
"""

from dataclasses import dataclass

import tyro

from mmdd_ray.plan import FIGURES, figures
from mmdd_ray.store import Store


@dataclass
class Record:
    """Records what finished runs took."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of local presets, that went through on an otherwise idle machine."""


def main() -> None:
    for run in tyro.cli(Record).runs:
        found = figures(Store(run))
        Store(str(FIGURES)).write_json(f"{found['job']}.json", found)
        print(f"{found['job']}: {sum(stage['seconds'] for stage in found['stages'].values()):.0f} s")


if __name__ == "__main__":
    main()
