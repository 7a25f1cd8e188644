"""When a method is as good as trajectory matching, and what `benchmarks/headline.py` is about to measure."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.storage.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import headline  # benchmarks are scripts, which lie beside each other

LADDERS = {"trajectory": (1, 2), "covmatch": (1, 2, 4), "edge": (0,)}


def a_world(
    trajectory: list[float], covmatch: list[float], edge: list[float], real: float = 3.0
) -> headline.Found:
    """Recalls by budget; a set takes ten seconds, and one more for each unit of its budget, eight of them further."""
    recalls = {"trajectory": trajectory, "covmatch": covmatch, "edge": edge}
    found = {
        f"{method}-{budget}": {
            "recall": recall,
            "whole": 10.0 + budget,
            "further": 8.0 + budget,
            "work": 1.0 + budget,
        }
        for method, budgets in LADDERS.items()
        for budget, recall in zip(budgets, recalls[method], strict=True)
    }
    return found | {name: {"recall": real} for name in ("random", "herding")}


def test_a_ratio_is_that_of_the_rival_at_its_best_to_the_first_budget_that_comes_up_to_it() -> None:
    worlds = [a_world([4.0, 5.0], [4.9, 5.0, 9.0], [6.0]), a_world([6.0, 5.0], [6.1, 5.0, 9.0], [6.0])]
    found = {one.name: one.ratios for one in headline.ratios_of(worlds, LADDERS)}
    assert found["headline: covmatch, all stages"] == (12 / 12, 11 / 11)
    assert found["headline: covmatch, a further distillation"] == (10 / 10, 9 / 9)
    assert found["headline: edge, all stages, without starts"] == (3 / 1, 2 / 1)


def test_a_method_that_stays_below_the_rival_in_one_world_has_no_ratio() -> None:
    worlds = [a_world([4.0, 5.0], [9.0, 9.0, 9.0], [6.0]), a_world([6.0, 5.0], [6.1, 5.0, 9.0], [5.9])]
    assert {one.name.split(",")[0] for one in headline.ratios_of(worlds, LADDERS)} == {"headline: covmatch"}


@pytest.mark.parametrize("real", [5.5, 7.0])
def test_a_rival_that_is_not_above_real_pairs_gives_no_ratio(real: float) -> None:
    worlds = [
        a_world([4.0, 5.0], [9.0, 9.0, 9.0], [9.0], real),
        a_world([6.0, 5.0], [9.0, 9.0, 9.0], [9.0], real),
    ]
    assert not headline.ratios_of(worlds, LADDERS)


def test_the_table_has_a_line_for_each_set_and_blanks_for_the_time_of_real_ones() -> None:
    lines = headline.table([a_world([4.0, 5.0], [4.9, 5.0, 9.0], [6.0])] * 2).splitlines()
    assert len(lines) == 2 + 8
    assert "| covmatch-4 | 9.0 ± 0.0 | 14.0 ± 0.0 | 12.0 ± 0.0 | 5.0 ± 0.0 |" in lines
    assert lines[-1].startswith("| herding | 3.0 ± 0.0 |")
    assert all(line.count("|") == 6 for line in lines)


def test_times_of_a_set_are_split_into_what_is_used_again_and_what_is_not(tmp_path: Path) -> None:
    def stage(name: str, seconds: float, start: float | None) -> StageDir:
        manifest = {"seconds": seconds, "startup_seconds": start}
        return StageDir(name, Store(str(tmp_path)), name, manifest)

    stages = [stage("features-0.5", 9.0, 8.5), stage("moments", 5.0, 4.0), stage("covmatch-20", 20.0, None)]
    assert headline.Seconds.of(stages) == headline.Seconds(34.0, 20.0, 21.5)


def test_a_stage_that_was_interrupted_is_done_again_from_its_start(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    for name in ("done", "begun", "evaluate"):
        run.write_json(f"{name}/started.json", {})
    run.write_json("done/manifest.json", {})
    headline.drop_interrupted(run)
    assert run.entries() == ["done", "evaluate"]


@pytest.mark.parametrize("photos", [None, Path("flickr8k")], ids=["scenes", "photographs"])
def test_every_trial_is_of_settings_that_there_are_and_each_method_has_as_many(photos: Path | None) -> None:
    asked = headline.Headline(photos=photos)
    world = headline.world_of(asked, 101, "report", {})
    settings: dict[str, Any] = {"trajectory": world.trajectory.match, "covmatch": world.covmatch.match}
    if world.edge:
        settings["edge"] = world.edge.finetune
    assert asked.trials.keys() == settings.keys() <= asked.ladders.keys()
    assert len({len(trials) for trials in asked.trials.values()}) == 1
    for method, trials in asked.trials.items():
        for changes in trials:
            replace(settings[method], **changes)
    for one in (world.covmatch, world.trajectory):
        assert (one.data, one.students) == (world.base.data, world.base.students)
        assert one.evaluation == world.base.evaluation
    assert world.base.students.trained == "frozen-text"


def test_trials_on_photographs_see_nothing_of_the_data_that_are_reported() -> None:
    asked = headline.Headline(photos=Path("flickr8k"))
    tried, reported = (headline.world_of(asked, seed, "x", {}).base.evaluation for seed in (1, 101))
    assert tried.test == tried.val == reported.val != reported.test
    worlds = [headline.world_of(asked, seed, "x", {}) for seed in (101, 102)]
    assert worlds[0].covmatch.run.seed != worlds[1].covmatch.run.seed
    assert worlds[0].trajectory.run.dir != worlds[1].trajectory.run.dir


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_tiny_headline_has_recall_and_seconds_of_every_set(tmp_path: Path) -> None:
    command = [sys.executable, headline.__file__, "--size", "tiny", "--repetitions", "1"]
    folders = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    run = subprocess.run(
        [*command, *folders],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (file,) = (tmp_path / "out").glob("headline-tiny_*.json")
    (world,) = json.loads(file.read_text())["worlds"]
    made = {
        f"{method}-{budget}" for method, budgets in headline.LADDERS["tiny"].items() for budget in budgets
    }
    assert made < world.keys()
    assert all(0 < world[name]["work"] < world[name]["whole"] for name in made)
    assert all(world[name]["further"] < world[name]["whole"] for name in made)
