"""True captions of procedural scenes beside hard negatives: nearly the same words, and false of the scene.

The kinds follow SugarCrepe (Hsieh et al., NeurIPS 2023, arXiv 2306.14610): attributes, objects or relations are swapped
or replaced. A negative is kept only where it is false, whichever of the scene's objects its words may mean. Imports
neither torch nor Ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from mmdd_ray.data.shapes import CELLS, COLOURS, SHAPES, SIZES, Object, Scene

SWAPS = {"swap-attributes": "colour", "swap-objects": "shape"}
REPLACEMENTS = {
    "replace-colour": ("colour", tuple(COLOURS)),
    "replace-shape": ("shape", SHAPES),
    "replace-size": ("size", tuple(SIZES)),
}
OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
KINDS = (*SWAPS, *REPLACEMENTS, "replace-relation", "swap-relation")
_STREAM = 6  # of the random numbers of a scene; the worlds draw from the lower ones
_ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Contrast:
    """A caption that is true of an image, and a negative that is false."""

    kind: str
    caption: str
    negative: str


class _Thing(NamedTuple):
    size: str
    colour: str
    shape: str
    cell: str | None
    """None where the claim says nothing of the place."""

    def text(self) -> str:
        said = f"a {self.size} {self.colour} {self.shape}"
        if self.cell is None:
            return said
        return f"{said} {'in' if self.cell == 'centre' else 'at'} the {self.cell}"

    def means(self, item: Object) -> bool:
        """Whether the words may mean this object."""
        own = (item.size, item.colour, item.shape)
        return self[:3] == own and self.cell in (None, item.cell)


class _Relation(NamedTuple):
    subject: int
    """0 or 1, a place among the things of the claim."""
    word: str
    object: int


@dataclass(frozen=True)
class _Claim:
    things: tuple[_Thing, ...]
    background: str
    relation: _Relation | None = None

    def text(self) -> str:
        said = [thing.text() for thing in self.things]
        listed = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
        if self.relation is None:
            return f"{listed} on a {self.background} background"
        subject, word, other = self.relation
        return (
            f"{listed}, the {_ORDINALS[subject]} {word} the {_ORDINALS[other]}, {self.background} background"
        )

    def is_true(self, scene: Scene) -> bool:
        """Whether distinct objects of the scene can be meant, for which all of it holds."""
        return self.background == scene.background and any(
            all(thing.means(item) for thing, item in zip(self.things, meant, strict=True))
            and (self.relation is None or _stands(meant, self.relation))
            for meant in permutations(scene.objects, len(self.things))
        )


def contrasts(scene: Scene) -> list[Contrast]:
    """One contrast of each of ``KINDS`` that the scene allows; those of swaps and relations need two objects.

    The same ones in every call: what is swapped or replaced is drawn from the scene's own seed.
    """
    rng = np.random.default_rng((*scene.caption_seed, _STREAM))
    items = [scene.objects[place] for place in rng.permutation(len(scene.objects))]
    found = []
    for kind in KINDS:
        candidates = list(_candidates(kind, items, scene.background))
        for place in rng.permutation(len(candidates)):
            caption, negative = candidates[place]
            if not negative.is_true(scene):
                found.append(Contrast(kind, caption.text(), negative.text()))
                break
    return found


def _candidates(kind: str, items: list[Object], background: str) -> Iterator[tuple[_Claim, _Claim]]:
    """True claims with what is made of them, which may be true, too."""
    things = tuple(_Thing(item.size, item.colour, item.shape, item.cell) for item in items)
    told = _Claim(things, background)
    if kind in SWAPS:
        for one, other in combinations(range(len(things)), 2):
            yield told, _with(told, SWAPS[kind], {one: things[other], other: things[one]})
    elif kind in REPLACEMENTS:
        attribute, values = REPLACEMENTS[kind]
        for place, thing in enumerate(things):
            for value in values:
                yield told, _with(told, attribute, {place: thing._replace(**{attribute: value})})
    else:
        for pair in combinations(items, 2):
            word = _relation(*pair)
            unplaced = tuple(_Thing(item.size, item.colour, item.shape, None) for item in pair)
            true = _Claim(unplaced, background, _Relation(0, word, 1))
            is_swap = kind == "swap-relation"
            false = _Relation(1, word, 0) if is_swap else _Relation(0, OPPOSITES[word], 1)
            yield true, replace(true, relation=false)


def _with(claim: _Claim, attribute: str, sources: dict[int, _Thing]) -> _Claim:
    """The claim with this attribute of some things, by place, taken from others."""
    things = list(claim.things)
    for place, source in sources.items():
        things[place] = things[place]._replace(**{attribute: getattr(source, attribute)})
    return replace(claim, things=tuple(things))


def _relation(first: Object, second: Object) -> str:
    """As the captions of the world say it: above or below, and of one row left or right."""
    if _row(first) != _row(second):
        return "above" if _row(first) < _row(second) else "below"
    return "left of" if _column(first) < _column(second) else "right of"


def _stands(meant: tuple[Object, ...], relation: _Relation) -> bool:
    one, other = meant[relation.subject], meant[relation.object]
    match relation.word:
        case "above":
            return _row(one) < _row(other)
        case "below":
            return _row(one) > _row(other)
        case "left of":
            return _column(one) < _column(other)
        case _:
            return _column(one) > _column(other)


def _row(item: Object) -> int:
    return CELLS.index(item.cell) // 3


def _column(item: Object) -> int:
    return CELLS.index(item.cell) % 3
