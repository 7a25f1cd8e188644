"""Settings in a file: YAML or JSON that people write, and the settings.json of a run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import REDACTED, redact
from mmdd_ray.storage.store import folder_and_name


@dataclass(frozen=True)
class SavedSettings:
    """The content of a settings file."""

    job: str | None = None
    preset: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Sections by name, each with its settings; only those that the file changes."""
    file: str = ""

    @property
    def where(self) -> str:
        """The file, for messages."""
        return f"config={self.file}"


class _Twice(ValueError):
    """A key that a mapping names twice, of which a reader would drop the first."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that names a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in names:
                raise _Twice(f"{name} twice, again in line {key.start_mark.line + 1}")
            names.append(name)
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
        is_json = name.endswith(".json")
        content = json.loads(text, object_pairs_hook=_unique) if is_json else yaml.load(text, _UniqueKeys)
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no such file") from error
    except (OSError, StorageError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    except _Twice as error:
        raise UserError(f"{where} has {error}; keep one") from error
    except (ValueError, yaml.YAMLError) as error:  # no text, too
        raise UserError(f"{where} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    if content is None:  # an empty file, or comments alone
        content = {}
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds no settings; write sections, such as data: and their settings below")
    values = content.get("settings", content)
    if not isinstance(values, Mapping):
        raise UserError(f"{where} has no sections in its settings")
    if "settings" in content and (others := content.keys() - {"layout", "job", "preset", "settings"}):
        raise UserError(
            f"{where} has settings, and {min(map(str, others))} beside them; put it below settings"
        )
    saved_job, preset = content.get("job"), content.get("preset")
    names = [*_keys(content), *(one for one in (saved_job, preset) if one is not None)]
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{where} has the name {odd[0]!r}, which is no text; quote it, or correct it")
    if job and saved_job and saved_job != job:
        raise UserError(
            f"{where} holds settings of the job {saved_job}, not of {job}; name a file of this job"
        )
    for name, value in _leaves(values):
        if REDACTED in str(value):
            raise UserError(
                f"{where} has {name}={value}, because credentials are never saved; take it out of the file, and give "
                f"it as --{name} or in an environment variable"
            )
    sections = {key: value for key, value in values.items() if key not in ("job", "preset")}
    return SavedSettings(saved_job, preset, sections, redact(uri))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)} twice")
    return found


def _keys(values: Mapping[Any, Any]) -> Iterator[Any]:
    for name, value in values.items():
        yield name
        if isinstance(value, Mapping):
            yield from _keys(value)


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def as_yaml(settings: Any, named: SavedSettings) -> str:
    """Settings as a file for ``--config``, credentials redacted."""
    names = {key: value for key, value in (("job", named.job), ("preset", named.preset)) if value}
    return yaml.safe_dump(names | resolved(settings), sort_keys=False, allow_unicode=True, width=100)
