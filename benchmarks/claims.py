"""The claims of EDGE, CovMatch and VLCP, measured on procedural worlds that nothing was tuned on.

    python benchmarks/claims.py                          # all tables and claims, five worlds
    python benchmarks/claims.py --parts edge --seeds 101
    python benchmarks/claims.py noise                    # EDGE, random and clip-score pairs over noise
    python benchmarks/claims.py demo                     # what `make demo` compares, in ten worlds

A world is a seed s: its data, its validation data (seed s + 10,000), its test data (s + 20,000) and `run.seed` s.
Everything else is what the local presets say, so what is measured is what they do. Each world and method has a run
directory of its own. Killed at any point, the same command goes on, and what is finished is not done again.

Writes a table as JSON and Markdown to the folder `out`, named by the options that are not the default.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro
from claims_measure import Found, measured
from claims_tables import decided_claims, demo_markdown, markdown, noise_markdown
from claims_worlds import NOISE, Claims, check_claims, demo_bench, edge_bench, noise_bench, vlcp_bench

from mmdd_ray import cli


def main() -> None:
    claims = tyro.cli(Claims)
    check_claims(claims)
    seeds = claims.worlds
    if claims.table == "noise":
        noisy = {
            noise: {seed: measured(noise_bench(claims, noise, seed)) for seed in seeds} for noise in NOISE
        }
        table = noise_markdown(noisy)
        results: dict[str, Any] = {noise.name: figures for noise, figures in noisy.items()}
    elif claims.table == "demo":
        results = {str(seed): measured(demo_bench(claims, seed)) for seed in seeds}
        table = demo_markdown({int(seed): figures for seed, figures in results.items()})
    else:
        worlds: dict[int, Found] = {seed: {} for seed in seeds}
        for seed in seeds:
            if "edge" in claims.parts:
                worlds[seed] |= measured(edge_bench(claims, seed))
            if "vlcp" in claims.parts:
                worlds[seed] |= measured(vlcp_bench(claims, seed))
        table = markdown(worlds)
        results = {"figures": worlds, "claims": decided_claims(list(worlds.values()))}
    claims.out.mkdir(parents=True, exist_ok=True)
    changed = {
        part.name: getattr(claims, part.name)
        for part in fields(claims)
        if part.name not in ("table", "out") and getattr(claims, part.name) != part.default
    }
    named = [
        f"{name}-{'-'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in changed.items()
    ]
    file = claims.out / "_".join([claims.table, *named])  # a part of the worlds must not replace all of them
    Path(f"{file}.json").write_text(json.dumps(results, indent=2))
    Path(f"{file}.md").write_text(f"{table}\n")
    print(f"\n{table}\n\n{file}.json, {file}.md")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
