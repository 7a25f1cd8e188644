"""The settings as the help shows them: the essential ones or all, with texts that the width of a terminal wraps."""

import inspect
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro
from docstring_parser import parse_from_object

from mmdd_ray.config import ESSENTIAL


def for_help(settings: Any, *, every: bool) -> Any:
    """Equal settings of classes that are made for the help; the command line would not read all of them.

    Args:
        every: Whether settings are shown that are not essential.
    """
    kind = type(settings)
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    parts, values = [], {}
    for one in fields(kind):
        value, hint = getattr(settings, one.name), hints[one.name]
        marks = getattr(hint, "__metadata__", ())
        if is_dataclass(value):
            shown = every or count_settings(value)[0] > 0
            value = for_help(value, every=every)
            hint = type(value)
        else:
            shown = every or ESSENTIAL in marks
        if not shown:
            hint = Annotated[hint, tyro.conf.Suppress]
        elif one.name in texts and not any(isinstance(mark, type(tyro.conf.arg())) for mark in marks):
            hint = Annotated[hint, tyro.conf.arg(help=texts[one.name])]
        parts.append((one.name, hint, field(default=value)))
        values[one.name] = value
    shown_kind = make_dataclass(kind.__name__, parts, bases=(kind,), frozen=True, kw_only=True)
    shown_kind.__doc__ = kind.__doc__
    return shown_kind(**values)


def count_settings(settings: Any) -> tuple[int, int]:
    """Number of the essential settings, and of all."""
    hints = get_type_hints(type(settings), include_extras=True)
    shown = every = 0
    for one in fields(settings):
        value = getattr(settings, one.name)
        marks = getattr(hints[one.name], "__metadata__", ())
        more = count_settings(value) if is_dataclass(value) else (int(ESSENTIAL in marks), 1)
        shown, every = shown + more[0], every + more[1]
    return shown, every


def settings_table(settings: Any, path: str = "") -> str:
    """A Markdown table of all settings with their values here and their meanings, essential ones in bold."""
    head = "| setting | here | meaning |\n|---|---|---|\n" if not path else ""
    kind = type(settings)
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    rows = []
    for one in fields(kind):
        value, name = getattr(settings, one.name), f"{path}{one.name}"
        if is_dataclass(value):
            rows.append(settings_table(value, f"{name}."))
        else:
            mark = "**" if ESSENTIAL in getattr(hints[one.name], "__metadata__", ()) else ""
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            cells = (f"{mark}`{name}`{mark}", f"`{shown}`" if shown else "", texts.get(one.name, ""))
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return head + "".join(rows)


def first_line(documented: object) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _texts(kind: type) -> dict[str, str]:
    """The docstring of each field on one line; a field of a parent may have another one here."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        described = {one.arg_name: one.description or "" for one in parse_from_object(parent).params}
        found |= {name: " ".join(text.split()) for name, text in described.items()}
    return found
