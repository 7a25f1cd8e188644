"""Model names: the tiny zoo that ships with the package, hub names, and local folders.

A name of the zoo becomes the path of its folder, and from there on a tiny model is loaded by the very call that
loads a published one. Weights are read from safetensors only, and no code of a model repository is ever run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmdd_ray.errors import UserError

FOLDER = Path(__file__).parents[1] / "zoo"
NAMES = ("tiny-clip", "tiny-sd", "tiny-captioner", "tiny-nf", "tiny-bert")
HUB_NAMED = (
    "finetune.generator",
    "captions.model",
    "describe.model",
    "students.text_model",
    "match.text_model",
    "refine.text_model",
)
"""Settings whose models are named as the hub names them."""
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


def check(models: Mapping[str, str]) -> None:
    """Looks whether models that are to be loaded much later are there, or can be downloaded.

    Args:
        models: Names by the setting that names each.

    Raises:
        ValueError: As `resolve`, or a name is neither of the zoo nor a folder, and the model hub cannot be reached
            or does not have it. Without a hub, but with all models in its cache, set HF_HUB_OFFLINE=1.
    """
    remote = {setting: name for setting, name in models.items() if not _is_local(resolve(name))}
    if not remote:
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    for setting, name in remote.items():
        # timm and open_clip have names of their own for repositories, so these only show that the hub answers
        repository = name.removeprefix("hf-hub:")
        try:
            HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        except RepositoryNotFoundError as error:
            if setting in HUB_NAMED:
                raise UserError(
                    f"there is no model {name!r} at {constants.ENDPOINT} (or it is private: set HF_TOKEN); "
                    f"correct --{setting}"
                ) from error
        except Exception as error:  # whichever HTTP client this version of huggingface_hub has
            raise UserError(
                f"--{setting} names the model {name!r}, and {constants.ENDPOINT} cannot be reached for it "
                f"({error}); download it elsewhere and set --{setting} to its local folder, or set "
                "HF_HUB_OFFLINE=1 if it is in the cache"
            ) from error


def version(name: str) -> str | None:
    """A version that tells the weights of this name from others that had it before or will have it.

    "sha256:…" of the weight files of a folder, or "commit:…" of a hub's repository, of which the hub is asked; None
    where it does not say, or HF_HUB_OFFLINE is set.
    """
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
    """The output of ``sha256sum`` of all safetensors files, sorted by their paths, hashed again."""
    lines = []
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _repository(name: str) -> str:
    """The hub's name of a model that open_clip or timm may name in their own way."""
    if name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:")
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
