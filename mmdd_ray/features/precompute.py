"""The feature stage: shards -> CLIP features in Parquet, exact moments, and a list of everything refused.

`shard_pool.py` has the shards encoded; here their moments are added up and duplicates taken out.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from mmdd_ray.config import Data, Features
from mmdd_ray.config.slices import sliced
from mmdd_ray.data.inventory import Download, about_source, read_downloads
from mmdd_ray.data.shard import Shard
from mmdd_ray.data.shards import find_shards
from mmdd_ray.engine.cluster import actor_pool
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.features.agreement import threshold
from mmdd_ray.features.encoder import ClipSource, EncoderSource, FeatureEncoder
from mmdd_ray.features.moments import Moments, MomentsSum
from mmdd_ray.features.rejects import RejectBudget, RejectList
from mmdd_ray.features.shard_pool import (
    SHARDS,
    counted,
    for_each_shard,
    map_shards,
    shard_file,
    total_rows,
)
from mmdd_ray.features.store import (
    AGREEMENT,
    DUPLICATES,
    FEATURES,
    MOMENTS,
    FeatureStore,
    add_table,
    score_file,
    shard_files,
    shard_of,
    table_pairs,
    table_scores,
)
from mmdd_ray.storage.store import Store


def summary(stage: StageDir) -> str:
    """The findings of the finished stage, for a terminal."""
    manifest, store = stage.manifest, stage.store
    source = "".join(f"\nsource    {line}" for line in about_source(manifest["extra"]["source"]))
    if "agreement" in manifest["extra"]:
        of = manifest["extra"]["agreement"]
        source += f"\nmatched   {of['pairs']:,} pairs with a CLIP score of {of['threshold']:.4f} or more"
    rejects = "".join(f"\n  {count:>12,} {reason}" for reason, count in manifest["rejects"].items())
    return (
        f"{manifest['rows_in']:,} rows, {manifest['rows_out']:,} usable images, "
        f"{manifest['extra']['pairs']:,} pairs{rejects}{source}\nfeatures  {store.path('pairs')}\n"
        f"moments   {store.path(MOMENTS)}"
    )


def precompute(
    stage: StageDir,
    run_store: Store | None,
    data: Data,
    features: Features,
    source: EncoderSource | None = None,
    scored: Store | None = None,
) -> StageResult:
    """Encodes every pair of `data`; writes the feature store, its moments and the run's rejects.parquet.

    With `features.clip_score_fraction` below 1 the moments are those of the pairs that agree best by CLIP, which takes
    one more pass over the stored features once all scores are known.

    Args:
        run_store: The run directory; None where another stage has listed what is refused.
        source: Default: the CLIP model of `features`.
        scored: The feature store whose scores decide that; default: this one.

    Raises:
        ValueError: More than `data.max_reject_ratio` of the rows were refused, or no pair is left.
    """
    source = source or ClipSource(features.clip)
    listing = find_shards(data)
    shards, missing = listing.shards, listing.missing
    if missing:
        print(f"{stage.name:<12} {len(missing):,} files are not there: {', '.join(missing)}", flush=True)
    listed = RejectList(stage.store, run_store)
    tally = RejectBudget("data.uri", data.max_reject_ratio, listed, total_rows(shards))
    chunks = map_shards(
        stage,
        shards,
        data,
        FeatureEncoder,
        image_px=features.image_px,
        chunk_pairs=features.chunk_pairs,
        pool=actor_pool(features),
        commit=_at_commit(features, scored),
        source=source,
    )
    with closing(chunks):  # or else Ray Data would be asked to stop when Ray is gone
        for rows_in, rejects in chunks:
            tally.add(rows_in, rejects)
    tally.judge()
    return _commit(stage.store, run_store, shards, missing, data, features, source, scored or stage.store)


def _at_commit(features: Features, scored: Store | None) -> Callable[[Store, str, list[str]], None] | None:
    """The function that writes the summary of a shard when all of its chunks are there."""
    if features.clip_score_fraction == 1:
        return _write_shard_moments
    return None if scored else _write_shard_scores


def _write_shard_moments(store: Store, shard: str, files: list[str]) -> None:
    """The sum of the moments of a shard's stored chunks."""
    if files:
        total = MomentsSum()
        for file in files:
            add_table(total, store.read_parquet(file, FEATURES))
        store.write_bytes(_shard_moments(shard), total.moments().to_bytes("", "float16"))


def _write_shard_scores(store: Store, shard: str, files: list[str]) -> None:
    """How far the pairs of a shard's stored chunks agree."""
    if files:
        scores = [table_scores(store.read_parquet(file)) for file in files]
        store.write_parquet(score_file(shard), pa.concat_tables(scores))


def _write_agreeing_moments(store: Store, shard: str, scored: Store) -> None:
    """The sum of the moments of those pairs of a shard that agree, by the scores in another store or in this one."""
    agreeing, total = FeatureStore(scored).agreeing(shard), MomentsSum()
    for file in shard_files(store, shard):
        table = store.read_parquet(file, ["index", *FEATURES])
        add_table(total, table, agreeing.are_in(shard, table_pairs(table)))
    store.write_bytes(_shard_moments(shard), total.moments().to_bytes("", "float16"))


def _commit(
    store: Store,
    run_store: Store | None,
    shards: list[Shard],
    missing: list[str],
    data: Data,
    features: Features,
    source: EncoderSource,
    scored: Store,
) -> StageResult:
    """Adds the shards up in their order, takes duplicates out again, and writes moments and rejects."""
    listed = RejectList(store, run_store)
    tally = RejectBudget("data.uri", data.max_reject_ratio, listed, total_rows(shards))
    usable: list[str] = []
    downloads = read_downloads(shards)
    _, part = sliced(data.split)
    records = {shard.name: store.read_json(shard_file(shard.name)) for shard in shards}
    for name, record in records.items():
        tally.add(*counted(name, record))
        if name in downloads:  # a tar that was cut between two samples looks whole
            stored = record.get("stored_rows", record["rows_in"] if part.is_all else downloads[name].written)
            lacking = round(part.share * max(downloads[name].written - stored, 0))
            tally.add(lacking, [(name, "", "missing row of img2dataset's count")] * lacking)
        if record["rows_out"]:
            usable.append(name)
    if not usable:
        listed.save()
        raise UserError(
            f"data.uri={data.uri} has no usable pair: all {tally.rows_in:,} rows were refused; "
            f"look at {listed.path}"
        )
    duplicates = _drop_duplicates(store)
    tally.add(0, [(shard, key, "duplicate pair") for shard, key in zip(*_names(duplicates), strict=True)])
    tally.judge()
    agreement: dict[str, dict[str, float]] = {}
    if features.clip_score_fraction < 1:
        if scored is store:
            store.write_json(AGREEMENT, _agreement(store, features.clip_score_fraction))
        agreement["agreement"] = scored.read_json(AGREEMENT)
        for_each_shard(usable, _write_agreeing_moments, store, scored=scored)
    moments = _added_up(store, usable)
    if len(duplicates) and not agreement:  # which was decided without them
        repeated = MomentsSum()
        add_table(repeated, duplicates)
        moments -= repeated.moments()
    store.write_bytes(MOMENTS, moments.to_bytes(source.name, "float16"))
    listed.save()
    return StageResult(
        rows_in=tally.rows_in,
        rows_out=tally.rows_in - tally.reasons.total(),
        rejects=tally.reasons,
        extra={
            "pairs": agreement["agreement"]["of_pairs"] if agreement else moments.count,
            "encoder": source.name,
            **agreement,
            "source": _about_source(records, missing, downloads),
        },
    )


def _about_source(
    records: Mapping[str, Any], missing: list[str], downloads: Mapping[str, Download]
) -> dict[str, Any]:
    """How much of the source is there, and a fingerprint that tells it from any other."""
    fingerprint = sha256("".join(record["digest"] for record in records.values()).encode())
    return {
        "shards": len(records),
        "missing_files": missing,
        "recorded_shards": len(downloads),
        "listed": sum(download.listed for download in downloads.values()),
        "downloaded": sum(download.written for download in downloads.values()),
        "fingerprint": fingerprint.hexdigest(),
    }


def _agreement(store: Store, fraction: float) -> dict[str, float]:
    """The lowest score of the best `fraction` of all pairs, and how many pairs reach it."""
    scores = [table["score"].to_numpy() for table in FeatureStore(store).scores().values()]
    least = threshold(scores, fraction)
    pairs = sum(int((score_P >= np.float32(least)).sum()) for score_P in scores)
    return {"fraction": fraction, "threshold": least, "pairs": pairs, "of_pairs": sum(map(len, scores))}


def _added_up(store: Store, shards: Sequence[str]) -> Moments:
    """The moments of the shards, summed in their order; one of them is held at a time."""
    moments = Moments.from_bytes(store.read_bytes(_shard_moments(shards[0])))
    for shard in shards[1:]:
        moments += Moments.from_bytes(store.read_bytes(_shard_moments(shard)))
    return moments


def _drop_duplicates(store: Store) -> pa.Table:
    """Takes rows that an earlier row equals in image, captions and label out of the feature files, and returns them.

    They are saved before any file is rewritten, so a run that is killed in between still knows them all. Equality is
    that of 64-bit hashes: among 3.3 million rows, two different ones collide with a chance of 3e-7.
    """
    files = FeatureStore(store).files
    if not store.exists(DUPLICATES):
        hashes = [store.read_parquet(file, ["pair_digest"])["pair_digest"].to_numpy() for file in files]
        _, first = np.unique(np.concatenate(hashes), return_index=True)
        repeated = np.setdiff1d(np.arange(sum(map(len, hashes))), first)
        starts = np.cumsum([0, *map(len, hashes)])
        found = [store.read_parquet(files[0]).slice(0, 0)]
        for file, start, stop in zip(files, starts, starts[1:], strict=False):
            rows = repeated[(repeated >= start) & (repeated < stop)] - start
            if len(rows):
                found.append(store.read_parquet(file).take(rows))
        store.write_parquet(DUPLICATES, pa.concat_tables(found).replace_schema_metadata())
    duplicates = store.read_parquet(DUPLICATES)
    unwanted: dict[str, set[int]] = defaultdict(set)
    for shard, index in zip(duplicates["shard"].to_pylist(), duplicates["index"].to_pylist(), strict=True):
        unwanted[shard].add(index)
    for file in files:
        if indices := unwanted.get(shard_of(file)):
            table = store.read_parquet(file)
            kept = [index not in indices for index in table["index"].to_pylist()]
            if not all(kept):
                left = table.filter(pa.array(kept)).replace_schema_metadata()  # no longer of the whole chunk
                store.write_parquet(file, left)
    return duplicates


def _names(table: pa.Table) -> tuple[list[str], list[str]]:
    return table["shard"].to_pylist(), table["key"].to_pylist()


def _shard_moments(shard: str) -> str:
    return f"{SHARDS}/{shard}.safetensors"
