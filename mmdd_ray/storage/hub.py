"""Datasets on the Hugging Face hub, held at the commit that they have when a run begins. No Ray."""

import re
from collections.abc import MutableMapping

from mmdd_ray.errors import StorageError
from mmdd_ray.storage.remote import transporting

SCHEME = "hf://"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(uri: str, commits: MutableMapping[str, str]) -> str:
    """An ``hf://`` URI that names the commit of its repository; any other as it is.

    Args:
        commits: By repository and revision; takes those that had to be asked for.

    Raises:
        StorageError: The hub cannot be reached, or has no such repository or revision.
    """
    if not uri.startswith(SCHEME):
        return uri
    from huggingface_hub.utils import parse_hf_uri

    try:
        named = parse_hf_uri(uri)
    except ValueError as error:
        raise StorageError(f"{uri} is no address of the Hugging Face hub: {error}") from error
    if named.is_bucket or (named.revision and _COMMIT.fullmatch(named.revision)):
        return uri
    name = f"{named.type}s/{named.id}@{named.revision or 'main'}"
    if name not in commits:
        commits[name] = _commit_of(uri, named.id, named.type, named.revision)
    return f"{SCHEME}{name.partition('@')[0]}@{commits[name]}/{named.path_in_repo}"


def _commit_of(uri: str, repository: str, kind: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    with transporting(uri, "asking for the commit of"):
        return str(HfApi().repo_info(repository, repo_type=kind, revision=revision).sha)
