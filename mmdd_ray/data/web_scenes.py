"""`shapes` with what makes pairs from the web hard: the default world of `shapes:` URIs.

The objects that captions name are those of `mmdd_ray.data.shapes`. Around them a picture holds content that no caption
mentions and nuisance that says nothing, frequent concepts are much more frequent than rare ones, and a share of the
captions belongs to another scene or says little. A picture depends on neither `wrong`, `vague` nor `captions`, and the
captions that are wrong at one rate are wrong at every higher one, so that worlds of two rates can be compared.
"""

# px: side of an image in pixels; lengths are shares of that side unless a name says otherwise

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mmdd_ray.data import shapes
from mmdd_ray.errors import UserError

Domain = Literal["web", "clean", "outline", "pastel", "night", "striped", "close-up"]

ELSEWHERE = 2**40  # a wrong caption is that of the scene so many places further on, which no dataset reaches
MAX_MARKS = 16
COVERED_WIDTH = 0.21  # of an object, where something lies across it
COVERED_SHARE = 0.62  # of the objects
TURN_DEGREES = 15.0
LABELLED_RADII = {"large": 0.36, "small": 0.22}
SUPERSAMPLING = 4

STYLES: dict[Domain, tuple[str, ...]] = {
    "clean": ("clip art of {}", "a clean picture, {}"),
    "outline": ("a line drawing of {}", "only outlines, {}"),
    "pastel": ("a pastel drawing of {}", "in pale colours, {}"),
    "night": ("at night, {}", "a dark photo of {}"),
    "striped": ("a striped print of {}", "hatched with stripes, {}"),
    "close-up": ("a close-up of {}", "seen from near, {}"),
}
# Domains of the broad world and their shares; the web's is the largest, as photographs are the most of LAION.
BROAD: dict[Domain, float] = {
    "web": 0.4, "clean": 0.15, "outline": 0.09, "pastel": 0.09, "night": 0.09, "striped": 0.09, "close-up": 0.09,
}  # fmt: skip
STYLE_NAMED = 0.8  # share of the captions of the other domains that name their style
BROAD_LABELLED = 0.2  # share of the broad world's scenes that hold one large object, as labelled scenes do
BROAD_NAMED = 0.5  # share of their captions that are no more than the name of the class

VAGUE_TEMPLATES = (
    "a {colour} shape",
    "a picture with a {shape}",
    "something {colour}",
    "a {shape}",
    "some shapes on {background}",
    "a picture",
    "shapes",
)
NAME_TEMPLATES = (
    "{name}",
    "a {name}",
    "a photo of a {name}",
    "a picture of a {name}",
    "an image of a {name}",
)


@dataclass(frozen=True, kw_only=True)
class World:
    """The web's flaws that a world has. Each default was chosen from the figure beside it, before any method ran.

    Raises:
        UserError: A value is out of its range.
    """

    wrong: float = 0.2
    """Share of the images whose captions belong to another scene. 20 % is the lowest rate that work on noisy
    correspondence simulates on Flickr30K and COCO (Huang et al., NeurIPS 2021, and after). An automatic count finds
    16.8 % of CC3M's pairs without a concept in common (Udandarao et al., arXiv 2404.04125, table 3)."""
    vague: float = 0.1
    """Share of the captions, of those that are not wrong, that say little. A majority of raters calls over 90 % of the
    captions of Conceptual Captions good (Sharma et al., ACL 2018)."""
    captions: int = 1
    """Captions of an image, 1 to 5. CC3M has one, Flickr30K and COCO have five."""
    clutter: float = 5.8
    """Mean number of marks that no caption mentions. COCO has 7.7 objects a picture (Lin et al., ECCV 2014); a caption
    names 1.9 objects here."""
    nuisance: float = 1.0
    """Strength of light, texture, turns and cover; 0 has none. At 1 noise, brightness and contrast are those of
    CIFAR-10-C at its lowest severity (Hendrycks & Dietterich, ICLR 2019: 0.04, 0.05, 0.75); 62 % of the objects are
    covered, by 21 % of their width (Zhu et al., CVPR 2017; from a secondary source). The fall of the light, the
    texture's amplitude and turns of up to 15° follow no figure."""
    tail: float | None = None
    """Zipf exponent of colours and shapes. Default: 1, as of words (Piantadosi, 2014), which makes the commonest of 48
    (colour, shape) pairs 48 times as frequent as the rarest; long-tailed CIFAR-100 has 10 to 200 (Cui et al., CVPR
    2019). Labelled scenes: 0, as ImageNet's classes are nearly equal."""
    broad: bool = False
    """Several domains of pictures and wordings, of which this world is one: what the zoo is pretrained on."""

    def __post_init__(self) -> None:
        ranges = {"wrong": (0, 1), "vague": (0, 1), "captions": (1, shapes.CAPTIONS_PER_IMAGE)}
        ranges |= {"clutter": (0, MAX_MARKS), "nuisance": (0, 2), "tail": (0, 4)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name}={value} must be from {low} to {high}")

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Those that a URI may hold."""
        return tuple(field.name for field in fields(cls) if field.name != "broad")


@dataclass(frozen=True)
class Mark:
    """A small thing that no caption mentions."""

    kind: Literal["dot", "dash", "hook"]
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class WebScene:
    """A scene, and all that its captions do not say of the picture."""

    named: shapes.Scene
    labelled: bool
    domain: Domain
    marks: tuple[Mark, ...]
    covers: tuple[tuple[float, tuple[int, int, int]] | None, ...]
    """For each object the angle of what lies across it, and its colour."""
    world: World

    @property
    def label(self) -> int:
        """That of the named scene."""
        return self.named.label

    def render(self, image_px: int) -> Image.Image:
        """The picture as an RGB image of `image_px` by `image_px`."""
        side = image_px * SUPERSAMPLING
        image = Image.new("RGB", (side, side), self.named.background_rgb)
        draw = ImageDraw.Draw(image)
        for mark in self.marks:
            _draw_mark(draw, mark, side)
        for item, cover in zip(reversed(self.named.objects), reversed(self.covers), strict=True):
            _paint(image, item, cover, self.domain)
        strength = 0.0 if self.domain == "clean" else self.world.nuisance
        small = image.reduce(SUPERSAMPLING)
        return _nuisance(small, strength, self._rng(3)) if strength else small

    def captions(self) -> list[str]:
        """The captions that the data have: true, vague or another scene's."""
        rng = self._rng(4)
        # drawn whether or not they are used, so that each rate leaves the other choices as they are
        is_wrong, vague_C = rng.random() < self.world.wrong, rng.random(shapes.CAPTIONS_PER_IMAGE)
        vague_seed = int(rng.integers(2**32))
        source = self
        if is_wrong:
            seed, index = self.named.caption_seed
            source = scene(index + ELSEWHERE, seed=seed, labelled=self.labelled, world=self.world)
        written = source.true_captions()[: self.world.captions]
        vague_rng = np.random.default_rng(vague_seed)
        return [
            source._vague(vague_rng) if draw < self.world.vague else caption
            for draw, caption in zip(vague_C, written, strict=False)
        ]

    def true_captions(self) -> list[str]:
        """Five captions that say exactly what the named objects are; in other domains most name the style."""
        captions = self.named.captions()
        if not self.world.broad:
            return captions
        rng = self._rng(5)
        main = self.named.objects[0]
        name = f"{main.colour} {rng.choice(shapes.SYNONYMS.get(main.shape, (main.shape,)))}"
        return [self._broad_wording(caption, name, rng) for caption in captions]

    def _broad_wording(self, caption: str, name: str, rng: np.random.Generator) -> str:
        if self.labelled and rng.random() < BROAD_NAMED:
            caption = str(rng.choice(NAME_TEMPLATES)).format(name=name)
        if self.domain != "web" and rng.random() < STYLE_NAMED:
            caption = str(rng.choice(STYLES[self.domain])).format(caption)
        return caption

    def _vague(self, rng: np.random.Generator) -> str:
        main = self.named.objects[0]
        words = {"colour": main.colour, "shape": main.shape, "background": self.named.background}
        return str(rng.choice(VAGUE_TEMPLATES)).format(**words)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng((*self.named.caption_seed, stream))


def scene(index: int, *, seed: int, labelled: bool = False, world: World | None = None) -> WebScene:
    """Scene number `index` of the endless dataset `seed` in `world` (default: `World()`)."""
    world = world or World()
    rng = np.random.default_rng((seed, index, 2))
    domain: Domain = "web"
    if world.broad:
        domain = rng.choice(tuple(BROAD), p=tuple(BROAD.values()))
        labelled = labelled or rng.random() < BROAD_LABELLED
    named = _named(shapes.scene(index, seed=seed, labelled=labelled), labelled, domain, world, rng)
    n_marks = 0 if domain == "clean" else min(int(rng.poisson(world.clutter)), MAX_MARKS)
    marks = tuple(_mark(domain, rng) for _ in range(n_marks))
    covered = 0.0 if domain == "clean" else COVERED_SHARE * min(world.nuisance, 1)
    covers = tuple(
        (rng.uniform(0, 180), _colour(rng, domain)) if rng.random() < covered else None for _ in named.objects
    )
    return WebScene(named, labelled, domain, marks, covers, world)


def _named(
    clean: shapes.Scene, labelled: bool, domain: Domain, world: World, rng: np.random.Generator
) -> shapes.Scene:
    """The scene of the clean world with the concepts' frequencies, the domain's palette and sizes, and turns."""
    tail = world.tail if world.tail is not None else float(not labelled)
    turn = TURN_DEGREES * world.nuisance
    objects = []
    for item in clean.objects:
        colour, shape = _zipf(tuple(shapes.COLOURS), tail, rng), _zipf(shapes.SHAPES, tail, rng)
        rgb = _in_domain(shapes.jitter(shapes.COLOURS[colour], rng), domain)
        item = replace(item, colour=colour, shape=shape, rgb=rgb, angle=item.angle + rng.uniform(-turn, turn))
        if labelled:
            # ImageNet's objects fill 36 % of their picture on average (Russakovsky et al., IJCV 2015; from memory)
            x, y = (0.5 + 0.45 * (at - 0.5) for at in (item.x, item.y))
            item = replace(item, x=x, y=y, radius=LABELLED_RADII[item.size] * rng.uniform(0.93, 1.07))
        elif domain == "close-up":
            item = replace(item, radius=1.35 * item.radius)
        objects.append(item)
    background = _in_domain(clean.background_rgb, domain)
    return replace(clean, objects=tuple(objects), background_rgb=background)


def _zipf(words: tuple[str, ...], exponent: float, rng: np.random.Generator) -> str:
    weight = np.arange(1, len(words) + 1.0) ** -exponent
    return words[int(np.searchsorted(weight.cumsum() / weight.sum(), rng.random(), side="right"))]


def _colour(rng: np.random.Generator, domain: Domain) -> tuple[int, int, int]:
    """Any colour of the palette, or between two of its colours."""
    one, other = rng.choice(np.array(tuple(shapes.COLOURS.values())), 2)
    r, g, b = (int(c) for c in one + rng.random() * (other - one))
    return _in_domain((r, g, b), domain)


def _in_domain(rgb: tuple[int, int, int], domain: Domain) -> tuple[int, int, int]:
    match domain:
        case "pastel":
            towards, share = 255, 0.5
        case "night":
            towards, share = 0, 0.6
        case _:
            return rgb
    r, g, b = (int(c + share * (towards - c)) for c in rgb)
    return r, g, b


def _mark(domain: Domain, rng: np.random.Generator) -> Mark:
    kinds: tuple[Literal["dot", "dash", "hook"], ...] = ("dot", "dash", "hook")
    return Mark(
        kind=kinds[int(rng.integers(3))],
        x=rng.uniform(0.03, 0.97),
        y=rng.uniform(0.03, 0.97),
        radius=rng.uniform(0.02, 0.055),
        angle=rng.uniform(0, 360),
        rgb=_colour(rng, domain),
    )


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, side: int) -> None:
    x, y, r = mark.x * side, mark.y * side, mark.radius * side
    match mark.kind:
        case "dot":
            draw.circle((x, y), 0.7 * r, fill=mark.rgb)
        case "dash":
            dx, dy = r * np.cos(np.radians(mark.angle)), r * np.sin(np.radians(mark.angle))
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=mark.rgb, width=max(1, round(0.6 * r)))
        case "hook":
            box = (x - r, y - r, x + r, y + r)
            draw.arc(box, mark.angle, mark.angle + 200, fill=mark.rgb, width=max(1, round(0.5 * r)))


def _paint(
    image: Image.Image,
    item: shapes.Object,
    cover: tuple[float, tuple[int, int, int]] | None,
    domain: Domain,
) -> None:
    """Draws one object in the manner of the domain, and what lies across it."""
    side = image.width
    mask = Image.new("1", image.size)
    shapes.draw_object(ImageDraw.Draw(mask), item, side, fill=1, hole=0)
    if domain == "outline":
        inside = mask.convert("L").filter(ImageFilter.MinFilter(2 * round(0.02 * side) + 1))
        mask = ImageChops.logical_xor(mask, inside.convert("1"))
    image.paste(item.rgb, mask=mask)
    if domain == "striped":
        darker = tuple(int(0.45 * c) for c in item.rgb)
        image.paste(darker, mask=ImageChops.logical_and(mask, _stripes(side)))
    if cover:
        angle, rgb = cover
        x, y, r = item.x * side, item.y * side, item.radius * side
        dx, dy = r * np.cos(np.radians(angle)), r * np.sin(np.radians(angle))
        width = max(1, round(2 * r * COVERED_WIDTH))
        ImageDraw.Draw(image).line((x - dx, y - dy, x + dx, y + dy), fill=rgb, width=width)


def _stripes(side: int) -> Image.Image:
    y, x = np.ogrid[:side, :side]
    return Image.fromarray((x + y) // max(side // 24, 1) % 2 == 0)


def _nuisance(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Light that falls off, contrast, a soft texture and grain."""
    pixels = np.asarray(image, np.float32) / 255
    side = image.width
    angle, fall = rng.uniform(0, 2 * np.pi), strength * rng.uniform(0, 0.15)
    across = np.linspace(-1, 1, side, dtype=np.float32)
    light = 1 + fall * (np.cos(angle) * across + np.sin(angle) * across[:, None])
    contrast, brightness = 1 - 0.25 * strength * rng.random(), 0.05 * strength * rng.uniform(-1, 1)
    soft = Image.fromarray(rng.standard_normal((5, 5), np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    texture = 0.03 * strength * np.asarray(soft)
    grain = 0.04 * strength * rng.standard_normal(pixels.shape, np.float32)
    lit = (pixels * light[..., None] - 0.5) * contrast + 0.5 + brightness + texture[..., None] + grain
    return Image.fromarray((255 * lit).round().clip(0, 255).astype(np.uint8))


def pairs(
    start: int, stop: int, *, seed: int, image_px: int = 32, labelled: bool = False, world: World
) -> Iterator[dict[str, Any]]:
    """Pairs `start` to `stop` of `world`, as those of `shapes.pairs`."""
    scenes = (scene(index, seed=seed, labelled=labelled, world=world) for index in range(start, stop))
    # the lowest level: grain hardly shrinks, and half of the time would go into trying
    return shapes.as_pairs(scenes, start, seed=seed, image_px=image_px, labelled=labelled, compress_level=1)
