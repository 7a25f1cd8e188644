"""Model names: the tiny zoo that ships with the package, hub names, and local folders.

A name of the zoo becomes the path of its folder, and from there on a tiny model is loaded by the very call that
loads a published one. Weights are read from safetensors only, and no code of a model repository is ever run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmdd_ray.errors import UserError
from mmdd_ray.models.captioners.endpoint import PREFIX as ENDPOINT
from mmdd_ray.models.captioners.endpoint import check_endpoint
from mmdd_ray.models.contents import (
    Contents,
    Folder,
    ModelFiles,
    Repository,
    Role,
    Variant,
    inspect_model,
    weight_files,
)

FOLDER = Path(__file__).parents[1] / "zoo"
NAMES = ("tiny-clip", "tiny-sd", "tiny-captioner", "tiny-nf", "tiny-bert")
ROLES: dict[str, Role] = {
    "clip": "CLIP model",
    "generator": "generator",
    "model": "captioner",
    "image_model": "image encoder",
    "text_model": "text encoder",
}
"""By the last part of the setting that names a model."""
HUB_NAMED: tuple[Role, ...] = ("generator", "captioner", "text encoder")
"""Roles whose models are named as the hub names them; timm and open_clip have names of their own."""
HUB_PREFIX = "hf-hub:"  # of a repository, where a library has names of its own
HUB_TIMEOUT_S = 10


def resolve(name: str) -> str:
    """The folder of a zoo model, an absolute path for an existing folder, and any other name as it is.

    Raises:
        ValueError: `name` looks like a path, but there is no such folder, or like a zoo name, but is none.
    """
    if name in NAMES:
        return str(FOLDER / name)
    if name.startswith("tiny-"):
        raise UserError(f"there is no model {name!r} in the zoo; it has {', '.join(NAMES)}")
    if Path(name).is_dir():
        return str(Path(name).absolute())
    if name.startswith(("/", "./", "../", "~")):
        raise UserError(f"the model folder {name!r} does not exist")
    return name


def local_folder(name: str) -> Path | None:
    """The folder of a model of the zoo or of this machine; None for any other name.

    Raises:
        ValueError: As `resolve`.
    """
    folder = Path(resolve(name).removeprefix("local-dir:"))
    return folder if folder.is_dir() else None


def check(models: Mapping[str, str], sides: Mapping[str, tuple[str, int]] | None = None) -> dict[str, str]:
    """Looks whether models that are to be loaded much later are there, or can be downloaded, and can do what they are
    for; reads no weights.

    Args:
        models: Names by the setting that names each.
        sides: By the setting of an image encoder, that of its images' side, and the side.

    Returns:
        By setting, what each is, of those that could be looked at. Names of timm's and open_clip's own only show that
        the hub answers. With HF_HUB_OFFLINE=1 the hub's cache is looked at.

    Raises:
        UserError: A sentence for each that cannot be used.
    """
    says, wrong = {}, []
    for setting, name in models.items():
        role = ROLES[setting.rpartition(".")[2]]
        try:
            if name.startswith(ENDPOINT):
                says[setting] = _check_served(role, name, setting)
            elif contents := _contents(role, name, setting):
                found = _inspected(role, name, setting, contents)
                if found.only_px and sides and setting in sides:
                    check_side(found.only_px, setting, name, *sides[setting])
                says[setting] = f"{name}: {found.says}" + (f", {found.variant}" if found.variant else "")
        except UserError as error:
            wrong.append(str(error) if setting in str(error) else f"{setting}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    return says


def check_side(only_px: int, setting: str, name: str, px_setting: str, px: int) -> None:
    """Refuses images of another side than the only one that an image encoder takes.

    Raises:
        UserError: They are of another one.
    """
    if px != only_px:
        raise UserError(
            f"{px_setting}={px}, but {setting}={name!r} takes {only_px} px only; set {px_setting}={only_px} or choose "
            "a convolutional network"
        )


def _check_served(role: Role, name: str, setting: str) -> str:
    if role != "captioner":
        raise UserError(
            f"--{setting} names {name!r}, but a server is asked for captions alone; name a {role}"
        )
    return check_endpoint(name, setting)


def _contents(role: Role, name: str, setting: str) -> Contents | None:
    """The files of a model; None if only its library knows where they are, or this machine's cache has none."""
    if folder := local_folder(name):
        return Folder(folder)
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    on_hub = role in HUB_NAMED or name.startswith(HUB_PREFIX)
    repository = name.removeprefix(HUB_PREFIX)
    if constants.HF_HUB_OFFLINE:
        return _cached(repository) if on_hub else None
    try:
        found = HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
    except RepositoryNotFoundError as error:
        if not on_hub:
            return None
        raise UserError(
            f"there is no model {name!r} at {constants.ENDPOINT} (or it is private: set HF_TOKEN); "
            f"correct --{setting}"
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"--{setting}={name} is neither a folder that exists nor a name of the hub"
        ) from error
    except Exception as error:  # whichever HTTP client this version of huggingface_hub has
        raise UserError(
            f"--{setting} names the model {name!r}, and {constants.ENDPOINT} cannot be reached for it "
            f"({error}); download it elsewhere and set --{setting} to its local folder, or set "
            "HF_HUB_OFFLINE=1 if it is in the cache"
        ) from error
    names = frozenset(file.rfilename for file in found.siblings or ())
    return Repository(repository, names) if on_hub and names else None


def _cached(repository: str) -> Contents | None:
    """The files of a repository that are in the cache: perhaps its configs alone, and more on other machines."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repository, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        folder = getattr(error, "snapshot_path", "")
    return Repository(repository, Folder(Path(folder)).names, is_partial=True) if folder else None


def variant_of(role: Role, name: str, setting: str) -> Variant:
    """The suffix of the names of weights that a library has to be told; None if it finds them by itself.

    Raises:
        UserError: A folder holds no such model.
    """
    try:
        contents = _contents(role, name, setting)
        return _inspected(role, name, setting, contents).variant if contents else None
    except UserError:
        if local_folder(name):
            raise
        return None  # the hub does not answer now; the library knows whether its cache will do


def _inspected(role: Role, name: str, setting: str, contents: Contents) -> ModelFiles:
    try:
        return inspect_model(role, contents)
    except UserError as error:
        raise UserError(f"--{setting} names {name!r}, which {error}") from error


def public_name(name: str) -> str:
    """The name of a model for others: that of a server's without the server's address."""
    return (
        f"{name.removeprefix(ENDPOINT).rpartition('@')[0]} (a server's)"
        if name.startswith(ENDPOINT)
        else name
    )


def version(name: str) -> str | None:
    """A version that tells the weights of this name from others that had it before or will have it.

    "sha256:…" of the weight files of a folder, or "commit:…" of a hub's repository, of which the hub is asked; None
    where it does not say, HF_HUB_OFFLINE is set, or a server has the model.
    """
    if name.startswith(ENDPOINT):
        return None
    source = resolve(name)
    if _is_local(source):
        return f"sha256:{_hash_weights(Path(source.removeprefix('local-dir:')))}"
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        found = HfApi().model_info(_repository(name), timeout=HUB_TIMEOUT_S).sha
    except Exception:  # whichever HTTP client this version of huggingface_hub has
        return None
    return f"commit:{found}" if found else None


def _is_local(resolved: str) -> bool:
    return resolved.startswith("local-dir:") or Path(resolved).is_dir()


def _hash_weights(folder: Path) -> str:
    """The output of ``sha256sum`` of the safetensors files that are read, sorted by their paths, hashed again."""
    lines = []
    for name in sorted(weight_files(Folder(folder)) or ()):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _repository(name: str) -> str:
    """The hub's name of a model that open_clip or timm may name in their own way."""
    if name.startswith(HUB_PREFIX):
        return name.removeprefix(HUB_PREFIX)
    import open_clip
    import timm

    architecture, _, tag = name.partition("/")
    if found := (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub"):
        return found.rstrip("/")
    config = None if tag else timm.get_pretrained_cfg(name, allow_unregistered=False)
    return (config and config.hf_hub_id) or name


@contextmanager
def loading(role: str, name: str, setting: str) -> Iterator[None]:
    """Turns whatever a library raises for a missing or unreachable model into one sentence.

    Hides the progress bars and tables of unused weights that transformers prints for every load.

    Args:
        role: What the model is for, e.g. "image captioner".
        setting: The setting that names the model, e.g. "captions.model".

    Raises:
        ValueError: The model is a folder of pickled weights, or could not be loaded; then the library's error is its
            cause.
    """
    if (folder := local_folder(name)) and not any(folder.rglob("*.safetensors")):
        raise UserError(
            f"cannot load the {role} {name!r}: the folder holds no *.safetensors, and pickled weights are not read; "
            f"convert them, or set --{setting} to another model"
        )
    try:
        with _quiet_transformers():
            yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # hub libraries raise all three for a missing model
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the {role} {name!r} ({first_line[:200]}); if no model hub can be reached from here, "
            f"download it elsewhere and set --{setting} to its local folder"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()
