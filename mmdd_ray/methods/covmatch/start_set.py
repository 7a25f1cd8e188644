"""A distilled set that ``match.init`` names, as the pairs that others begin as. Imports neither Ray nor torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_distilled, read_learnt, read_manifest
from mmdd_ray.distilled.sample import Sample, single_captions
from mmdd_ray.errors import UserError
from mmdd_ray.methods.covmatch.settings import CORESETS, Match
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


@dataclass(frozen=True, eq=False)
class StartSet:
    """A whole distilled set, checked."""

    about: Mapping[str, Any]
    """Its ``uri`` without credentials, ``checksum``, ``method`` and number of ``pairs``, as manifests record them."""
    samples: list[Sample]
    """Samples of one caption each: an image with c captions stands here c times."""
    learnt: LearntPairs | None
    """The learnt pairs that the samples show, where pixels and texts were learnt."""


def read_start_set(match: Match) -> StartSet:
    """The set that ``match.init`` names.

    Raises:
        UserError: There is none, it has another number of pairs than ``match.pairs``, or a file of it is missing or
            damaged.
    """
    store, manifest = _manifest(match)
    if isinstance(pairs := manifest.get("pairs"), int):
        _check_pairs(match, manifest.get("images"), pairs)
    samples, learnt = read_distilled(store), read_learnt(store)
    single = single_captions(samples)
    _check_pairs(match, len(samples), len(single))
    if learnt is not None and learnt.flat_captions != [sample.captions[0] for sample in single]:
        raise UserError(
            f"match.init={redact(match.init)}: its learnt pairs are not those that its samples show"
        )
    about = {
        "uri": redact(store.uri),
        "checksum": manifest["checksum"],
        "method": manifest["method"],
        "pairs": len(single),
    }
    return StartSet(about, single, learnt)


def _manifest(match: Match) -> tuple[Store, dict[str, Any]]:
    assert match.start_set is not None
    try:
        store = Store(match.start_set)
        return store, read_manifest(store)
    except (ValueError, OSError) as error:  # an unknown scheme, a folder that is a file, or no set
        raise UserError(
            f"match.init={redact(match.init)}: {redact(str(error))}; write {', '.join(CORESETS)}, or the folder or URI "
            "of a distilled set"
        ) from error


def _check_pairs(match: Match, images: object, pairs: int) -> None:
    if pairs != match.pairs:
        several = f" ({images} images with several captions)" if images != pairs else ""
        raise UserError(
            f"match.pairs={match.pairs}, but the set of match.init={redact(match.init)} has {pairs} pairs{several}; "
            f"set match.pairs to {pairs}"
        )
