"""Images with captions and hard negatives: from files as SugarCrepe publishes them, or procedural scenes. No Ray.

A file of SugarCrepe (Hsieh et al., NeurIPS 2023, arXiv 2306.14610) is a JSON object ``{"0": {"filename": …, "caption":
…, "negative_caption": …}, …}`` with the contrasts of one kind, which the name of the file says.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from mmdd_ray.config.data import SCENES
from mmdd_ray.data.formats.scenes import Scenes, scenes_of
from mmdd_ray.data.hard_negatives import Contrast, contrasts
from mmdd_ray.data.images import encode_png
from mmdd_ray.data.listing import reachable
from mmdd_ray.data.web_scenes import WebScene
from mmdd_ray.errors import UserError
from mmdd_ray.storage.store import Store

SETTING = "evaluation.compositional"
FIELDS = ("filename", "caption", "negative_caption")


@dataclass(frozen=True)
class ImageContrasts:
    """An image, which is read when it is wanted, and its contrasts."""

    name: str
    read: Callable[[], bytes]
    """Its encoded file; raises ``FileNotFoundError``."""
    contrasts: list[Contrast]


class ContrastList(NamedTuple):
    """What a source holds."""

    images: list[ImageContrasts]
    """Sorted by name."""
    rejects: list[tuple[str, str, str]]
    """Kind, key and reason of each refused entry, of all images."""
    of_images: int
    """How many the source has."""
    entries: int
    """Entries of ``images``, and all refused ones."""
    drawn: str
    """How ``images`` were chosen where the source has more, as a sentence about them ends."""

    def about(self) -> dict[str, int | str]:
        """Counts, for a report."""
        return {
            "images": len(self.images),
            "of_images": self.of_images,
            "drawn": self.drawn,
            "rows": self.entries,
            "repeated": 0,
        }


def list_contrasts(uri: str, image_root: str | None, max_images: int) -> ContrastList:
    """At most ``max_images`` images of a source with all of their contrasts; opens no image.

    Of files those images are kept whose names have the smallest digests, the same in every run; of scenes the first.

    Raises:
        UserError: The source cannot be read, is no such file or folder, or has no usable entry.
    """
    if uri.startswith(SCENES):
        if image_root is not None:
            raise UserError(
                f"{SETTING}_image_root={image_root}, but {uri} draws its images; leave that setting out"
            )
        return _of_scenes(uri, max_images)
    with reachable(SETTING, uri):
        return _of_files(uri, image_root, max_images)


def _of_scenes(uri: str, max_images: int) -> ContrastList:
    try:
        scenes = scenes_of(uri)
    except UserError as error:
        raise UserError(str(error).replace("data.uri", SETTING, 1)) from error
    if scenes.rows < 1:
        raise UserError(f"{SETTING}={uri} holds no rows; write e.g. shapes:500?seed=7")
    images = [_of_scene(scenes, index) for index in range(min(scenes.rows, max_images))]
    return ContrastList(images, [], scenes.rows, sum(len(one.contrasts) for one in images), "the first ones")


def _of_scene(scenes: Scenes, index: int) -> ImageContrasts:
    drawn = scenes.draw(index)
    named = drawn.named if isinstance(drawn, WebScene) else drawn
    return ImageContrasts(
        f"{index:09d}",
        lambda: encode_png(np.asarray(drawn.render(scenes.image_px))),
        contrasts(named),
    )


def _of_files(uri: str, image_root: str | None, max_images: int) -> ContrastList:
    folder, names = _files(uri)
    by_image: dict[str, list[Contrast]] = defaultdict(list)
    rejects = []
    for name in names:
        kind = name.removesuffix(".json")
        for key, entry in _entries(folder.read_bytes(name), f"{folder.uri}/{name}").items():
            try:
                by_image[_filename(entry)].append(_contrast(kind, entry))
            except _Reject as reason:
                rejects.append((kind, key, str(reason)))
    if not by_image:
        raise UserError(
            f"{SETTING}={uri} has no usable entry; each needs {', '.join(FIELDS)}, as SugarCrepe has them"
        )
    root = folder if image_root is None else Store(image_root)
    kept = sorted(sorted(by_image, key=_digest)[:max_images])
    images = [ImageContrasts(name, _reader(root, name), by_image[name]) for name in kept]
    entries = sum(len(one.contrasts) for one in images) + len(rejects)
    return ContrastList(images, rejects, len(by_image), entries, "drawn by their names")


def _files(uri: str) -> tuple[Store, list[str]]:
    """The folder, and the names of its JSON files."""
    if uri.endswith(".json"):
        path, _, name = uri.rpartition("/")
        return Store(path or "."), [name]
    folder = Store(uri)
    names = [name for name in folder.entries() if name.endswith(".json")]
    if not names:
        raise UserError(
            f"{SETTING}={uri} is no folder with JSON files; name one as SugarCrepe publishes it, or shapes:ROWS?seed=S"
        )
    return folder, names


def _entries(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{SETTING}: {where} cannot be read as JSON ({error}); mend the file") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{SETTING}: {where} holds a JSON {type(found).__name__}, not an object of entries by number as SugarCrepe "
            "has it; write it so"
        )
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")  # json would take the last in silence
    return found


class _Reject(Exception):
    """Why an entry is refused."""


def _filename(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        raise _Reject("entry is no object")
    name = entry.get("filename")
    if not isinstance(name, str) or not name:
        raise _Reject("missing filename")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _Reject("file outside of the image folder")
    return name


def _contrast(kind: str, entry: Mapping[str, Any]) -> Contrast:
    texts = []
    for field in FIELDS[1:]:
        text = entry.get(field)
        if not isinstance(text, str) or not text.strip():
            raise _Reject(f"missing {field}")
        texts.append(" ".join(text.split()))
    if texts[0] == texts[1]:
        raise _Reject("negative is the caption itself")
    return Contrast(kind, *texts)


def _reader(root: Store, name: str) -> Callable[[], bytes]:
    return lambda: root.read_bytes(name)


def _digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
