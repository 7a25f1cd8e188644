"""One picture to judge by eye whether a set has copies: its images beside the real ones that are nearest to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmdd_ray.distilled.contact_sheet import (
    CAPTION_INK,
    FRAME,
    GAP_PX,
    PAPER,
    PROMPT_INK,
    png_bytes,
    shrunk,
)

COLUMNS = 5
TILE_PX = 128  # 4 * 32 px and 2 * 64 px
BETWEEN_PX = 6
CELL_PX = 2 * TILE_PX + BETWEEN_PX
FONT_PX, LINE_PX = 15, 20
COPY_INK = "#c0392b"


@dataclass(frozen=True)
class BesideReal:
    """An image of a set and the real one that is nearest to it."""

    key: str
    image: np.ndarray
    """(H, W, 3) uint8."""
    real: np.ndarray
    """(H, W, 3) uint8."""
    real_name: str
    cosine: float
    rms: float
    is_copy: bool


def copies_sheet(pairs: Sequence[BesideReal]) -> bytes:
    """PNG file: each image of the set on the left, its nearest real one on the right, with figures and
    names below: root mean square difference of levels, and CLIP's cosine.

    Small images are enlarged without smoothing. The figures of a copy are red.
    """
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")),
        FONT_PX,
        layout_engine=ImageFont.Layout.BASIC,  # the other engine is a library that some machines lack
    )
    columns = max(min(COLUMNS, len(pairs)), 1)
    width, height = CELL_PX + GAP_PX, TILE_PX + 6 + 3 * LINE_PX + GAP_PX
    size = GAP_PX + columns * width, GAP_PX + max(-(-len(pairs) // columns), 1) * height
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(pairs):
        left, top = GAP_PX + number % columns * width, GAP_PX + number // columns * height
        _paste(sheet, draw, one.image, left, top)
        _paste(sheet, draw, one.real, left + TILE_PX + BETWEEN_PX, top)
        figures = f"{one.rms:.1f} levels, cosine {one.cosine:.2f}{', a copy' if one.is_copy else ''}"
        lines = (
            (figures, COPY_INK if one.is_copy else PROMPT_INK),
            (_cut("set ", one.key, font), CAPTION_INK),
            (_cut("real ", one.real_name, font), CAPTION_INK),
        )
        for line, (text, ink) in enumerate(lines):
            draw.text((left, top + TILE_PX + 6 + line * LINE_PX), text, ink, font)
    return png_bytes(sheet)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, image_HW3: np.ndarray, x: int, y: int) -> None:
    tile = shrunk(Image.fromarray(image_HW3), TILE_PX)
    left, top = x + (TILE_PX - tile.width) // 2, y + (TILE_PX - tile.height) // 2
    sheet.paste(tile, (left, top))
    draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)


def _cut(what: str, name: str, font: ImageFont.FreeTypeFont) -> str:
    """A name in one line; of a long one the end, which tells it from others."""
    kept = name
    while font.getlength(f"{what}…{kept}") > CELL_PX:
        kept = kept[1:]
    return what + name if kept == name else f"{what}…{kept}"
