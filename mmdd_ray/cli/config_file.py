"""Settings in a file: YAML or JSON that people write, and the settings.json of a run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

import yaml

from mmdd_ray.config import SOURCE_SETTINGS
from mmdd_ray.data.listing import SOURCES
from mmdd_ray.engine.run_dir import resolved
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import REDACTED, redact
from mmdd_ray.storage.store import folder_and_name

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class SavedSettings:
    """The content of a settings file."""

    job: str | None = None
    preset: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Sections by name, each with its settings; only those that the file changes."""
    file: str = ""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_settings(uri: str, job: str | None) -> SavedSettings:
    """Reads a settings file: sections with their settings, and optionally the names of a job and a preset.

    Args:
        uri: A local path or a URI.
        job: The job that the settings are for.

    Raises:
        UserError: The file is not there, is neither YAML nor JSON, or holds settings of another job.
    """
    where = f"config={redact(uri)}"
    store, name = folder_and_name(uri)
    try:
        text = store.read_bytes(name).decode()
        content = json.loads(text) if name.endswith(".json") else yaml.load(text, _UniqueKeys)
    except (OSError, StorageError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:  # no text, too
        raise UserError(f"{where} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if content is None:  # an empty file, or comments alone
        content = {}
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds no settings; write sections, such as data: and their settings below")
    values = content.get("settings", content)
    if not isinstance(values, Mapping):
        raise UserError(f"{where} has no sections in its settings")
    saved_job, preset = content.get("job"), content.get("preset")
    if job and saved_job and saved_job != job:
        raise UserError(
            f"{where} holds settings of the job {saved_job}, not of {job}; name a file of this job"
        )
    sections = {key: value for key, value in values.items() if key not in ("job", "preset")}
    return SavedSettings(saved_job, preset, sections, redact(uri))


def applied(settings: Settings, saved: SavedSettings) -> Settings:
    """The settings with the values of a file in their place.

    Raises:
        UserError: The file names a setting that is not there, or a value that the setting cannot have.
    """
    return _applied(settings, saved.values, saved, "", settings)


def as_yaml(settings: Any, named: SavedSettings) -> str:
    """Settings as a file for ``--config``, credentials redacted."""
    names = {key: value for key, value in (("job", named.job), ("preset", named.preset)) if value}
    return yaml.safe_dump(names | resolved(settings), sort_keys=False, allow_unicode=True, width=100)


def _applied(part: Any, values: Mapping[str, Any], saved: SavedSettings, path: str, whole: Any) -> Any:
    hints = get_type_hints(type(part), include_extras=True)
    known = {one.name for one in fields(part)}
    changes = {}
    for name, value in values.items():
        dotted = f"{path}{name}"
        if name not in known:
            close = get_close_matches(dotted, list(_names(whole)), n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"config={saved.file} has {dotted}, which is no setting of this job{meant}")
        current = getattr(part, name)
        if not is_dataclass(current):
            changes[name] = _value(hints[name], value, saved.file, dotted)
        elif isinstance(value, Mapping):
            changes[name] = _applied(current, value, saved, f"{dotted}.", whole)
        else:
            raise UserError(
                f"config={saved.file} has {dotted}={value!r}, but it is a section; nest its settings"
            )
    return replace(part, **changes)


def _value(hint: Any, value: Any, file: str, dotted: str) -> Any:
    from pydantic import TypeAdapter, ValidationError  # seconds that --help need not pay

    if REDACTED in str(value):
        raise UserError(
            f"{dotted} in config={file} was a credential and is not kept in files; take it out there, and give it as "
            f"--{dotted}, or in an environment variable"
        )
    if dotted in SOURCE_SETTINGS and isinstance(value, list):
        value = SOURCES.join(map(str, value))
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{dotted}={value!r} in config={file}: {message[0].lower()}{message[1:]}") from error


def _names(part: Any, path: str = "") -> Iterator[str]:
    """Names of all sections and settings."""
    for one in fields(part):
        yield f"{path}{one.name}"
        if is_dataclass(value := getattr(part, one.name)):
            yield from _names(value, f"{path}{one.name}.")
