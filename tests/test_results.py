"""docs/results.md shows the tables that benchmarks recorded, and the script puts them there."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fill_results import PAGE, TABLES, filled, places  # noqa: E402


def test_the_page_has_the_recorded_tables() -> None:
    page = PAGE.read_text()
    assert filled(page) == page
    assert {path.stem for path in TABLES.glob("*.md")} == places(page).keys()


def test_a_place_takes_its_table_and_nothing_else_changes(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("| a |\n|---|\n| 1 |\n")
    page = "before\n\n<!-- table one -->\nold\n<!-- end -->\n\nafter\n"
    made = filled(page, tmp_path)
    assert made == "before\n\n<!-- table one -->\n\n| a |\n|---|\n| 1 |\n\n<!-- end -->\n\nafter\n"
    assert places(made) == {"one": "| a |\n|---|\n| 1 |"}
    assert filled(made, tmp_path) == made
    with pytest.raises(FileNotFoundError):
        filled(page.replace("one", "two"), tmp_path)
