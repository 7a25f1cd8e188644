"""One picture to judge by eye whether a set has copies: its images beside the real ones that are nearest to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.distilled.contact_sheet import (
    CAPTION_INK,
    FONT_PX,
    FRAME,
    GAP_PX,
    LINE_PX,
    PAPER,
    PROMPT_INK,
    TILE_PX,
    png_bytes,
    shrunk,
    thumbnail,
)

COLUMNS = 3
BETWEEN_PX = 6
COPY_INK = "#c0392b"
MAX_NAME = 26  # letters that fit under an image


@dataclass(frozen=True)
class BesideReal:
    """An image of a set and the real one that is nearest to it."""

    key: str
    image: bytes
    real: bytes
    real_name: str
    cosine: float
    rms: float
    is_copy: bool


def copies_sheet(pairs: Sequence[BesideReal], max_pixels: int) -> bytes:
    """PNG file: each image of the set on the left, its nearest real one on the right, with both figures below.

    Small images are enlarged without smoothing. The figures of a copy are red.

    Args:
        max_pixels: of a real image.
    """
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")),
        FONT_PX,
        layout_engine=ImageFont.Layout.BASIC,  # the other engine is a library that some machines lack
    )
    columns = max(min(COLUMNS, len(pairs)), 1)
    cell = (2 * TILE_PX + BETWEEN_PX + GAP_PX, TILE_PX + 3 * LINE_PX + GAP_PX)
    rows = max(-(-len(pairs) // columns), 1)
    sheet = Image.new("RGB", (GAP_PX + columns * cell[0], GAP_PX + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(pairs):
        left = GAP_PX + number % columns * cell[0]
        top = GAP_PX + number // columns * cell[1]
        right = left + TILE_PX + BETWEEN_PX
        _paste(sheet, draw, thumbnail(one.image), left, top)
        try:
            real = decode_image(one.real, max_pixels=max_pixels)
            _paste(sheet, draw, shrunk(Image.fromarray(real)), right, top)
        except BadImage:
            draw.text((right, top), "not in the data any more", CAPTION_INK, font)
        below = top + TILE_PX + 6
        draw.text((left, below), f"set: {_cut(one.key)}", PROMPT_INK, font)
        draw.text((right, below), f"real: {_cut(one.real_name)}", CAPTION_INK, font)
        figures = f"differs by {one.rms:.1f} levels, cosine {one.cosine:.3f}"
        ink = COPY_INK if one.is_copy else PROMPT_INK
        draw.text((left, below + LINE_PX), f"{figures}{': a copy' if one.is_copy else ''}", ink, font)
    return png_bytes(sheet)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Image.Image, x: int, y: int) -> None:
    left, top = x + (TILE_PX - tile.width) // 2, y + (TILE_PX - tile.height) // 2
    sheet.paste(tile, (left, top))
    draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)


def _cut(name: str) -> str:
    """The end of a long name, which tells it from others."""
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"
