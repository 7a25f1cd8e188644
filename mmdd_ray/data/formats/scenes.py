"""Procedural scenes, which are drawn where they are read."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs, parse_qsl

from mmdd_ray.config import Data
from mmdd_ray.data.formats.format import Head, Seen
from mmdd_ray.data.pair import Row, RowMaker
from mmdd_ray.data.shapes import Scene, pairs, scene
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.web_scenes import WebScene, World
from mmdd_ray.data.web_scenes import pairs as web_pairs
from mmdd_ray.data.web_scenes import scene as web_scene
from mmdd_ray.errors import UserError


class Scenes(NamedTuple):
    """The scenes of a ``shapes:`` URI."""

    rows: int
    image_px: int
    draw: Callable[[int], Scene | WebScene]
    """The scene of a row."""


def seed_of(uri: str) -> str:
    """The seed of scenes as their URI writes it, by which they are told from others."""
    return parse_qs(uri.partition("?")[2]).get("seed", ["0"])[0]


def shapes_spec(uri: str) -> tuple[int, Callable[[int, int], Iterator[dict[str, Any]]]]:
    """``shapes:ROWS?seed=S&wrong=0.2`` -> rows, and what draws the pairs from one row up to another.

    Raises:
        UserError: An option is unknown, out of its range, or one of ``World`` beside ``world=clean``.
    """
    rows, world, drawing = _options(uri)
    return rows, partial(pairs, **drawing) if world is None else partial(web_pairs, world=world, **drawing)


def scenes_of(uri: str) -> Scenes:
    """The scenes that ``shapes_spec`` makes pairs of.

    Raises:
        UserError: as ``shapes_spec``.
    """
    rows, world, drawing = _options(uri)
    image_px = drawing.pop("image_px")
    if world is None:
        return Scenes(rows, image_px, partial(scene, **drawing))
    return Scenes(rows, image_px, partial(web_scene, world=world, **drawing))


def _options(uri: str) -> tuple[int, World | None, dict[str, Any]]:
    """Rows, the world (None: the clean one), and seed, image_px and labelled."""
    rows, _, query = uri.removeprefix("shapes:").partition("?")
    flaw_names = World.setting_names()
    try:
        given = parse_qsl(query, True, True)
        options = dict(given)
        if len(options) < len(given):
            raise ValueError  # which of two seeds?
        world = options.pop("world", "web")
        seed, px, labelled = (
            int(options.pop(name, default)) for name, default in (("seed", 0), ("px", 32), ("labelled", 0))
        )
        flaws: dict[str, Any] = {
            name: int(value) if name == "captions" else float(value) for name, value in options.items()
        }
        known = set(flaw_names if world == "web" else ())
        if (
            world not in ("web", "clean")
            or flaws.keys() - known
            or seed < 0
            or px < 1
            or labelled not in (0, 1)
        ):
            raise ValueError
        drawing: dict[str, Any] = {"seed": seed, "image_px": px, "labelled": bool(labelled)}
        if world == "clean":
            return int(rows), None, drawing
        return int(rows), World(**flaws), drawing
    except UserError as error:
        raise UserError(f"data.uri={uri}: {error}") from error
    except ValueError:
        raise UserError(
            f"data.uri={uri} is not of the form shapes:ROWS?seed=0&px=32&labelled=0&world=web (or world=clean), "
            f"each option once; world=web also takes {', '.join(flaw_names)}"
        ) from None


class ScenesFormat:
    """A ``Format``: a shard is a range of scenes of a ``shapes:`` URI."""

    def probe(self, shard: Shard, data: Data) -> Seen:
        return Seen(1, fits=True)

    def count(self, shard: Shard) -> int | None:
        return shard.rows

    def head(self, shard: Shard, data: Data) -> Head:
        return Head(shard.rows or 0, 0, "procedural scenes")

    def read(self, shard: Shard, maker: RowMaker, only: Collection[int] | None) -> Iterator[Row]:
        _, drawn = shapes_spec(shard.uri)
        assert shard.rows is not None
        if only is None:
            for pair in drawn(shard.start, shard.start + shard.rows):
                yield maker.make(pair["key"], pair["image"], pair["captions"], pair["label"])
            return
        for row in sorted(row for row in only if row < shard.rows):
            maker.skip(row - maker.index)
            (pair,) = drawn(shard.start + row, shard.start + row + 1)
            yield maker.make(pair["key"], pair["image"], pair["captions"], pair["label"])
