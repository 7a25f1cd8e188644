"""Data and teachers of a run that lie on the Hugging Face hub, held at the commits that they had when it began."""

from dataclasses import replace
from typing import Any

from mmdd_ray.config.data import SOURCES
from mmdd_ray.storage.hub import SCHEME, pinned
from mmdd_ray.storage.store import Store

COMMITS = "commits.json"
"""In the run directory: commits by repository and revision."""
TESTED = ("val", "test", "zero_shot", "compositional")
URIS = {
    "data": ("uri", "image_root"),
    "evaluation": (*TESTED, *(f"{part}_image_root" for part in TESTED)),
    "classifiers": ("teacher",),
}


def at_commits(settings: Any, run: Store) -> Any:
    """The same settings with the commits in their ``hf://`` URIs, which the run directory keeps.

    So all stages read the same data, also when the run is resumed after the repository has changed.

    Raises:
        UserError, StorageError: as ``pinned``.
    """
    named = {
        section: {field: uri for field in fields if SCHEME in ((uri := getattr(own, field)) or "")}
        for section, fields in URIS.items()
        if (own := getattr(settings, section, None)) is not None
    }
    sets: tuple[str, ...] = getattr(settings, "set", ())  # of the jobs that evaluate given ones
    if not any(named.values()) and not any(SCHEME in uri for uri in sets):
        return settings
    commits = run.read_json(COMMITS) if run.exists(COMMITS) else {}
    known = dict(commits)
    sections: dict[str, Any] = {}
    for section, uris in named.items():
        found = {field: _pinned(uri, commits) for field, uri in uris.items()}
        sections[section] = replace(getattr(settings, section), **found)
    if sets:
        sections["set"] = tuple(_pinned(uri, commits) for uri in sets)
    if commits != known:
        run.write_json(COMMITS, commits)
    return replace(settings, **sections)


def _pinned(uri: str, commits: dict[str, str]) -> str:
    return SOURCES.join(pinned(source, commits) for source in uri.split(SOURCES))
