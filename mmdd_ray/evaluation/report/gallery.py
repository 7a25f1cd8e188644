"""The gallery of a report: pairs of the distilled set, each with where it comes from and the nearest real image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmdd_ray.distilled.contact_sheet import spread
from mmdd_ray.distilled.read import read_distilled, read_manifest
from mmdd_ray.distilled.sample import FOLDER, NEAREST, Sample
from mmdd_ray.distilled.thumbnails import data_uri, open_rgb, small_file
from mmdd_ray.evaluation.copies import COPY_RMS
from mmdd_ray.evaluation.report.words import AUDIT_STAGE, MOST_SHOWN, NEAREST_IMAGES
from mmdd_ray.storage.store import Store

MAX_BYTES = 3_300_000
"""Size limit of all pairs in the page; with charts and sheets it stays below 5 MB."""
MARKUP_BYTES = 2_000  # of a pair beside its texts and pictures
MAX_LETTERS = 300  # of a caption; some of the web are whole pages
MAX_CAPTIONS = 5  # of an image


@dataclass(frozen=True)
class RealNeighbour:
    """The real image that is nearest to one of the set."""

    name: str
    """Shard and key."""
    cosine: float
    rms: float | None
    """Difference of pixels, in levels of 255; None where only CLIP looked."""
    picture: str
    """As a link that needs no network."""

    @property
    def is_copy(self) -> bool:
        return self.rms is not None and self.rms <= COPY_RMS


@dataclass(frozen=True)
class Tile:
    """A pair of the gallery."""

    key: str
    picture: str
    width: int
    height: int
    seed: int
    source: str
    """Key of the real pair that it goes back to; may be empty."""
    label: str
    """Name of its class; empty where the set has none."""
    prompt: str
    """The caption that the image was drawn from, or that a learnt text began as."""
    captions: Sequence[str]
    """The others."""
    more_captions: int
    """Captions that the page leaves out."""
    words: str
    """Those nearest to a text that was learnt; empty where none was."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Further figures that the set has of the pair."""
    nearest: RealNeighbour | None = None


@dataclass(frozen=True)
class Gallery:
    """The pairs that a page shows, spread evenly over the set."""

    tiles: Sequence[Tile]
    images: int
    """Images of the whole set."""
    is_learnt: bool
    """Whether pixels and texts were learnt, so that the prompt is what a text began as."""
    has_neighbours: bool


def gallery(run: Store, most: int = MOST_SHOWN, max_bytes: int = MAX_BYTES) -> Gallery:
    """The gallery of the distilled set of a run that has one.

    Raises:
        UserError: The set is damaged.
    """
    distilled = run.child(FOLDER)
    manifest = read_manifest(distilled)
    samples = read_distilled(distilled)
    neighbours = _neighbours(run)
    tiles = [_tile(one, manifest, neighbours.get(one.key)) for one in spread(samples, most)]
    taken = sum(_bytes_of(tile) for tile in tiles)
    if taken > max_bytes:
        tiles = spread(tiles, max(len(tiles) * max_bytes // taken, 1))
    return Gallery(tiles, len(samples), bool(manifest.get("learnt")), bool(neighbours))


def _bytes_of(tile: Tile) -> int:
    texts = (tile.prompt, tile.prompt, tile.words, *tile.captions, *tile.figures.values())  # the prompt twice
    links = len(tile.picture) + (len(tile.nearest.picture) if tile.nearest else 0)
    return links + sum(len(text.encode()) for text in texts) + MARKUP_BYTES


def _neighbours(run: Store) -> dict[str, RealNeighbour]:
    """By key of an image of the set; none where no audit looked for them."""
    name = f"{AUDIT_STAGE}/{NEAREST_IMAGES}"
    if not run.exists(name):
        return {}
    return {
        row["key"]: RealNeighbour(row["real"], row["cosine"], row["rms"], data_uri(row["image"]))
        for row in run.read_parquet(name).to_pylist()
    }


def _tile(sample: Sample, manifest: Mapping[str, Any], nearest: RealNeighbour | None) -> Tile:
    image = open_rgb(sample.image)
    prompt, *others = sample.captions
    classes = manifest.get("classes") or {}
    label = "" if sample.label is None else classes.get(str(sample.label), f"class {sample.label}")
    return Tile(
        key=sample.key,
        picture=data_uri(small_file(image)),
        width=image.width,
        height=image.height,
        seed=sample.seed,
        source=sample.source_key,
        label=label,
        prompt=cut(prompt),
        captions=[cut(text) for text in others[:MAX_CAPTIONS]],
        more_captions=max(len(others) - MAX_CAPTIONS, 0),
        words=cut(str(sample.extra.get(NEAREST, ""))),
        figures={
            name: _figure(value) for name, value in sample.extra.items() if name != NEAREST and value != label
        },
        nearest=nearest,
    )


def _figure(value: Any) -> str:
    if isinstance(value, list | tuple):
        return cut(", ".join(_figure(one) for one in value))
    return f"{value:.4g}" if isinstance(value, float) else cut(str(value))


def cut(text: str, letters: int = MAX_LETTERS) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
