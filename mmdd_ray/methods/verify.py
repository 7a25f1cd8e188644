"""Checking a distilled set: that its files are whole, and that its images can be made again. Starts no Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdd_ray.data.images import decode_image, encode_png
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import check_images, read_distilled, read_learnt
from mmdd_ray.distilled.sample import MANIFEST, Sample
from mmdd_ray.engine.devices import one_thread
from mmdd_ray.engine.run_dir import DRAWS, SETTINGS, versions
from mmdd_ray.engine.saved_run import saved_run
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.method import Redraw
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store

MAX_PIXELS = 2**31
DRAW_FOLDER = re.compile(rf"/{DRAWS}/\d+$")  # of a run directory


@dataclass(frozen=True)
class Checked:
    """The findings about a set."""

    images: int
    checksum: str
    differences: dict[str, int]
    """Greatest difference of a pixel, in levels of 255, of each image that was made again, by its key; 0: the same."""
    changed: dict[str, tuple[str, str]]
    """Libraries that have another version now, by name: the one that made the set, and the one here."""


def verify(uri: str, regenerate: int, seed: int = 0) -> Checked:
    """Checks all checksums of the set in the folder `uri`, its image folder too, and makes `regenerate` images again.

    An image that was drawn is drawn again by the tuned generator in the run directory around the set, together with
    those that it shared its batch with; one that was learnt is shown again from its tensor.

    Args:
        uri: Local path or URI of the folder with the set's manifest.
        seed: Of the choice of the images.

    Raises:
        UserError: The set is damaged, or is not in a run directory that could make it again;
            or `regenerate` is below 0.
    """
    if regenerate < 0:
        raise UserError(f"--regenerate {regenerate} is no number of images; give 0 or more")
    store = Store(uri)
    samples = read_distilled(store)
    check_images(store)
    manifest = store.read_json(MANIFEST)
    count = min(regenerate, len(samples))
    rows = np.random.default_rng(seed).permutation(len(samples))[:count]
    chosen = [samples[row] for row in np.sort(rows).tolist()]
    made = _made_again(store, samples, chosen) if chosen else {}
    now = versions()
    return Checked(
        images=len(samples),
        checksum=manifest["checksum"],
        differences={sample.key: _difference(sample.image, made[sample.key]) for sample in chosen},
        changed={
            name: (then, now.get(name, "none"))
            for name, then in manifest.get("versions", {}).items()
            if then != now.get(name)
        },
    )


def _difference(one: bytes, other: bytes) -> int:
    first, second = (decode_image(image, max_pixels=MAX_PIXELS).astype(int) for image in (one, other))
    return 255 if first.shape != second.shape else int(np.abs(first - second).max())


def _made_again(store: Store, samples: Sequence[Sample], chosen: Sequence[Sample]) -> dict[str, bytes]:
    """PNG files by key."""
    if learnt := read_learnt(store):
        return _shown_again(learnt, samples, chosen)
    drawn = Store(store.uri.rpartition("/")[0])
    run = Store(DRAW_FOLDER.sub("", drawn.uri))
    where = redact(run.uri)
    if not run.exists(SETTINGS):
        raise UserError(
            f"{where} is no run directory: the tuned generator that drew the set is there; name the set inside its run"
        )
    saved = saved_run(run)
    method = METHODS.get(saved["job"])
    if method is None or method.redraw is None:
        raise UserError(f"{where} holds a run of the job {saved['job']}, which draws no images")
    with one_thread():  # as Ray gives an actor: sums over more threads round otherwise
        return _drawn_again(drawn, method.redraw, saved["settings"], chosen)


def _shown_again(
    learnt: LearntPairs, samples: Sequence[Sample], chosen: Sequence[Sample]
) -> dict[str, bytes]:
    images = dict(zip([sample.key for sample in samples], learnt.images(), strict=True))
    return {sample.key: encode_png(images[sample.key]) for sample in chosen}


def _drawn_again(
    run: Store, redraw: Redraw, settings: Mapping[str, Any], chosen: Sequence[Sample]
) -> dict[str, bytes]:
    from mmdd_ray.engine.actor_pool import batch_files

    keys = {(sample.seed, sample.captions[0]): sample.key for sample in chosen}
    sampler = None
    made: dict[str, bytes] = {}
    drawn = run.child("synthesize")
    for number, file in enumerate(batch_files(drawn)):
        rows = drawn.read_parquet(file).to_pylist()
        if not any((row["seed"], row["prompt"]) in keys for row in rows):
            continue
        sampler = sampler or redraw(run, settings)
        for row in sampler.work(number, rows).to_pylist():
            if key := keys.get((row["seed"], row["prompt"])):
                made[key] = row["image"]
    if missing := set(keys.values()) - made.keys():
        raise UserError(
            f"{redact(run.uri)} has not drawn {len(missing)} of the {len(chosen)} images, e.g. {min(missing)}: the set "
            "is not that of this run"
        )
    return made
