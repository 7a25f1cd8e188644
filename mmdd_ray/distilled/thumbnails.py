"""Small files of images for pages and tables: pixels of tiny images as they are, photographs as JPEG."""

import base64
import io

from PIL import Image

from mmdd_ray.distilled.contact_sheet import png_bytes

EXACT_PX = 64
"""Images up to this side are kept pixel by pixel: 5 to 12 kB as PNG, and readers want to see what was learnt."""
THUMBNAIL_PX = 160
JPEG_QUALITY = 78  # 4 to 7 kB for a photograph of THUMBNAIL_PX


def small_file(image: Image.Image, side_px: int = THUMBNAIL_PX) -> bytes:
    """An RGB image as a small file: a PNG of all its pixels up to ``EXACT_PX``, otherwise a JPEG whose longer side is
    at most ``side_px``."""
    if max(image.size) <= EXACT_PX:
        return png_bytes(image)
    shown = image.copy()
    shown.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def jpeg_of(data: bytes) -> bytes:
    """An encoded image as a JPEG file of the same size."""
    file = io.BytesIO()
    open_rgb(data).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


def open_rgb(data: bytes) -> Image.Image:
    """The encoded image as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def data_uri(file: bytes) -> str:
    """A PNG or JPEG file as a link that needs no network."""
    kind = "jpeg" if file.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
