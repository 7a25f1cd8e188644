"""The sets that students are trained on: a synthetic one, coresets of the real data, and all of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import numpy as np
import ray

from mmdd_ray.config import Data, Evaluation, PairSettings
from mmdd_ray.data.contrasts import ContrastList
from mmdd_ray.data.inventory import require_as_many
from mmdd_ray.data.pair import Row
from mmdd_ray.data.sources import fetch_pairs, read_pairs
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.engine.progress import progress
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.by_pairs import RANDOM, by_pairs
from mmdd_ray.evaluation.compare import CURVE_PAIRS, EVALUATION, compare, count_students
from mmdd_ray.evaluation.held_out import HeldOut, common_images, read_held_out
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.probes.read import read_probes
from mmdd_ray.evaluation.probes.sets import ProbedPairs, Probes
from mmdd_ray.features.coresets import clip_score, herding, k_center, kept_rows, random_subset
from mmdd_ray.features.rejects import Reject, RejectBudget, RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.storage.store import Store

CLIP_SCORE = "clip-score"
GREEDY = {"herding": herding, "k-center": k_center}  # which choose one row after the other
COMPARED = (*GREEDY, CLIP_SCORE)  # coresets that look at the features of all pairs


def distilled_set(store: Store, image_px: int) -> PairSet | LearntPairs:
    """The pairs to train students on: the learnt pairs of the set, or else its images with all of their captions.

    Images of another size than the students' are resized.

    Raises:
        UserError: The set is missing or damaged.
    """
    learnt = read_learnt(store)
    if learnt is not None:
        return learnt.resized(image_px)
    return synthetic_set(read_distilled(store), image_px)


def synthetic_set(samples: Sequence[Sample], image_px: int) -> PairSet:
    """Images of a distilled set with all of their captions."""
    rows = [
        Row("distilled", i, s.key, s.image, list(s.captions), s.label, None) for i, s in enumerate(samples)
    ]
    return PairSet.from_rows(rows, image_px=image_px, max_pixels=2**31)[0]


def read_rows(data: Data) -> list[Row]:
    """All rows of `data`, refused ones too, in the order of the shards."""
    return sorted(
        (Row(**row) for row in read_pairs(data).iter_rows()), key=lambda row: (row.shard, row.index)
    )


def read_pair_set(data: Data, image_px: int, setting: str = "data.uri") -> tuple[PairSet, list[Reject]]:
    """All usable pairs of `data` with all of their captions, in the order of the shards, and the refused rows.

    Args:
        setting: The one that names the source, for messages.

    Raises:
        UserError: There are no usable pairs.
    """
    try:
        return PairSet.from_rows(read_rows(data), image_px=image_px, max_pixels=data.max_image_pixels)
    except UserError as error:
        raise UserError(f"{setting}={data.uri}: {error}") from error


def held_out_sets(
    settings: PairSettings, listed: RejectList
) -> tuple[dict[str, PairSet], dict[str, HeldOut | ContrastList]]:
    """Validation and test pairs, and what was read for them, both by "val" and "test".

    The test pairs are `ProbedPairs` where the settings ask students for more than retrieval; "zero_shot" and
    "compositional" then say what was read for that. `listed` takes the refused rows, with val/ or test/ before their
    shards.

    Raises:
        UserError: More than `data.max_reject_ratio` of the rows of one of them were refused, or no pair is left.
    """
    pairs: dict[str, PairSet] = {}
    read: dict[str, HeldOut] = {}
    for part, source in settings.evaluation.sources(settings.data).items():
        setting = f"evaluation.{part}"
        read[part] = read_held_out(source, settings.evaluation.max_pairs)
        try:
            pairs[part], used, lost = PairSet.with_rows(
                read[part].rows, image_px=settings.students.image_px, max_pixels=source.max_image_pixels
            )
        except UserError as error:
            raise UserError(f"{setting}={source.uri}: {error}") from error
        judge_held_out(part, source, read[part], lost, listed)
        read[part] = read[part].decoded(used, pairs[part].images)
    probes, read_for_probes = read_probes(settings, listed)
    if probes != Probes():
        pairs["test"] = ProbedPairs(pairs["test"].images, pairs["test"].captions, probes)
    return pairs, {**read, **read_for_probes}


def judge_held_out(
    part: str, source: Data, read: HeldOut, lost: Sequence[Reject], listed: RejectList
) -> None:
    """Counts the refused rows of a source, and those that decoding lost.

    Raises:
        UserError: They are more than `data.max_reject_ratio` allows.
    """
    tally = RejectBudget(f"evaluation.{part}", source.max_reject_ratio, listed, total_rows=read.rows_in)
    tally.add(read.rows_in, [(f"{part}/{shard}", key, why) for shard, key, why in (*read.rejects, *lost)])


def compared_coresets(evaluation: Evaluation) -> list[str]:
    """The baselines that look at the features of all pairs, which have a stage of their own."""
    return [name for name in COMPARED if name in evaluation.baselines]


def save_coresets(stage: StageDir, features: FeatureStore, settings: PairSettings, pairs: int) -> StageResult:
    """Writes what `choose_coresets` gives for the baselines of the settings; read it with `read_coresets`.

    The extra figure ``seconds`` of its manifest has the time of each coreset that this attempt chose. The first one
    includes reading the features that coresets share.

    Raises:
        UserError: There are fewer real pairs than `pairs`, or clip-score keeps fewer.
    """
    names = compared_coresets(settings.evaluation)
    require_as_many(pairs, len(features.addresses), settings.data.uri)
    check_kept(features, settings, pairs)
    missing = [name for name in names if not stage.store.exists(f"{name}.json")]
    seconds, started = {}, monotonic()
    for name, rows in choose_coresets(features, missing, pairs, settings.run.seed, settings.evaluation):
        stage.store.write_json(f"{name}.json", rows.tolist())
        now = monotonic()
        seconds[name], started = round(now - started, 3), now
    return StageResult(
        rows_in=len(features.addresses), rows_out=len(names) * pairs, extra={"seconds": seconds}
    )


def read_coresets(store: Store | None, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Sorted rows of the coresets by name; none where there is no such stage."""
    if store is None:
        return {}
    return {
        name: np.array(store.read_json(f"{name}.json"), np.int64) for name in compared_coresets(evaluation)
    }


def choose_coresets(
    features: FeatureStore, names: Sequence[str], pairs: int, seed: int, evaluation: Evaluation
) -> Iterator[tuple[str, np.ndarray]]:
    """Sorted rows of the coresets `names` of `COMPARED`, `pairs` of them each.

    Herding and k-center look at joint features of an image and the mean of its captions, in a pass over all features
    for every few picks. clip-score is one pass over images and first captions.
    """
    if not names:
        return
    greedy = [name for name in names if name in GREEDY]
    blocks = features.joint_features() if greedy else []
    picks = len(greedy) * pairs + (CLIP_SCORE in names)  # all of clip-score's at once
    with progress("coresets", total=picks, unit="picks") as bar:
        for name in names:
            if name in GREEDY:
                yield name, np.sort(GREEDY[name](blocks, pairs, seed, bar.update))
            else:
                score_N = features.clip_scores()
                bar.update()
                kept = kept_rows(len(score_N), evaluation.clip_score_fraction)
                yield name, np.sort(clip_score(score_N, pairs, seed, kept))


def check_kept(
    features: FeatureStore, settings: PairSettings, pairs: int, begins_as: str | None = None
) -> None:
    """Finds before expensive work that clip-score would keep too few pairs.

    Args:
        begins_as: What `match.init` names, if there is one.

    Raises:
        UserError: It is wanted, and keeps fewer than `pairs`.
    """
    evaluation, rows = settings.evaluation, len(features.addresses)
    places = {
        "evaluation.baselines": CLIP_SCORE in evaluation.baselines,
        "match.init": begins_as == CLIP_SCORE,
    }
    where = " and ".join(place for place, wanted in places.items() if wanted)
    kept = kept_rows(rows, evaluation.clip_score_fraction)
    if where and kept < pairs:
        raise UserError(
            f"evaluation.clip_score_fraction={evaluation.clip_score_fraction:g} keeps {kept:,} of the {rows:,} usable "
            f"pairs of data.uri={settings.data.uri}, but the distilled set has {pairs:,}; raise it, name more data, "
            f"distil fewer pairs, or do without {CLIP_SCORE} in {where}"
        )


def baseline_sets(
    features: FeatureStore,
    data: Data,
    evaluation: Evaluation,
    pairs: int,
    image_px: int,
    seed: int,
    coresets: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, PairSet]]:
    """The sets of `evaluation.baselines` by name, one decoded after the other, since "full" may be large.

    They are `pairs` real images with one caption each, and "full" with all.

    Args:
        coresets: What `choose_coresets` gave, by name.

    Raises:
        UserError: There are fewer real pairs than `pairs`, or the data have changed since features were made.
    """
    chosen = _baseline_rows(features, data, evaluation, pairs, seed, coresets)
    yield from _fetched(features, data, list(chosen.items()), image_px)


def _baseline_rows(
    features: FeatureStore,
    data: Data,
    evaluation: Evaluation,
    pairs: int,
    seed: int,
    coresets: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Sorted rows of each baseline; arguments as for `baseline_sets`."""
    count = len(features.addresses)
    if {*evaluation.baselines} - {"full"}:
        require_as_many(pairs, count, data.uri)
    sizes = {"random": pairs, "full": min(count, evaluation.full_pairs)}
    return {
        name: coresets[name] if name in COMPARED else np.sort(random_subset(count, sizes[name], seed))
        for name in evaluation.baselines
    }


def _fetched(
    features: FeatureStore, data: Data, chosen: Sequence[tuple[str, np.ndarray]], image_px: int
) -> Iterator[tuple[str, PairSet]]:
    """The sets of these rows with their names, one decoded after the other."""
    addresses = features.addresses
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *(rows for _, rows in chosen)])).tolist()
    # once for all sets: the rows of a baseline lie in almost every shard
    rows = dict(zip(wanted, fetch_pairs(data, [addresses[row] for row in wanted]), strict=True))
    for name, indices in chosen:
        yield name, _decoded([rows[index] for index in indices.tolist()], name, data, image_px)


def coreset(
    features: FeatureStore,
    name: str,
    data: Data,
    pairs: int,
    image_px: int,
    seed: int,
    evaluation: Evaluation,
) -> tuple[PairSet, list[str]]:
    """The baseline of that name, "random" or one of `COMPARED`, decoded at ``image_px``, and where its rows are from.

    With the seed of the run these are the very rows that the comparison has under that name.

    Raises:
        UserError: The data have changed since features were made.
    """
    addresses = features.addresses
    if name == "random":
        indices = np.sort(random_subset(len(addresses), pairs, seed))
    else:
        indices = dict(choose_coresets(features, [name], pairs, seed, evaluation))[name]
    rows = fetch_pairs(data, [addresses[row] for row in indices.tolist()])
    return _decoded(rows, name, data, image_px), [row.name for row in rows]


def _decoded(rows: list[Row], name: str, data: Data, image_px: int) -> PairSet:
    """The set of these rows: with all captions if it is "full"; otherwise a pair is an image with its first one."""
    if name != "full":
        rows = [replace(row, captions=row.captions[:1]) for row in rows]
    found, lost = PairSet.from_rows(rows, image_px=image_px, max_pixels=data.max_image_pixels)
    if lost:
        raise UserError(
            f"data.uri={data.uri} has changed since its features were made: {len(lost):,} of the "
            f"{len(rows):,} pairs of the set {name} are refused now (the first, {lost[0][1]} in the shard "
            f"{lost[0][0]}: {lost[0][2]}); restore the data, or set run.dir to a new folder"
        )
    return found


def compare_with_baselines(
    stage: StageDir,
    given: Mapping[str, Sequence[PairSet | LearntPairs]],
    features: FeatureStore,
    draws: Sequence[PairSettings],
    coresets: Sequence[Mapping[str, np.ndarray]],
    run_store: Store,
    *,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
) -> StageResult:
    """Compares distilled or other sets with the baselines; writes `compare`'s result as evaluation.json.

    Args:
        given: The sets by name, each as its draws. Baselines have as many pairs as the first of them.
        features: Of the real data.
        draws: Settings of each draw, with the baselines that it has of its own. Students are those of the first.
        coresets: What `read_coresets` gave for each draw.
        run_store: The run directory, whose rejects.parquet takes the refused validation and test rows.
        about: By the name of a given set, where it is from and how it was read, for the report.
        images: By the name of a given set, its images (N, px, px, 3) uint8, which are looked for among validation and
            test images.
    """
    settings = draws[0]
    pairs_each = next(iter(given.values()))[0].n_pairs
    px, data = settings.students.image_px, settings.data
    listed = RejectList(stage.store, run_store)
    held_out, read = held_out_sets(settings, listed)
    val, test = held_out["val"], held_out["test"]
    found_in = common_images(read, features.image_digests(), images)
    listed.save()
    chosen = [
        item
        for own, rows in zip(draws, coresets, strict=True)
        for item in _baseline_rows(features, data, own.evaluation, pairs_each, own.run.seed, rows).items()
    ]
    # in the object store, students of all machines get them; the driver need not hold them, too
    sets: dict[str, Any] = {name: [ray.put(one) for one in drawn] for name, drawn in given.items()}
    for baseline, pairs in _fetched(features, data, chosen, px):
        sets.setdefault(baseline, []).append(ray.put(pairs))
    result = compare(sets, val, test, settings.students, settings.evaluation, settings.run.seed, stage)
    curves = {}
    if settings.evaluation.curve_pairs:
        small = {name: sets[name] for name in (*given, RANDOM) if name in sets}
        curves = by_pairs(small, val, test, settings, result, stage)
    noted = {"held_out": found_in, "given": dict(about or {})}
    stage.store.write_json(
        EVALUATION, result | noted | {CURVE_PAIRS: [*settings.evaluation.curve_pairs], "by_pairs": curves}
    )
    return StageResult(
        rows_in=sum(one["pairs"] for one in result["sets"].values()) + val.n_pairs + test.n_pairs,
        rows_out=count_students(result),
        rejects=Counter(reason for *_, reason in listed.rows),
    )
