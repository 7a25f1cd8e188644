"""Data of a run that lie on the Hugging Face hub, held at the commits that they had when it began."""

from dataclasses import replace
from typing import Any

from mmdd_ray.data.listing import SOURCES
from mmdd_ray.storage.hub import SCHEME, pinned
from mmdd_ray.storage.store import Store

COMMITS = "commits.json"
"""In the run directory: commits by repository and revision."""
URIS = {"data": ("uri", "image_root"), "evaluation": ("val", "test", "val_image_root", "test_image_root")}


def at_commits(settings: Any, run: Store) -> Any:
    """The same settings with the commits in the ``hf://`` URIs of their data, which the run directory keeps.

    So all stages read the same data, also when the run is resumed after the repository has changed.

    Raises:
        UserError, StorageError: as ``pinned``.
    """
    named = {
        section: {field: uri for field in fields if SCHEME in ((uri := getattr(own, field)) or "")}
        for section, fields in URIS.items()
        if (own := getattr(settings, section, None)) is not None
    }
    if not any(named.values()):
        return settings
    commits = run.read_json(COMMITS) if run.exists(COMMITS) else {}
    known = dict(commits)
    sections = {}
    for section, uris in named.items():
        found = {
            field: SOURCES.join(pinned(source, commits) for source in uri.split(SOURCES))
            for field, uri in uris.items()
        }
        sections[section] = replace(getattr(settings, section), **found)
    if commits != known:
        run.write_json(COMMITS, commits)
    return replace(settings, **sections)
