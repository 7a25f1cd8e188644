"""Model names: the tiny zoo that ships with the package, hub names, and local folders.

A name of the zoo becomes the path of its folder, and from there on a tiny model is loaded by the very call that
loads a published one. Weights are read from safetensors only, and no code of a model repository is ever run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "zoo"
NAMES = ("tiny-clip", "tiny-sd", "tiny-captioner", "tiny-nf", "tiny-bert")


def resolve(name: str) -> str:
    """The folder of a zoo model, an absolute path for an existing folder, and any other name as it is.

    Raises:
        ValueError: `name` looks like a path, but there is no such folder, or like a zoo name, but is none.
    """
    if name in NAMES:
        return str(FOLDER / name)
    if name.startswith("tiny-"):
        raise ValueError(f"there is no model {name!r} in the zoo; it has {', '.join(NAMES)}")
    if Path(name).is_dir():
        return str(Path(name).absolute())
    if name.startswith(("/", "./", "../", "~")):
        raise ValueError(f"the model folder {name!r} does not exist")
    return name


@contextmanager
def loading(role: str, name: str, setting: str) -> Iterator[None]:
    """Turns whatever a library raises for a missing or unreachable model into one sentence.

    Hides the progress bars and tables of unused weights that transformers prints for every load.

    Args:
        role: What the model is for, e.g. "image captioner".
        setting: The setting that names the model, e.g. "captions.model".

    Raises:
        ValueError: The model could not be loaded; the library's error is its cause.
    """
    try:
        with _quiet_transformers():
            yield
    except (OSError, RuntimeError, ValueError) as error:  # hub libraries raise all three for a missing model
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
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
