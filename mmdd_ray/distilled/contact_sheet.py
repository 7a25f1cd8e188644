"""One picture to judge a set of image-caption pairs by: a grid of its images with their captions."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_SAMPLES = 36
COLUMNS = 6
TILE_PX = 192  # 6 * 32 px and 3 * 64 px: small images are enlarged by a whole factor
GAP_PX = 20
FONT_PX = 14
LINE_PX = 18
MAX_CAPTIONS = 3  # of an image
MAX_LINES = 4  # of a caption

PAPER, FRAME = "#ffffff", "#d5d9e0"
PROMPT_INK, CAPTION_INK = "#15181d", "#667085"

T = TypeVar("T")


def contact_sheet(
    pairs: Sequence[tuple[bytes, Sequence[str]]], columns: int = COLUMNS, at_most: int = MAX_SAMPLES
) -> bytes:
    """PNG file of ``at_most`` of the pairs (encoded image, captions), spread evenly over them all.

    The first caption is printed in black, further ones in grey below it; long ones end in an ellipsis.
    Small images are enlarged without smoothing, so that their pixels can be seen.
    """
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")),
        FONT_PX,
        layout_engine=ImageFont.Layout.BASIC,  # the other engine is a library that some machines lack
    )
    shown = spread(pairs, at_most)
    texts = [_lines(captions, font) for _, captions in shown]
    columns = min(columns, len(shown))
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    heights = [TILE_PX + GAP_PX + LINE_PX * max(len(texts[i]) for i in row) for row in rows]

    size = (GAP_PX + columns * (TILE_PX + GAP_PX), GAP_PX + sum(heights) + GAP_PX // 2 * len(rows))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP_PX
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            x = GAP_PX + column * (TILE_PX + GAP_PX)
            tile = thumbnail(shown[i][0])
            left, top = x + (TILE_PX - tile.width) // 2, y + (TILE_PX - tile.height) // 2
            sheet.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=FRAME)
            for number, (line, ink) in enumerate(texts[i]):
                draw.text((x, y + TILE_PX + 6 + number * LINE_PX), line, ink, font)
        y += height + GAP_PX // 2
    return png_bytes(sheet)


def spread(items: Sequence[T], at_most: int) -> list[T]:
    """``at_most`` of the items in their order, spread evenly from the first on; all if they are few."""
    count = min(at_most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def thumbnail(data: bytes) -> Image.Image:
    """The encoded image as RGB, its longer side ``TILE_PX``, or somewhat less where it is much smaller."""
    return shrunk(Image.open(io.BytesIO(data)).convert("RGB"))


def shrunk(image: Image.Image, side_px: int = TILE_PX) -> Image.Image:
    """The image with a longer side of ``side_px``; a much smaller one is enlarged by a whole factor."""
    factor = side_px // max(image.size)
    if factor >= 2:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return ImageOps.contain(image, (side_px, side_px), Image.Resampling.LANCZOS)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _lines(captions: Sequence[str], font: ImageFont.FreeTypeFont) -> list[tuple[str, str]]:
    """Lines of the captions with their colour."""
    return [
        (line, CAPTION_INK if number else PROMPT_INK)
        for number, caption in enumerate(captions[:MAX_CAPTIONS])
        for line in _wrap(caption, font)
    ]


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in at most ``MAX_LINES`` lines of at most ``TILE_PX`` pixels; longer words are cut."""
    lines = [""]
    for word in text[:1000].split():  # far more than fits
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= TILE_PX:
            lines[-1] = joined
        else:
            lines.append(_cut(word, font))
    lines = [line for line in lines if line]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], _cut(f"{lines[MAX_LINES - 1]} …", font)]
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, or as much of its start as fits into a line together with an ellipsis."""
    if font.getlength(text) <= TILE_PX:
        return text
    kept = text.rstrip(" …")
    while font.getlength(f"{kept}…") > TILE_PX:
        kept = kept[:-1]
    return f"{kept}…"
