"""How pages and tables are laid out, whatever they show: templates, columns and sizes."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import jinja2

from mmdd_ray.evaluation.report.text import duration_text, mean_stds

TERMINAL_COLUMNS = 80


def page_environment() -> jinja2.Environment:
    """The templates of this folder, and filters for figures."""
    # captions and settings come from outside: everything but our own charts is escaped
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spread_of": mean_stds, "duration": duration_text, "bytes": bytes_text}
    return environment


def bytes_text(count: int) -> str:
    """``35 kB``, ``1.2 MB`` or ``1.2 GB``, in powers of 1,000."""
    if count < 10**6:
        return f"{count / 10**3:,.0f} kB"
    return f"{count / 10**6:,.1f} MB" if count < 10**9 else f"{count / 10**9:,.1f} GB"


def filled(text: str) -> str:
    """The text in lines of a terminal; paths and URIs stay whole."""
    return textwrap.fill(text, TERMINAL_COLUMNS, break_on_hyphens=False, break_long_words=False)


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with its first column to the left, in as many parts as a terminal needs, each with an empty line after
    it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for places in _fitting(widths):
        for row in rows:
            cells = [f"{row[place]:>{widths[place]}}" for place in places]
            lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip())
        lines.append("")
    return lines


def _fitting(widths: Sequence[int]) -> list[list[int]]:
    """The columns of a table in groups that a terminal has room for, each beside the first column."""
    groups: list[list[int]] = []
    room = 0
    for place, width in enumerate(widths[1:], 1):
        if not groups or width + 2 > room:
            groups.append([])
            room = TERMINAL_COLUMNS - widths[0]
        groups[-1].append(place)
        room -= width + 2
    return groups
