"""Publishing a distilled set on the Hugging Face hub, in one commit."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdd_ray.distilled.croissant import CROISSANT, RECORDS_FILE, croissant, records_file
from mmdd_ray.distilled.licences import licences_of, set_licence
from mmdd_ray.distilled.read import check_images, read_distilled, read_learnt, read_manifest
from mmdd_ray.distilled.sample import CARD, CONTACT_SHEET, IMAGES, LEARNT, MANIFEST, SHARD_NAME
from mmdd_ray.errors import UserError
from mmdd_ray.storage.hub import uploading
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

_TARGET = re.compile(r"hf://datasets/([^/@\s]+/[^/@\s]+)/?")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_OURS = {MANIFEST, CARD, CONTACT_SHEET, LEARNT, CROISSANT, RECORDS_FILE}
_GIT = ".gitattributes"  # the hub writes it into a new repository

Content = Path | bytes


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    """Page of the set."""
    licence: str
    """The hub's identifier."""
    uploaded: Mapping[str, int]
    """Bytes of each file that was new or another one, by its name; none where the hub had this set already."""
    removed: tuple[str, ...]
    """Files of an earlier set that this one does not have."""


def push(
    uri: str, to: str, *, license: str | None = None, private: bool = False, message: str | None = None
) -> Pushed:
    """Publishes a distilled set: its files, the card with its licence, and a Croissant description.

    The repository is made if it is not there. All files come in one commit, and only those that the hub lacks; a push
    that was broken off goes on where it was, and a set that is there already makes no commit. The token is that of
    ``huggingface_hub``: ``HF_TOKEN``, or what ``hf auth login`` keeps.

    Args:
        uri: The folder of the set, a local path or a URI.
        to: ``hf://datasets/OWNER/NAME``.
        license: An identifier of the hub, such as "cc-by-4.0". Default: the licence of the card, which is there where
            all models and data of the set have the same one.
        private: Whether a repository that is made is private.
        message: Message of the commit.

    Raises:
        UserError: The set is damaged, its licence is unknown, ``to`` is no such address or holds something else, or
            the hub refuses the token.
        StorageError: The hub fails; another push goes on where this one was.
    """
    repository = _repository(to)
    source = Store(uri)
    read_manifest(source)
    whole = _checked(source.fetch(""), redact(uri), license)
    return _upload(repository, to, whole, private, message)


@dataclass(frozen=True)
class _Whole:
    """A set that was checked, as it is to be on the hub."""

    manifest: Mapping[str, Any]
    licence: str
    files: Mapping[str, Content]
    """By name; without the Croissant description."""


@dataclass(frozen=True)
class _Page:
    """Where a set is published, by whom and since when."""

    endpoint: str
    repository: str
    me: str
    """The account of the token."""
    published: date

    @property
    def url(self) -> str:
        return f"{self.endpoint}/datasets/{self.repository}"

    def described(self, whole: _Whole) -> dict[str, Any]:
        """The Croissant description of the set on this page."""
        owner, name = self.repository.split("/")
        kind = "Person" if owner == self.me else "Organization"
        beside = [file for file in (MANIFEST, CONTACT_SHEET, RECORDS_FILE, LEARNT) if file in whole.files]
        return croissant(
            whole.manifest,
            name=name,
            url=self.url,
            files_at=f"{self.url}/resolve/main",
            creator={"type": kind, "name": owner, "url": f"{self.endpoint}/{owner}"},
            licence=whole.licence,
            published=self.published,
            files={file: (_size(whole.files[file]), _sha256(whole.files[file])) for file in beside},
        )


def _checked(folder: Path, where: str, license: str | None) -> _Whole:
    """The set in a local folder; ``where`` names it in messages."""
    store = Store(str(folder))
    manifest = read_manifest(store)
    card, licence = _card(store, manifest, where, license)
    samples = read_distilled(store)
    read_learnt(store)
    check_images(store)
    names = [shard["name"] for shard in manifest["shards"]]
    names += [MANIFEST, CONTACT_SHEET, *store.files(IMAGES), *([LEARNT] if manifest.get("learnt") else [])]
    made: dict[str, Content] = {CARD: card.encode(), RECORDS_FILE: records_file(manifest, samples)}
    return _Whole(manifest, licence, {name: folder / name for name in names} | made)


def _repository(to: str) -> str:
    """OWNER/NAME of an address of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    match = _TARGET.fullmatch(to)
    if match is None:
        raise UserError(
            f"{redact(to)} is no place for a set; name a dataset on the hub, hf://datasets/OWNER/NAME"
        )
    try:
        validate_repo_id(match[1])
    except HFValidationError as error:
        raise UserError(f"{to} is no name that the hub allows: {error}") from error
    return match[1]


def _card(store: Store, manifest: Mapping[str, Any], where: str, license: str | None) -> tuple[str, str]:
    """The card of the set with its licence, and the licence alone."""
    from huggingface_hub import DatasetCard

    for name in (CARD, CONTACT_SHEET):
        if not store.exists(name):
            raise UserError(f"{where} has no {name}; copy the distilled set again")
    card = DatasetCard(store.read_bytes(CARD).decode(), ignore_metadata_errors=True)
    given = license or card.data.get("license") or set_licence(manifest)
    if given is None:
        parts = "; ".join(f"{name}: {licence}" for name, licence in licences_of(manifest).items())
        raise UserError(
            f"the licence of {where} does not follow from what it was made of ({redact(parts)}); name the one that you "
            "give it by --license, such as cc-by-4.0, or other"
        )
    licence = str(given).lower()  # as the hub spells the names of SPDX
    if not _LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {given} is no identifier of a licence; name one such as cc-by-4.0, or other"
        )
    card.data["license"] = licence
    return str(card), licence


def _upload(repository: str, to: str, whole: _Whole, private: bool, message: str | None) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise UserError(
            f"{to}: there is no token to write with; log in with hf auth login, or set HF_TOKEN to one that may write"
        )
    api = HfApi()
    with uploading(to):
        api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        found = api.dataset_info(repository, files_metadata=True)
        me = api.whoami()["name"]
    there = {file.rfilename: file for file in found.siblings or ()}
    if private and found.private is False:
        raise UserError(f"{to} is public already; make it private on the hub first, or leave out --private")
    others = sorted(there.keys() - {_GIT, CARD})
    if others and not (MANIFEST in there and _holds_set(api, repository, to)):
        raise UserError(
            f"{to} holds no distilled set but other files, e.g. {others[0]}; name another repository"
        )
    page = _Page(api.endpoint, repository, me, (found.created_at or datetime.now(UTC)).date())
    described = json.dumps(page.described(whole), indent=1, ensure_ascii=False).encode()
    files = {**whole.files, CROISSANT: described}
    new = {name: content for name, content in files.items() if not _is_same(there.get(name), content)}
    stale = tuple(name for name in there if _is_of_set(name) and name not in files)
    if new or stale:
        manifest = whole.manifest
        with uploading(to):
            api.create_commit(
                repository,
                [
                    *(
                        CommitOperationAdd(path_in_repo=name, path_or_fileobj=one)
                        for name, one in new.items()
                    ),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=message
                or f"{manifest['method']}: {manifest['pairs']:,} pairs, {manifest['checksum'][:12]}",
                repo_type="dataset",
                parent_commit=found.sha,
            )
    return Pushed(page.url, whole.licence, {name: _size(content) for name, content in new.items()}, stale)


def _holds_set(api: "HfApi", repository: str, to: str) -> bool:
    """Whether the manifest of a repository is a set's: other projects have a manifest.json and numbered tars, too."""
    with uploading(to):
        manifest = Path(api.hf_hub_download(repository, MANIFEST, repo_type="dataset"))
    try:
        read_manifest(Store(str(manifest.parent)))
    except UserError:
        return False
    return True


def _is_of_set(name: str) -> bool:
    """Whether a file of this name belongs to a set, so that one of an earlier set is to go."""
    return name in _OURS or name.startswith(f"{IMAGES}/") or SHARD_NAME.fullmatch(name) is not None


def _is_same(remote: "RepoSibling | None", content: Content) -> bool:
    """Whether the hub has this content: by SHA-256 of large files, or by git's identifier of others."""
    if remote is None or remote.size != _size(content):
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == _sha256(content)
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % _size(content) + _bytes(content)).hexdigest()


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _sha256(content: Content) -> str:
    return hashlib.sha256(_bytes(content)).hexdigest()
