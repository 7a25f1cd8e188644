"""`shapes`: procedural scenes of one to three coloured shapes, with five exact captions each.

Scene `index` of `seed` is always the same scene, so any slice of a dataset of any size can be drawn anywhere,
without a disk: that is what tests, the laptop preset and CC3M-scale tests stand on. Labelled mode draws one
object a scene, and its class is (colour, shape).
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 50),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 130, 25),
    "purple": (130, 50, 170),
    "pink": (245, 140, 195),
    "cyan": (60, 205, 215),
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "black": (12, 12, 12),
    "grey": (128, 128, 128),
    "beige": (225, 205, 165),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"large": 0.19, "small": 0.105}  # radius as a share of the image's side
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

# Words for the same thing, so that five captions of a scene are paraphrases rather than copies.
SYNONYMS = {
    "large": ("large", "big"),
    "small": ("small", "little"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "centre": ("in the centre", "in the middle"),
}
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CAPTIONS_PER_IMAGE = 5
_SUPERSAMPLING = 4  # drawn this much larger, then averaged down: smooth edges at 32 px

Ink = tuple[int, int, int] | int


@dataclass(frozen=True)
class Object:
    """One shape. `x`, `y` and `radius` are shares of the image's side, `angle` is in degrees."""

    shape: str
    colour: str
    size: str
    cell: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn; the first object is the main one (the largest, then the first drawn)."""

    objects: tuple[Object, ...]
    background: str
    background_rgb: tuple[int, int, int]
    caption_seed: tuple[int, int]

    @property
    def label(self) -> int:
        """Class of the main object, an index into `CLASS_NAMES`."""
        main = self.objects[0]
        return CLASS_NAMES.index(f"{main.colour} {main.shape}")

    def render(self, image_px: int) -> Image.Image:
        """The scene as an RGB image of `image_px` by `image_px`."""
        side = image_px * _SUPERSAMPLING
        image = Image.new("RGB", (side, side), self.background_rgb)
        draw = ImageDraw.Draw(image)
        for item in reversed(self.objects):  # the main object is never covered
            draw_object(draw, item, side, fill=item.rgb, hole=self.background_rgb)
        return image.reduce(_SUPERSAMPLING)

    def captions(self) -> list[str]:
        """Five captions, each of which says exactly what is drawn, in other words and another order."""
        rng = np.random.default_rng((*self.caption_seed, 1))
        templates = _TEMPLATES if len(self.objects) == 1 else _RELATED_TEMPLATES
        chosen = rng.permutation(len(templates))[:CAPTIONS_PER_IMAGE]
        return [templates[t].format(**_wording(self, rng)) for t in chosen]


_TEMPLATES = (
    "{things} on a {background} background",
    "on {background}, {things}",
    "a picture of {things}, the background is {background}",
    "a {background} image with {things}",
    "there is {things} against {background}",
    "{things} over {background}",
    "{count} drawn on {background}: {things}",
)
_RELATED_TEMPLATES = (  # for scenes of two or three objects
    *_TEMPLATES,
    "on {background}, {things}, the first {relation} the second",
    "{things}, the first {relation} the second, {background} background",
)


def _wording(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    def say(word: str) -> str:
        return str(rng.choice(SYNONYMS.get(word, (word,))))

    def place(cell: str) -> str:
        if cell == "centre":
            return say(cell)
        return f"{rng.choice(('at', 'in' if ' ' in cell else 'on'))} the {cell}"

    def thing(item: Object) -> str:
        return f"a {say(item.size)} {item.colour} {say(item.shape)} {place(item.cell)}"

    ordered = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    things = [thing(item) for item in ordered]
    listed = " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))
    count = ("one shape", "two shapes", "three shapes")[len(things) - 1]
    words = {"things": listed, "background": scene.background, "count": count}
    return words if len(ordered) == 1 else {**words, "relation": _relation(*ordered[:2])}


def _relation(first: Object, second: Object) -> str:
    (row_1, column_1), (row_2, column_2) = (divmod(CELLS.index(o.cell), 3) for o in (first, second))
    if row_1 != row_2:
        return "above" if row_1 < row_2 else "below"
    return "left of" if column_1 < column_2 else "right of"


def draw_object(draw: ImageDraw.ImageDraw, item: Object, side: int, *, fill: Ink, hole: Ink) -> None:
    """Draws `item` on an image of `side` by `side` pixels in the ink `fill`, the inside of a ring in `hole`."""
    x, y, r = item.x * side, item.y * side, item.radius * side

    def turned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        c, s = np.cos(np.radians(item.angle)), np.sin(np.radians(item.angle))
        return [(x + r * (c * px - s * py), y + r * (s * px + c * py)) for px, py in points]

    match item.shape:
        case "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        case "ring":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            inner = 0.5 * r
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=hole)
        case "square":
            draw.polygon(turned([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]), fill=fill)
        case "triangle":
            draw.polygon(turned([(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]), fill=fill)
        case "star":
            spokes = [(1.1 if k % 2 == 0 else 0.45, np.pi * k / 5 - np.pi / 2) for k in range(10)]
            draw.polygon(turned([(q * np.cos(a), q * np.sin(a)) for q, a in spokes]), fill=fill)
        case "cross":
            for w, h in ((1.0, 0.32), (0.32, 1.0)):
                draw.polygon(turned([(-w, -h), (w, -h), (w, h), (-w, h)]), fill=fill)


def scene(index: int, *, seed: int, labelled: bool = False) -> Scene:
    """Scene number `index` of the endless dataset `seed`."""
    rng = np.random.default_rng((seed, index))
    n_objects = 1 if labelled else int(rng.choice((1, 2, 3), p=(0.35, 0.45, 0.2)))
    sizes = rng.choice(tuple(SIZES), n_objects)
    if n_objects == 3:  # three large ones would overlap
        sizes[1:] = "small"
    order = sorted(range(n_objects), key=lambda i: sizes[i] != "large")
    cells = rng.choice(len(CELLS), n_objects, replace=False)
    objects = []
    for i in order:
        row, column = divmod(int(cells[i]), 3)
        # Centres lie a quarter of the side apart, so that large shapes stay inside; ±2 % of jitter.
        x, y = (0.5 + 0.28 * (c - 1) + rng.uniform(-0.02, 0.02) for c in (column, row))
        colour = str(rng.choice(tuple(COLOURS)))
        objects.append(
            Object(
                shape=str(rng.choice(SHAPES)),
                colour=colour,
                size=str(sizes[i]),
                cell=CELLS[cells[i]],
                x=x,
                y=y,
                radius=SIZES[sizes[i]] * rng.uniform(0.93, 1.07),
                angle=rng.uniform(-10, 10),
                rgb=jitter(COLOURS[colour], rng),
            )
        )
    background = str(rng.choice(tuple(BACKGROUNDS)))
    return Scene(tuple(objects), background, jitter(BACKGROUNDS[background], rng), (seed, index))


def jitter(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """The colour, up to 8 of 255 levels lighter or darker in each channel."""
    r, g, b = (int(np.clip(c + rng.integers(-8, 9), 0, 255)) for c in rgb)
    return r, g, b


def pairs(
    start: int, stop: int, *, seed: int, image_px: int = 32, labelled: bool = False
) -> Iterator[dict[str, Any]]:
    """Pairs `start` to `stop` as `{key, image (PNG bytes), captions, label}`; `label` is None unless labelled."""
    scenes = (scene(index, seed=seed, labelled=labelled) for index in range(start, stop))
    return as_pairs(scenes, start, seed=seed, image_px=image_px, labelled=labelled)


def as_pairs(
    scenes: Iterable[Any], start: int, *, seed: int, image_px: int, labelled: bool, **png: Any
) -> Iterator[dict[str, Any]]:
    """Scenes of any world from number `start` on as pairs; `png` are Pillow's options of the format."""
    for index, drawn in enumerate(scenes, start):
        file = io.BytesIO()
        drawn.render(image_px).save(file, "PNG", **png)
        yield {
            "key": f"shapes-{seed}-{index:09d}",
            "image": file.getvalue(),
            "captions": drawn.captions(),
            "label": drawn.label if labelled else None,
        }
