"""Changing settings by name."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from mmdd_ray.config.data import SOURCE_SETTINGS, SOURCES
from mmdd_ray.errors import UserError

Settings = TypeVar("Settings")
SETS = "set"
"""The setting that takes several sets, of which people write a single one without a list."""


def changed(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    """The settings with other values.

    Args:
        values: Sections by name with their settings by name, ``{"finetune": {"steps": 3}}``, or names with a dot,
            ``{"finetune.steps": 3}``. Lists become tuples, and text becomes the number that it spells.
        where: The origin of the values, for messages.

    Raises:
        UserError: A name is not that of a setting, or a value is none that the setting can have.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} has the changes {values!r}; give them by setting, as in {{'run.seed': 3}}")
    return _changed(settings, values, "", where, settings)


def known_name(name: str, known: Iterable[str], what: str) -> str:
    """The name, if it is known; raises ``UserError`` with the nearest one and all of them otherwise."""
    names = list(known)
    if name in names:
        return name
    close = get_close_matches(name, names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown {what} {name}; {meant}choose one of {', '.join(names)}")


def _changed(part: Any, values: Mapping[str, Any], path: str, where: str, whole: Any) -> Any:
    hints = get_type_hints(type(part), include_extras=True)
    known = {one.name for one in fields(part)}
    seen: set[str] = set()
    for key, value in values.items():
        name, _, within = key.partition(".")
        dotted = f"{path}{name}"
        if name not in known:
            names = list(_names(whole))
            close = get_close_matches(f"{path}{key}", names, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{where} has {path}{key}, which is no setting of this job{meant}")
        if (leaf := _leaf_names(key, value)) & seen:
            raise UserError(f"{where} has {path}{min(leaf & seen)} twice; keep one")
        seen |= leaf
        current = getattr(part, name)
        if not is_dataclass(current):
            if within:
                raise UserError(f"{where} has {path}{key}, but {dotted} is a setting and no section")
            new = _value(hints[name], value, dotted, where)
        elif within or isinstance(value, Mapping):
            new = _changed(current, {within: value} if within else value, f"{dotted}.", where, whole)
        else:
            raise UserError(f"{where} has {dotted}={value!r}, but {dotted} is a section; nest its settings")
        part = replace(part, **{name: new})
    return part


def _value(hint: Any, value: Any, dotted: str, where: str) -> Any:
    from pydantic import TypeAdapter, ValidationError  # half a second that --help need not pay

    if dotted in SOURCE_SETTINGS and isinstance(value, list | tuple):
        value = SOURCES.join(map(str, value))
    if dotted == SETS and isinstance(value, str):
        value = [value]
    # True would become 1, and YAML reads yes and on as True
    if isinstance(value, bool) and not _takes_bool(hint):
        raise UserError(f"{where} has {dotted}={value}, which is no number or text; YAML reads yes and on so")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        if isinstance(value, str) and error.errors()[0]["type"] == "tuple_type":
            raise UserError(
                f"{where} has {dotted}={value!r}, which takes several values; give them as a list, [{value!r}]"
            ) from error
        raise UserError(f"{where} has {dotted}={value!r}: {message[0].lower()}{message[1:]}") from error


def _takes_bool(hint: Any) -> bool:
    return hint is bool or any(_takes_bool(inner) for inner in get_args(hint))


def _leaf_names(key: str, value: Any) -> set[str]:
    """Names of the settings that a key and its value set, with dots between them."""
    if not isinstance(value, Mapping):
        return {key}
    return {f"{key}.{inner}" for name, one in value.items() for inner in _leaf_names(name, one)}


def _names(part: Any, path: str = "") -> Iterator[str]:
    """Names of all sections and settings."""
    for one in fields(part):
        yield f"{path}{one.name}"
        if is_dataclass(value := getattr(part, one.name)):
            yield from _names(value, f"{path}{one.name}.")
