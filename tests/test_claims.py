"""The claims' statistics against scipy, and what `benchmarks/claims.py` is about to measure."""

import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mmdd_ray.data.formats.scenes import shapes_spec
from mmdd_ray.engine.settings_changes import differences, resolved
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.paired import CONTRADICTED, NOT_SHOWN, SHOWN, Paired, first_above
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.methods.vlcp.presets import local as vlcp_local

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import claims_tables  # benchmarks are scripts, which lie beside each other
import claims_worlds


@pytest.mark.parametrize("worlds", [2, 5, 12])
def test_the_interval_is_that_of_the_paired_t_test(worlds: int) -> None:
    rng = np.random.default_rng(worlds)
    hardness = rng.normal(10, 5, worlds)
    ours, theirs = hardness + rng.normal(1, 1, worlds), hardness + rng.normal(0, 1, worlds)
    found = Paired.of(ours.tolist(), theirs.tolist())
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_pairing_takes_out_how_hard_worlds_are() -> None:
    assert Paired.of([1, 11, 21], [0, 10, 20]) == Paired(1.0, 1.0, 1.0, 1.0)


def test_one_world_says_nothing_of_the_spread() -> None:
    found = Paired.of([3.0], [1.0])
    assert found == Paired(2.0, -inf, inf, pytest.approx(0.1))
    assert found.verdict() == found.verdict("not below") == NOT_SHOWN


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_figures_without_partner_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Paired.of(ours, theirs)


@pytest.mark.parametrize(
    ("low", "high", "above", "not_below"),
    [
        (0.1, 2.0, SHOWN, SHOWN),
        (0.0, 2.0, NOT_SHOWN, SHOWN),
        (-0.9, 0.5, NOT_SHOWN, SHOWN),
        (-1.0, 0.5, NOT_SHOWN, NOT_SHOWN),  # which may be 1 below, the margin
        (-7.0, 1.0, NOT_SHOWN, NOT_SHOWN),
        (-0.9, 0.0, NOT_SHOWN, SHOWN),
        (-2.0, -0.1, CONTRADICTED, CONTRADICTED),
    ],
)
def test_verdicts(low: float, high: float, above: str, not_below: str) -> None:
    found = Paired((low + high) / 2, low, high, margin=1.0)
    assert (found.verdict(), found.verdict("not below")) == (above, not_below)


@pytest.mark.parametrize(
    ("means", "lows", "expected"),
    [
        ([-1, 1, 2, 3], [-2, -1, 1, 1], (1, 2)),
        ([1, -1, 2], [0.5, -2, -1], (2, None)),  # what was above before is not above from there on
        ([1, 2, -1], [0.5, 1, -2], (None, None)),
        ([1, 2], [0.5, 1], (0, 0)),
    ],
)
def test_from_which_condition_on_ours_is_above(
    means: list[float], lows: list[float], expected: tuple[int | None, int | None]
) -> None:
    found = [Paired(mean, low, mean + 1, 0.0) for mean, low in zip(means, lows, strict=True)]
    assert first_above(found) == expected


def test_a_world_changes_seeds_and_flaws_and_nothing_else_of_the_preset() -> None:
    edge = claims_worlds.edge_bench(claims_worlds.Claims(wrong=0.3, clutter=2.0), 104).edge
    assert edge.data.uri == "shapes:2000?seed=104&wrong=0.3&vague=0.1&captions=1&clutter=2.0"
    assert edge.evaluation.val == "shapes:300?seed=10104&wrong=0&vague=0&captions=5&clutter=2.0"
    assert edge.evaluation.test == "shapes:500?seed=20104&wrong=0&vague=0&captions=5&clutter=2.0"
    assert edge.run.seed == 104
    preset = edge_local()
    for section in ("features", "finetune", "captions", "students", "refine"):
        assert getattr(edge, section) == getattr(preset, section)
    assert edge.synthesis.guidance == preset.synthesis.guidance
    vlcp = claims_worlds.vlcp_bench(claims_worlds.Claims(), 104).vlcp
    rates = claims_worlds.CLASSIFIER_RATES
    assert vlcp.classifiers == replace(vlcp_local().classifiers, learning_rates=rates)
    assert len(rates) > 1  # so that each set gets its own
    assert vlcp.prototypes == vlcp_local().prototypes
    assert "labelled=1" in vlcp.data.uri
    assert len({vlcp.data.uri, vlcp.evaluation.val, vlcp.evaluation.test}) == 3


def benches() -> list[Any]:
    asked = claims_worlds.Claims()
    noisy = [
        claims_worlds.noise_bench(asked, noise, seed)
        for noise in claims_worlds.NOISE
        for seed in asked.worlds
    ]
    makers = (claims_worlds.edge_bench, claims_worlds.vlcp_bench, claims_worlds.demo_bench)
    return [*(make(asked, seed) for make in makers for seed in asked.worlds), *noisy]


def test_every_bench_has_a_folder_of_its_own_and_worlds_that_can_be_drawn() -> None:
    settings = [
        bench.vlcp if isinstance(bench, claims_worlds.VlcpBench) else bench.edge for bench in benches()
    ]
    assert len({one.run.dir for one in settings}) == len(settings)
    for one in settings:
        labelled = "labelled=1" in one.data.uri
        for uri, captions in ((one.data.uri, 1), (one.evaluation.val, 5), (one.evaluation.test, 5)):
            rows, draw = shapes_spec(uri)
            assert len(next(draw(0, 1))["captions"]) == (1 if labelled else captions)
            assert rows >= 300


def test_the_arms_of_edge_have_equal_pairs_and_differ_in_one_thing() -> None:
    bench = claims_worlds.edge_bench(claims_worlds.Claims(), 101)
    settings: dict[str, Edge] = {arm.name: arm.settings(bench.edge) for arm in bench.arms}
    assert all(one.images * one.captions.per_image == claims_worlds.PAIRS for one in settings.values())
    assert bench.covmatch.match.pairs == claims_worlds.PAIRS
    base = settings.pop(claims_tables.BASE)
    for name, one in settings.items():
        changed = [
            part
            for part in ("finetune", "captions", "synthesis")
            if getattr(one, part) != getattr(base, part)
        ]
        assert len(changed) == 1, name
    assert settings["edge-100x1-untuned"].finetune.steps == 0
    alone = settings["edge-100x1-contrastive"].finetune
    assert alone.contrastive_weight == base.finetune.contrastive_weight
    assert (alone.diversity_weight, alone.noise_weight) == (0, 0)
    tunings = {(arm.tuning, str(arm.finetune)) for arm in bench.arms}
    assert len({tuning for tuning, _ in tunings}) == len(tunings)  # arms of one generator want the same one


def test_the_arms_of_covmatch_have_names_of_their_own_and_differ_in_what_they_say() -> None:
    bench = claims_worlds.edge_bench(claims_worlds.Claims(), 101)
    names = [arm.name for arm in (*bench.arms, *bench.match_arms)]
    assert len(set(names)) == len(names)
    settings = {arm.name: arm.settings(bench.covmatch) for arm in bench.match_arms}
    assert settings["covmatch"] == bench.covmatch
    starts = {name: one.match.init for name, one in settings.items()}
    assert starts == {
        "covmatch": "clip-score",
        "covmatch-random": "random",
        "covmatch-edge": "edge",
        "covmatch-batches": "random",
    }
    batches = settings["covmatch-batches"]
    assert (batches.match.real_moments, batches.match.encoder_updates) == ("batches", True)
    assert [one.features.clip_score_fraction for one in settings.values()] == [0.5, 0.5, 0.5, 1]


def test_noise_is_measured_on_three_sets_whose_test_captions_are_right() -> None:
    plain, cluttered = claims_tables.Noise(0.3, False), claims_tables.Noise(0.3, True)
    bench = claims_worlds.noise_bench(claims_worlds.Claims(), plain, 101)
    assert [arm.name for arm in bench.arms] == [claims_tables.BASE]
    assert bench.edge.evaluation.baselines == ("random", "clip-score")
    assert not bench.further
    assert "wrong=0.3" in bench.edge.data.uri
    for uri in (bench.edge.data.uri, bench.edge.evaluation.test):
        assert "clutter=0.0" in uri
        assert "nuisance=0.0" in uri
    assert "wrong=0&" in bench.edge.evaluation.test
    assert "clutter" not in claims_worlds.noise_bench(claims_worlds.Claims(), cluttered, 101).edge.data.uri


def test_the_demo_is_the_preset_in_other_worlds() -> None:
    bench = claims_worlds.demo_bench(claims_worlds.Claims(table="demo"), 107)
    preset = edge_local()
    assert bench.edge.synthesis == preset.synthesis
    assert set(preset.evaluation.baselines) == set(bench.edge.evaluation.baselines)
    assert [arm.name for arm in bench.arms] == [claims_tables.BASE]
    assert bench.edge.data.uri == preset.data.uri.replace("seed=1", "seed=107")


def test_the_demo_counts_the_worlds_in_which_edge_is_ahead() -> None:
    worlds = {101: figures(12.0), 102: figures(9.0), 103: figures(10.5)}
    worlds[103][claims_tables.EDGE]["herding"]["mean_recall"] = 11.0
    told = claims_tables.demo_markdown(
        {seed: {claims_tables.EDGE: one[claims_tables.EDGE]} for seed, one in worlds.items()}
    )
    head, _, *rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in told.splitlines() if row[:1] == "|"
    ]
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert found["102"]["EDGE, 100 × 1"] == "9.0"
    assert found["mean"]["EDGE, 100 × 1"] == "10.5 ± 1.5"
    assert found["EDGE is above, worlds of 3"]["random real"] == "2"
    assert found["EDGE is above, worlds of 3"]["herding"] == "1"


def test_the_worlds_of_each_table() -> None:
    assert claims_worlds.Claims().worlds == (101, 102, 103, 104, 105)
    assert claims_worlds.Claims(table="demo").worlds == tuple(range(101, 111))
    assert claims_worlds.Claims(table="demo", seeds=(7,)).worlds == (7,)


def test_other_weights_of_the_models_are_another_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = claims_worlds.edge_bench(claims_worlds.Claims(), 101)
    monkeypatch.setattr(claims_worlds.zoo, "version", lambda name: f"sha256:{name}")
    other = claims_worlds.edge_bench(claims_worlds.Claims(), 101)
    (changed, *_) = differences(resolved(bench), resolved(other), other)
    assert changed.startswith("models.tiny-")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (claims_worlds.Claims(table="noise", wrong=0.4), "--wrong"),
        (claims_worlds.Claims(table="noise", clutter=1.0), "--clutter"),
        (claims_worlds.Claims(table="demo", parts=("edge",)), "--parts"),
    ],
)
def test_an_option_that_a_table_does_not_heed_is_refused(asked: claims_worlds.Claims, named: str) -> None:
    with pytest.raises(UserError, match=f"does not depend on {named}"):
        claims_worlds.check_claims(asked)


def test_measuring_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="parts="):
        claims_worlds.check_claims(claims_worlds.Claims(parts=()))


@pytest.mark.parametrize("seeds", [(), (101, 101), (claims_worlds.VAL_SEEDS,)])
def test_worlds_that_are_not_worlds_of_their_own_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="seeds="):
        claims_worlds.check_claims(claims_worlds.Claims(seeds=seeds))


def figures(edge: float) -> dict[str, Any]:
    """A world in which EDGE scores so much, every other set 10, and sets are those that would be measured."""
    arms = [arm.name for arm in claims_worlds.ARMS]
    learnt = [name for name in claims_worlds.COVMATCH_STUDENTS if name not in arms]
    real = [*claims_tables.REAL, "full", "chance"]
    names = {
        claims_tables.EDGE: [*arms, *learnt, *real],
        claims_tables.COVMATCH: [*claims_worlds.COVMATCH_STUDENTS, *real],
        claims_tables.HELD_OUT: ["tuned", "untuned"],
        claims_tables.VLCP: [*claims_worlds.vlcp_arms.ARMS, claims_worlds.vlcp_arms.AS_IS, *real],
    }
    return {
        table: {
            name: dict.fromkeys(
                claims_tables.TABLES[table].columns, edge if name == claims_tables.BASE else 10.0
            )
            for name in own
        }
        for table, own in names.items()
    }


def test_every_claim_is_decided_on_sets_that_are_measured() -> None:
    worlds = [figures(12.0), figures(12.5), figures(13.0)]
    found = {one["claim"]: one for one in claims_tables.decided_claims(worlds)}
    assert found["EDGE is above herding"]["verdict"] == SHOWN
    assert found["EDGE is above herding"]["in_favour"] == pytest.approx(2.5)
    assert found["CovMatch from EDGE is above EDGE"]["verdict"] == CONTRADICTED
    assert found["fine-tuning raises alignment"]["verdict"] == NOT_SHOWN
    named = {name for claim in claims_tables.CLAIMS for name in (claim.ours, claim.theirs)}
    assert named <= claims_tables.LABELS.keys() | {"herding", "k-center"}


def test_lower_similarity_is_in_favour_of_fine_tuning() -> None:
    worlds = [figures(10.0) for _ in range(3)]
    for number, world in enumerate(worlds):
        world[claims_tables.HELD_OUT]["tuned"]["similarity"] = 9.0 - 0.1 * number
    found = {one["claim"]: one for one in claims_tables.decided_claims(worlds)}
    assert found["fine-tuning lowers similarity"]["verdict"] == SHOWN
    assert found["fine-tuning lowers similarity"]["in_favour"] == pytest.approx(1.1)


def test_the_markdown_has_the_tables_that_were_measured() -> None:
    told = claims_tables.markdown({101: figures(12.0), 102: figures(13.0)})
    assert "| EDGE, 100 × 1 | 12.5 ± 0.7 |" in told
    assert "| EDGE is above herding | mean recall | edge | +2.5 | −3.9 to +8.9 | not shown |" in told
    assert "No result" not in told
    edge_alone = {claims_tables.EDGE: figures(12.0)[claims_tables.EDGE]}
    told = claims_tables.markdown({5: edge_alone})
    assert "VLCP" not in told
    assert "| +2.0 | unknown | not shown |" in told
    assert "tuned on the worlds 5" in told


def test_the_noise_at_which_edge_passes_is_named() -> None:
    def worlds(edge: float) -> dict[int, Any]:
        return {seed: figures(edge + seed / 1000) for seed in (101, 102, 103)}

    noisy = {
        claims_tables.Noise(wrong, cluttered): worlds(10 + 20 * wrong - (3 if cluttered else 11))
        for cluttered in (False, True)
        for wrong in (0.0, 0.1, 0.2, 0.3)
    }
    told = claims_tables.noise_markdown(noisy)
    assert "With clutter off, EDGE does not pass random up to 30 % wrong captions." in told
    assert "With clutter on, EDGE passes clip-score at 20 % wrong captions (shown from 20 % on)." in told
    assert told.count("\n| o") == 8
