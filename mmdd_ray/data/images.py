"""Decoding the bytes of image files."""

import io
import struct
import warnings
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
    """A uint8 RGB image (H, W, 3) as a PNG file.

    Hardly compressed: a photograph of 512 px takes 19 ms in place of Pillow's usual 92, for an eighth more bytes.
    Drawing one takes 150 ms of an H100, which would wait.
    """
    file = io.BytesIO()
    Image.fromarray(image_u8).save(file, "PNG", compress_level=1)
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
