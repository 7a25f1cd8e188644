"""Image files: how an annotation file or a folder lists them, and what their bytes decode to."""

import hashlib
import io
import os
import posixpath
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mmdd_ray.config import Data
from mmdd_ray.errors import UserError

# Pillow also opens PostScript, which starts an interpreter, and dozens of formats no dataset uses.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# What Pillow's parsers raise on damaged bytes. The bytes are in memory, so an OSError here is never the disk.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    struct.error,
    Image.DecompressionBombError,
)


# Pillow keeps its limit in a global of the process; who changes it for a moment holds this lock.
_PILLOW_LIMIT = Lock()
# Up to twice the limit Pillow only warns. Those images are refused here, with a reason that is counted.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor is what it says of damaged metadata of any use, a line for each of a million images.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# EXIF tag 274: how the camera was held, and what turns its image upright.
_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that cannot be used; the message is the short reason, e.g. "undecodable image"."""


def decode_image(data: bytes, *, max_pixels: int, image_px: int | None = None) -> NDArray[np.uint8]:
    """The image as uint8 RGB of shape (H, W, 3), or (image_px, image_px, 3) if ``image_px`` is given.

    EXIF orientation is applied; CMYK, palette and 16-bit grey are converted; transparency is composited on
    white; of an animation the first frame is taken. With ``image_px`` the largest centred square is resized
    bicubically, which is resizing the shorter side and cropping the centre.

    Raises:
        BadImage: for bytes that are no whole image of ``FORMATS``, or more than ``max_pixels`` pixels.
    """
    image = _open(data, max_pixels)
    try:
        image.load()
        rgb = _to_rgb(_upright(image))
        if image_px is not None:
            # Crops first: resizing the shorter side of a 1 x 1,000,000 image would need terabytes.
            rgb = ImageOps.fit(rgb, (image_px, image_px), Image.Resampling.BICUBIC)
        return np.array(rgb)
    except _DAMAGE as error:
        raise BadImage("undecodable image") from error


def encode_png(image_u8: NDArray[np.uint8]) -> bytes:
    """A uint8 RGB image (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image_u8).save(file, "PNG")
    return file.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image with its header read and its declared size checked, but no pixel decoded."""
    try:
        with _PILLOW_LIMIT:
            own_limit = Image.MAX_IMAGE_PIXELS
            # Raised as well as lowered, but never off: inside files it also guards TIFF tiles and WebP canvases.
            Image.MAX_IMAGE_PIXELS = max_pixels
            try:
                image = Image.open(io.BytesIO(data), formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = own_limit
    except Image.DecompressionBombError as error:  # above twice the limit
        raise BadImage("too many pixels") from error
    except _DAMAGE as error:
        raise BadImage("not an image") from error
    if image.width * image.height > max_pixels:
        raise BadImage("too many pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:  # a good image with damaged metadata is still a good image
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion would clip at 255 and leave all but the darkest greys white.
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 = 255 * 257
    if image.mode == "F":
        raise BadImage("unsupported pixel format")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


class Entry(NamedTuple):
    """A row of a source that stores its images as single files; ``path`` is relative to the image folder."""

    key: str
    path: str | None
    captions: tuple[Any, ...] = ()
    label: Any = None
    reject: str | None = None


def json_entries(document: Any, data: Data) -> list[Entry]:
    """Rows of a COCO captions or Karpathy JSON document, in its order; UserError for any other layout."""
    try:
        images = document["images"]
        if "annotations" in document:
            return _coco_entries(images, document["annotations"], data)
        if any("sentences" in image for image in images):
            return _karpathy_entries(images, data)
    except (AttributeError, KeyError, TypeError):
        pass
    keys = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
    raise UserError(
        f"data.uri={data.uri} is neither COCO captions ({{images: [{{id, file_name}}], annotations: "
        f"[{{image_id, caption}}]}}) nor Karpathy JSON ({{images: [{{filename, sentences: [{{raw}}], "
        f"split}}]}}): found {keys}"
    )


def _coco_entries(images: list[dict], annotations: list[dict], data: Data) -> list[Entry]:
    if data.split is not None:
        raise UserError(
            f"data.split={data.split!r} works with Karpathy JSON only; name the file of the split"
        )
    captions: dict[Any, list[Any]] = {image["id"]: [] for image in images}
    strays = []
    for annotation in annotations:
        if annotation["image_id"] in captions:
            captions[annotation["image_id"]].append(annotation["caption"])
        else:
            strays.append(Entry(f"image-{annotation['image_id']}", None))  # refused: "missing image"
    return [
        _entry(image["file_name"], image["file_name"], captions[image["id"]], image.get(data.label_column))
        for image in images
    ] + strays


def _karpathy_entries(images: list[dict], data: Data) -> list[Entry]:
    splits = {image["split"] for image in images} if data.split is not None else set()
    if data.split is not None and data.split not in splits:
        raise UserError(f"data.split={data.split!r} is not in {data.uri}: it has {', '.join(sorted(splits))}")
    kept = {data.split, "restval"} if data.split == "train" else {data.split}
    return [
        _entry(
            image["filename"],
            "/".join(filter(None, (image.get("filepath"), image["filename"]))),
            [sentence["raw"] for sentence in image["sentences"]],
            image.get(data.label_column),
        )
        for image in images
        if data.split is None or image["split"] in kept
    ]


def _entry(name: str, path: str, captions: list[Any], label: Any) -> Entry:
    key = posixpath.splitext(name)[0]
    if not _stays_inside(path):
        return Entry(key, None, reject="unsafe image path")
    return Entry(key, path, tuple(captions), label)


def _stays_inside(path: str) -> bool:
    """Whether a path found in a data file is a plain relative one that a file system can hold."""
    parts = path.split("/")
    return (
        path.isprintable() and ".." not in parts and all(0 < len(os.fsencode(part)) <= 255 for part in parts)
    )


def folder_entries(paths: Sequence[str]) -> list[Entry]:
    """Rows of an image folder from its files' relative paths, in an order that mixes the classes.

    It is that of a hash of their paths: any run of rows, such as a shard, a batch or the first rows, has all classes.

    The first sub-folder is the class: its name, underscores as spaces, is the caption and its place among
    the sorted names the label. A file outside any class has no caption and will be refused. The key is the
    path without suffix, or with it where files differ in nothing else.
    """
    classes = sorted({path.split("/")[0] for path in paths if "/" in path})
    label_of = {name: label for label, name in enumerate(classes)}
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    taken = Counter([*stems.values(), *paths])  # 1.jpg.png must not take the key of a 1.jpg beside 1.gif
    entries = []
    for path in sorted(paths, key=lambda path: (hashlib.blake2s(os.fsencode(path)).digest(), path)):
        label = label_of[path.split("/")[0]] if "/" in path else None
        captions = () if label is None else (classes[label].replace("_", " "),)
        key = stems[path] if taken[stems[path]] == 1 else path
        entries.append(Entry(key, path, captions, label))
    return entries
