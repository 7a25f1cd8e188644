"""Datasets on the Hugging Face hub: reading them at one commit, and saying why an upload was refused. No Ray."""

import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from urllib.parse import unquote

from mmdd_ray.errors import UserError
from mmdd_ray.storage.remote import transporting

SCHEME = "hf://"
_REPOSITORY = re.compile(
    r"hf://((?:datasets/|spaces/)?(?!buckets/)[^/@]+/[^/@]+)(?:@((?:refs/[^/]+/)?[^/]+))?(/.*|)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REFUSED = {
    401: "the hub does not know you; log in with hf auth login, or set HF_TOKEN to a token that may write",
    403: "your token may not write there; take one with write access to that owner, or name another owner",
    404: "there is no such repository, or your token may not see it; check the name",
}
_PASSING = (408, 409, 412, 429)
"""Statuses of refusals that may be none the next time: too slow, too fast, or another writer came first."""


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
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    with transporting(uri, "asking for the commit of"):
        try:
            kind, name = repository.split("/", 1) if repository.count("/") == 2 else ("models", repository)
            found = HfApi().repo_info(name, repo_type=kind.removesuffix("s"), revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise UserError(f"{uri}: no such repository or revision, or your token may not see it") from error
    return str(found.sha)


@contextmanager
def uploading(uri: str) -> Iterator[None]:
    """Around whatever changes a repository on the hub.

    Raises:
        UserError: The hub refuses it, by status 4xx: the token, the name or the content is wrong.
        StorageError: The hub fails or cannot be reached; another try may succeed.
    """
    with transporting(uri, "uploading to"):
        try:
            yield
        except UserError:
            raise
        except (
            Exception
        ) as error:  # the library raises one kind for a thread that uploads, and others elsewhere
            if says := _refusal(error):
                raise UserError(f"{uri}: {says}") from error
            raise


def _refusal(error: BaseException) -> str | None:
    """The sentence for an error by which the hub refuses something; None for errors of another kind."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "response"):
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if not 400 <= status < 500 or status in _PASSING:
        return None
    return _REFUSED.get(status, f"the hub refuses it: {' '.join(str(error).split())}")
