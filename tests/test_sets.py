"""The sets that students are compared on: what is read, how often, and what stops a comparison; without Ray."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from mmdd_ray.config import Data, Evaluation, Run, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import Row
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.draws import Draw
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation import held_out, sets
from mmdd_ray.evaluation.report.words import set_name
from mmdd_ray.features.coresets import clip_score, herding, pair_scores, random_subset
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore, chunk_file, feature_table, image_features, text_features
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.covmatch.settings import Match
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.evaluate import stages as evaluate_stages
from mmdd_ray.methods.evaluate.presets import local as evaluate_local
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.execute import run_stage
from mmdd_ray.methods.method import Context
from mmdd_ray.storage.store import Store

DATA = Data(uri="shapes:40?seed=3", rows_per_shard=20)
EVALUATION = Evaluation(val="shapes:6?seed=4", test="shapes:6?seed=5", full_pairs=30)


def rows_of(data: Data) -> list[Row]:
    return [row for shard in list_shards(data) for row in iter_shard(shard, data)]


@pytest.fixture
def features(tmp_path: Path) -> FeatureStore:
    """Random features of all 40 rows of DATA, in two shards."""
    store, rng = Store(str(tmp_path / "features")), np.random.default_rng(0)
    for shard in list_shards(DATA):
        rows = list(iter_shard(shard, DATA))
        columns = {
            name: [getattr(row, name) for row in rows] for name in ("index", "key", "captions", "label")
        }
        captions = sum(len(row.captions) for row in rows)
        pairs = pa.table(columns | {"label": pa.array(columns["label"], pa.int64())})
        table = feature_table(
            pairs, shard.name, rng.normal(size=(len(rows), 4)), rng.normal(size=(captions, 4))
        )
        store.write_parquet(chunk_file(shard.name, 0), table)
    return FeatureStore(store)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[str, int]]]]:
    """Addresses of each fetch; the rows are read in this process."""
    calls: list[list[tuple[str, int]]] = []

    def fetch(data: Data, addresses: list[tuple[str, int]]) -> list[Row]:
        calls.append(addresses)
        found = {(row.shard, row.index): row for row in rows_of(data)}
        return [found[address] for address in addresses]

    monkeypatch.setattr(sets, "fetch_pairs", fetch)
    return calls


def test_baselines_are_the_coresets_rows_and_each_row_is_fetched_once(
    features: FeatureStore, fetched: list[list[tuple[str, int]]]
) -> None:
    coresets = dict(sets.choose_coresets(features, sets.COMPARED, 5, 1, EVALUATION))
    found = dict(sets.baseline_sets(features, DATA, EVALUATION, 5, 32, 1, coresets))
    assert len(fetched) == 1
    assert len(fetched[0]) == len(set(fetched[0]))
    rows = rows_of(DATA)
    for name, chosen in (
        ("random", random_subset(40, 5, 1)),
        ("herding", herding(features.joint_features(), 5)),
        ("full", random_subset(40, 30, 1)),
    ):
        own = [rows[index].captions for index in sorted(chosen)]
        assert found[name].captions == (own if name == "full" else [captions[:1] for captions in own]), name
    assert list(found) == list(EVALUATION.baselines)
    assert found["k-center"].n_pairs == 5


def test_a_set_larger_than_the_data_may_stand_beside_all_of_them_alone(
    features: FeatureStore, fetched: list[list[tuple[str, int]]]
) -> None:
    with pytest.raises(UserError, match=r"the set has 41 pairs, but .* has only 40 usable ones"):
        dict(
            sets.baseline_sets(
                features, DATA, replace(EVALUATION, baselines=("random", "full")), 41, 32, 1, {}
            )
        )
    alone = dict(sets.baseline_sets(features, DATA, replace(EVALUATION, baselines=("full",)), 41, 32, 1, {}))
    assert (list(alone), alone["full"].n_images) == (["full"], 30)


def chosen(run: RunDir, features: FeatureStore, asked: Evaluate, pairs: int) -> dict[str, np.ndarray]:
    stage = run.stage("coresets", lambda stage: sets.save_coresets(stage, features, asked, pairs))
    return sets.read_coresets(stage.store, asked.evaluation)


def test_coresets_are_chosen_once_and_each_is_kept(features: FeatureStore, tmp_path: Path) -> None:
    asked = replace(evaluate_local(), data=DATA, evaluation=EVALUATION, run=Run(seed=1))
    with RunDir.open(str(tmp_path / "run"), "evaluate", "local", asked) as run:
        first = chosen(run, features, asked, 5)
        assert {name: rows.tolist() for name, rows in first.items()} == {
            name: rows.tolist()
            for name, rows in sets.choose_coresets(features, sets.COMPARED, 5, 1, EVALUATION)
        }
        assert list(first) == ["herding", "k-center", "clip-score"]
        # killed before the second was written
        folder = tmp_path / "run" / "coresets"
        (folder / "manifest.json").unlink()
        (folder / "k-center.json").unlink()
        (folder / "clip-score.json").unlink()
        written_at = (folder / "herding.json").stat().st_mtime_ns
        again = chosen(run, features, asked, 5)
        assert (folder / "herding.json").stat().st_mtime_ns == written_at
        assert again["k-center"].tolist() == first["k-center"].tolist()
        assert again["clip-score"].tolist() == first["clip-score"].tolist()
        assert sets.read_coresets(None, replace(EVALUATION, baselines=("random",))) == {}
        (folder / "manifest.json").unlink()
        with pytest.raises(ValueError, match=r"the set has 41 pairs"):
            chosen(run, features, asked, 41)


def test_clip_score_looks_at_first_captions_and_is_a_start_for_covmatch(
    features: FeatureStore, fetched: list[list[tuple[str, int]]]
) -> None:
    scores = []
    for table in features.tables():
        counts = [len(captions) for captions in table["captions"].to_pylist()]
        first = text_features(table)[np.cumsum([0, *counts[:-1]])]
        scores.append(pair_scores(image_features(table), first))
    score = np.concatenate(scores)
    for fraction, kept in ((0.5, 20), (0.25, 10)):
        evaluation = replace(EVALUATION, clip_score_fraction=fraction)
        chosen = dict(sets.choose_coresets(features, ["clip-score"], 5, 1, evaluation))["clip-score"]
        assert chosen.tolist() == sorted(clip_score(score, 5, 1, kept).tolist())
        assert score[chosen].min() >= np.sort(score)[-kept]
        start, keys = sets.coreset(features, "clip-score", DATA, 5, 32, 1, evaluation)
        rows = rows_of(DATA)
        assert keys == [rows[row].name for row in chosen]
        assert start.captions == [rows[row].captions[:1] for row in chosen]


def test_too_few_kept_pairs_are_one_sentence_where_clip_score_is_wanted(features: FeatureStore) -> None:
    edge = replace(edge_local(), data=DATA, evaluation=EVALUATION)
    sets.check_kept(features, edge, 20)
    message = (
        r"^evaluation\.clip_score_fraction=0\.5 keeps 20 of the 40 usable pairs of data\.uri=shapes:40.*, but the "
        r"distilled set has 21; raise it, .* or do without clip-score in "
    )
    with pytest.raises(UserError, match=message + r"evaluation\.baselines$"):
        sets.check_kept(features, edge, 21)
    others = replace(EVALUATION, baselines=("random", "full"))
    sets.check_kept(features, replace(edge, evaluation=others), 21)
    start = replace(covmatch_local(), data=DATA, evaluation=others, match=Match(init="clip-score"))
    with pytest.raises(UserError, match=message + r"match\.init$"):
        sets.check_kept(features, start, 21, start.match.init)
    all_kept = replace(EVALUATION, clip_score_fraction=1.0)
    sets.check_kept(features, replace(start, evaluation=all_kept), 21, start.match.init)


def test_a_baseline_that_lost_rows_is_no_baseline(
    features: FeatureStore, fetched: list[list[tuple[str, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sets.fetch_pairs

    def damaged(data: Data, addresses: list[tuple[str, int]]) -> list[Row]:
        first, *rest = whole(data, addresses)
        return [replace(first, key="k7", image=b"no image"), *rest]

    monkeypatch.setattr(sets, "fetch_pairs", damaged)
    only = replace(EVALUATION, baselines=("full",))
    with pytest.raises(
        ValueError, match=r"data\.uri=shapes:40.*1 of the 30 pairs of the set full.*k7.*not an image"
    ):
        dict(sets.baseline_sets(features, DATA, only, 5, 32, 1, {}))


def test_too_few_real_pairs_are_said_without_a_setting_that_the_job_may_not_have(
    features: FeatureStore,
) -> None:
    with pytest.raises(ValueError, match=r"the set has 41 pairs, but data\.uri=shapes:40.*only 40 usable"):
        dict(sets.baseline_sets(features, DATA, EVALUATION, 41, 32, 1, {}))


# ---- validation and test pairs


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Evaluate:
    """Folders of 8 images, two of them damaged, as validation and test pairs, read in this process."""

    def read(data: Data) -> SimpleNamespace:
        return SimpleNamespace(iter_rows=lambda: map(asdict, reversed(rows_of(data))))

    monkeypatch.setattr(held_out, "read_pairs", read)
    folder = tmp_path / "images" / "a class"
    folder.mkdir(parents=True)
    for number, pair in enumerate(shapes.pairs(0, 8, seed=9)):
        folder.joinpath(f"{number}.png").write_bytes(pair["image"] if number % 4 else b"no image %d" % number)
    uri = str(folder.parent)
    return Evaluate(
        set=("any",), data=replace(DATA, max_reject_ratio=0.3), evaluation=Evaluation(val=uri, test=uri)
    )


def test_refused_validation_and_test_rows_are_listed_beside_those_of_the_features(
    read_here: Evaluate, tmp_path: Path
) -> None:
    run = Store(str(tmp_path / "run"))
    of_features = RejectList(run.child("features"), run)
    of_features.rows = [("00000", "k", "blank caption")]
    of_features.save()
    for _ in range(2):  # a resumed stage lists nothing twice
        listed = RejectList(run.child("evaluate"), run)
        pairs, _ = sets.held_out_sets(read_here, listed)
        listed.save()
    assert {part: own.n_images for part, own in pairs.items()} == {"val": 6, "test": 6}
    found = [tuple(row.values()) for row in run.read_parquet("rejects.parquet").to_pylist()]
    assert len(found) == 5
    assert [(shard.partition("/")[0], reason) for shard, _, reason in found] == [
        *[("val", "not an image")] * 2,
        *[("test", "not an image")] * 2,
        ("00000", "blank caption"),
    ]


def test_mostly_refused_validation_rows_stop_the_comparison_and_name_their_setting(
    read_here: Evaluate, tmp_path: Path
) -> None:
    run = Store(str(tmp_path / "run"))
    strict = replace(read_here, data=replace(read_here.data, max_reject_ratio=0.2))
    message = (
        r"^evaluation\.val: 2 of the first 8 rows were refused \(2 not an image\), more than "
        rf"data\.max_reject_ratio=0\.2 allows; look at {run.uri}/rejects\.parquet"
    )
    with pytest.raises(ValueError, match=message):
        sets.held_out_sets(strict, RejectList(run.child("evaluate"), run))
    assert len(run.read_parquet("rejects.parquet")) == 2


def test_validation_data_without_any_pair_name_their_setting(read_here: Evaluate, tmp_path: Path) -> None:
    for number, path in enumerate((tmp_path / "images" / "a class").iterdir()):
        path.write_bytes(b"no image %d" % number)
    with pytest.raises(ValueError, match=r"^evaluation\.val=.*none of the 8 rows.*8 not an image"):
        sets.held_out_sets(
            read_here, RejectList(Store(str(tmp_path / "run" / "evaluate")), Store(str(tmp_path / "run")))
        )


# ---- evaluation of a set that somebody else made


@pytest.mark.parametrize(
    ("method", "name"),
    [("EDGE", "edge"), ("random", "distilled"), ("clip-score", "distilled"), ("Chance", "distilled")],
)
def test_a_set_is_called_by_its_method_unless_a_baseline_is_called_so(method: str, name: str) -> None:
    assert set_name(method) == name


def test_a_method_that_is_no_file_name_becomes_one() -> None:
    assert set_name("../../My Method").replace("-", "_").isidentifier()
    assert set_name("a/b") != set_name("a b")


def test_another_set_in_the_same_place_is_evaluated_again_and_its_features_are_not(tmp_path: Path) -> None:
    settings = Evaluate(set=(str(tmp_path / "set"),), data=DATA, students=Students(), evaluation=EVALUATION)
    done: list[str] = []

    def stage_body(stage: StageDir) -> StageResult:
        done.append(stage.name)
        stage.store.write_json("out.json", {})
        return StageResult(rows_in=1, rows_out=1)

    (noting,) = (stage for stage in evaluate_stages.STEPS.stages if stage.name == "set")
    for caption in ("one", "one", "two", "two"):
        image = next(shapes.pairs(0, 1, seed=1))["image"]
        sample = Sample(key="0", image=image, captions=(caption,), seed=0, source_key="")
        write_distilled([sample], Store(settings.set[0]), method="EDGE", settings={}, seed=0, inputs={})
        with RunDir.open(str(tmp_path / "run"), "evaluate", "local", settings) as run:
            features = run.stage("features", stage_body)
            noted = run_stage(run, noting, Context(run, Draw(0, settings), {}))
            run.stage("evaluate", stage_body, [features, noted])
    assert done == ["features", "evaluate", "evaluate"]
