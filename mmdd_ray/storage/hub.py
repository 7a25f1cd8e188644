"""Datasets on the Hugging Face hub, held at the commit that they have when a run begins. No Ray."""

import re
from collections.abc import MutableMapping
from urllib.parse import unquote

from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import transporting

SCHEME = "hf://"
_REPOSITORY = re.compile(
    r"hf://((?:datasets/|spaces/)?(?!buckets/)[^/@]+/[^/@]+)(?:@((?:refs/[^/]+/)?[^/]+))?(/.*|)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(uri: str, commits: MutableMapping[str, str]) -> str:
    """An ``hf://`` URI that names the commit of its repository; any other as it is.

    Args:
        commits: By repository and revision; takes those that had to be asked for.

    Raises:
        UserError: That is no address, or the hub has no such repository or revision.
        StorageError: The hub cannot be reached.
    """
    if not uri.startswith(SCHEME):
        return uri
    match = _REPOSITORY.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri} is no address on the Hugging Face hub, hf://datasets/OWNER/NAME/PATH")
    repository, revision, path = match[1], unquote(match[2] or "main"), match[3]
    if _COMMIT.fullmatch(revision):
        return uri
    name = f"{repository}@{revision}"
    if name not in commits:
        commits[name] = _commit_of(uri, repository, revision)
    return f"{SCHEME}{repository}@{commits[name]}{path}"


def _commit_of(uri: str, repository: str, revision: str) -> str:
    from huggingface_hub import HfApi

    with transporting(uri, "asking for the commit of"):
        try:
            kind, name = repository.split("/", 1) if repository.count("/") == 2 else ("models", repository)
            found = HfApi().repo_info(name, repo_type=kind.removesuffix("s"), revision=revision)
        except FileNotFoundError as error:
            raise UserError(f"{uri}: no such repository or revision: {error}") from error
    return str(found.sha)
