"""Checks a distilled set: all checksums, and with --regenerate that its images can be made again.

python jobs/verify.py runs/edge_cc3m-local/distilled --regenerate 5
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mmdd_ray import cli


@dataclass(frozen=True)
class Verify:
    """Checks a distilled set."""

    set: tyro.conf.Positional[str]
    """The distilled set: a folder or URI with its manifest.json."""
    regenerate: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Make K of its images again, chosen at random, and compare. The set must lie in its run directory."""
    tolerance: Annotated[int, tyro.conf.arg(metavar="LEVELS")] = 0
    """Greatest difference of a pixel, of 255, at which an image still counts as the same. Other devices and other
    versions of libraries round otherwise."""
    seed: int = 0
    """Seed of the choice of the images."""


def main() -> int:
    asked = tyro.cli(Verify, prog="jobs/verify.py")
    from mmdd_ray.methods.verify import verify

    found = verify(asked.set, asked.regenerate, asked.seed)
    print(f"{found.images:,} images, whole; checksum {found.checksum}")
    for name, (then, now) in found.changed.items():
        print(f"made with {name} {then}, here is {now}")
    if not found.differences:
        return 0
    others = {key: levels for key, levels in found.differences.items() if levels > asked.tolerance}
    for key, levels in others.items():
        print(f"{key} differs by up to {levels} of 255 levels")
    print(f"{len(found.differences) - len(others):,} of {len(found.differences):,} images made again alike")
    return cli.EXIT_FAILED if others else 0


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
