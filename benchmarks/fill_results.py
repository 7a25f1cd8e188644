"""Puts the tables that benchmarks recorded into docs/results.md.

    python benchmarks/fill_results.py

A place in the page is `<!-- table NAME -->` to `<!-- end -->`; it takes `benchmarks/results/tables/NAME.md`. What
`benchmarks/claims.py` left below `runs/claims` is recorded first.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, TABLES = ROOT / "docs" / "results.md", Path(__file__).parent / "results" / "tables"
CLAIMS = ROOT / "runs" / "claims"
PLACE = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def places(page: str) -> dict[str, str]:
    """The content of each place of the page, by the name of its table."""
    return {
        found["name"]: found[0].split("\n", 1)[1].rsplit("\n", 1)[0].strip() for found in PLACE.finditer(page)
    }


def filled(page: str, tables: Path = TABLES) -> str:
    """The page with the recorded tables.

    Raises:
        FileNotFoundError: A place has no table.
    """
    return PLACE.sub(lambda found: f"{found[1]}{_table(tables, found['name'])}\n{found[3]}", page)


def _table(tables: Path, name: str) -> str:
    return f"\n{(tables / f'{name}.md').read_text().strip()}\n"


def main() -> None:
    for name in places(PAGE.read_text()):
        if (made := CLAIMS / f"{name}.md").exists():
            shutil.copyfile(made, TABLES / made.name)
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
