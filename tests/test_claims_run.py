"""One whole measurement by `benchmarks/claims.py`, as small as it gets: every stage runs and every figure is there."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import claims_measure  # benchmarks are scripts, which lie beside each other
import claims_tables
import claims_worlds

SEED = 7


def small(settings: Any, rows: int) -> Any:
    """The settings on `rows` scenes."""

    def shrunk(uri: str, rows: int) -> str:
        return f"shapes:{rows}?{uri.partition('?')[2]}"

    evaluation = settings.evaluation
    return replace(
        settings,
        data=replace(settings.data, uri=shrunk(settings.data.uri, rows)),
        evaluation=replace(
            evaluation, val=shrunk(evaluation.val, 96), test=shrunk(evaluation.test, 96), seeds=1
        ),
    )


def small_edge(bench: claims_worlds.EdgeBench) -> claims_worlds.EdgeBench:
    edge, covmatch = small(bench.edge, 120), small(bench.covmatch, 120)
    few = {"real_batch": 16, "micro_batch": 16}
    return replace(
        bench,
        edge=replace(
            edge,
            finetune=replace(edge.finetune, steps=2, batch_pairs=8),
            synthesis=replace(edge.synthesis, pairs=10, inference_steps=2),
            refine=replace(edge.refine, **few),
            students=replace(edge.students, steps=2, learning_rates=(0.1,)),
        ),
        covmatch=replace(
            covmatch,
            match=replace(covmatch.match, pairs=10, iterations=2, **few),
            students=replace(covmatch.students, steps=2, learning_rates=(0.1,)),
        ),
        held_out_prompts=10,
    )


def small_vlcp(bench: claims_worlds.VlcpBench) -> claims_worlds.VlcpBench:
    vlcp = small(bench.vlcp, 480)
    return replace(
        bench,
        vlcp=replace(
            vlcp,
            finetune=replace(vlcp.finetune, steps=2, batch_pairs=8),
            prototypes=replace(vlcp.prototypes, images_per_class=1),
            synthesis=replace(vlcp.synthesis, inference_steps=2),
            classifiers=replace(vlcp.classifiers, steps=2, learning_rates=(0.05, 0.1)),
        ),
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_claim_is_decided_on_what_a_world_measures(tmp_path: Path) -> None:
    asked = claims_worlds.Claims(seeds=(SEED,), out=tmp_path)
    edge = small_edge(claims_worlds.edge_bench(asked, SEED))
    found = claims_measure.measured(edge) | claims_measure.measured(
        small_vlcp(claims_worlds.vlcp_bench(asked, SEED))
    )
    decided = claims_tables.decided_claims([found])
    assert len(decided) == len(claims_tables.CLAIMS)
    for table, sets in found.items():
        for name, scores in sets.items():
            assert scores.keys() >= claims_tables.TABLES[table].columns.keys(), (table, name)
    assert claims_measure.measured(edge) == {
        name: found[name] for name in found if name != claims_tables.VLCP
    }
    noise = claims_tables.Noise(0.3, cluttered=False)
    noisy = claims_measure.measured(small_edge(claims_worlds.noise_bench(asked, noise, SEED)))
    assert "30 %" in claims_tables.noise_markdown({noise: {SEED: noisy}})
