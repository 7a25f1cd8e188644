"""Settings as JSON values, and the ways in which those of a run differ from those that are wanted now."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from mmdd_ray.storage.redact import redact

UNSET = "(not set)"


def resolved(settings: Any, name: str = "") -> Any:
    """Settings as JSON values, nested like the dataclasses, credentials redacted."""
    if is_dataclass(settings):
        return {item.name: resolved(getattr(settings, item.name), item.name) for item in fields(settings)}
    if isinstance(settings, Mapping):
        return {str(key): resolved(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [resolved(value, name) for value in settings]
    if isinstance(settings, str | Path):
        return redact(str(settings), name)
    return settings


def differences(saved: Any, wanted: Any, settings: Any, path: str = "") -> list[str]:
    """One line ``section.field: old -> new`` for each field that differs and affects the result.

    ``saved`` and ``wanted`` are resolved settings, ``settings`` the dataclass that ``wanted`` comes from. A setting
    that was not there yet counts as its default, by which a version that adds it does as the one before.
    """
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return [] if saved == wanted else [f"{path}: {_show(saved)} -> {_show(wanted)}"]
    operational = (
        {item.name for item in fields(settings) if not item.metadata.get("affects_result", True)}
        if is_dataclass(settings)
        else set()
    )
    return [
        line
        for name in [*wanted, *(saved.keys() - wanted.keys())]
        if name not in operational and not (name not in saved and _is_default(settings, name))
        for line in differences(
            saved.get(name, UNSET),
            wanted.get(name, UNSET),
            getattr(settings, name, None),
            f"{path}.{name}".lstrip("."),
        )
    ]


def _is_default(settings: Any, name: str) -> bool:
    if not is_dataclass(settings):
        return False
    (item,) = (item for item in fields(settings) if item.name == name)
    return item.default is not MISSING and bool(item.default == getattr(settings, name))


def extended(saved: Any, wanted: Any, settings: Any) -> Any:
    """``saved`` with those fields of ``wanted`` that extend a run; arguments as for ``differences``."""
    if not (is_dataclass(settings) and isinstance(saved, dict)):
        return saved
    return saved | {
        item.name: wanted[item.name]
        if item.metadata.get("extends")
        else extended(saved[item.name], wanted[item.name], getattr(settings, item.name))
        for item in fields(settings)
        if item.name in saved or item.metadata.get("extends")
    }


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
