"""Reading the records of a run directory without opening it for writing."""

from typing import Any

from mmdd_ray.engine.run_dir import LAYOUT, SETTINGS
from mmdd_ray.errors import UserError
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def saved_run(store: Store) -> dict[str, Any]:
    """The `settings.json` of a run.

    Raises:
        UserError: There is no run, it is damaged, or it is one of another version.
    """
    where = redact(store.uri)
    if not store.exists(SETTINGS):
        raise UserError(f"{where} is no run directory, as it has no {SETTINGS}; name the folder of a run")
    saved = json_object(store, SETTINGS)
    if not isinstance(saved.get("settings"), dict) or not saved.keys() >= {"job", "preset", "layout"}:
        raise UserError(
            f"{where} is no run directory, as its {SETTINGS} is no run's; name the folder of a run"
        )
    if saved["layout"] != LAYOUT:
        raise UserError(
            f"{where} holds a run of another version of mmdd-ray, with the layout {saved['layout']} where this one "
            f"reads {LAYOUT}; run it again with this version"
        )
    return saved


def json_object(store: Store, name: str) -> dict[str, Any]:
    """The content of a file of a run.

    Raises:
        UserError: It is damaged.
    """
    try:
        found = store.read_json(name)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{redact(store.path(name))} is damaged: it is no JSON object; copy the run again")
    return found
