"""Draws docs/world.png, a sheet of 48 pairs of the procedural world, and measures how fast pairs are drawn.

python benchmarks/world.py
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tyro

from mmdd_ray.data.formats.scenes import shapes_spec
from mmdd_ray.distilled.contact_sheet import contact_sheet

COLUMNS = 8


@dataclass
class Sheet:
    """Draws a sheet of a procedural world and measures its speed."""

    uri: str = "shapes:48?seed=1"
    """The world, and how many of its pairs to show."""
    out: Path = Path("docs/world.png")
    """The picture."""
    timed: int = 2000
    """Pairs that are drawn for the clock."""


def main() -> None:
    asked = tyro.cli(Sheet)
    rows, draw = shapes_spec(asked.uri)
    shown = [(pair["image"], pair["captions"]) for pair in draw(0, rows)]
    asked.out.write_bytes(contact_sheet(shown, columns=COLUMNS, at_most=rows))
    started = perf_counter()
    for _ in draw(0, asked.timed):
        pass
    print(
        f"{asked.out}: {rows} pairs; {asked.timed / (perf_counter() - started):.0f} pairs a second on one core"
    )


if __name__ == "__main__":
    main()
