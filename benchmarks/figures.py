"""Records what finished runs took, for the plans of others: mmdd_ray/planning/reference_runs/JOB.json.

python benchmarks/figures.py runs/*-local
"""

from dataclasses import dataclass

import tyro

from mmdd_ray.planning.reference import REFERENCE_RUNS, reference_run
from mmdd_ray.storage.store import Store


@dataclass
class Record:
    """Records what finished runs took."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories of local presets, that went through on an otherwise idle machine."""


def main() -> None:
    for run in tyro.cli(Record).runs:
        found = reference_run(Store(run))
        if interrupted := found.pop("interrupted"):
            raise SystemExit(f"{run} was interrupted in {interrupted[0]}; record a run that went through")
        Store(str(REFERENCE_RUNS)).write_json(f"{found['job']}.json", found)
        print(f"{found['job']}: {sum(stage['seconds'] for stage in found['stages'].values()):.0f} s")


if __name__ == "__main__":
    main()
