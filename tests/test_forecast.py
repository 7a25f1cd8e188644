"""How long the rest of a run takes: by its plan, by what stages took, and by the rate of the one that runs."""

import pytest

from mmdd_ray.engine.forecast import AS_PLANNED_S, Current, Forecast

STAGES = ("features", "finetune", "choose", "synthesize", "evaluate")
PLANNED = {"features": 10.0, "finetune": 60.0, "synthesize": 30.0, "evaluate": 20.0}  # "choose" costs nothing


def forecast(**changes: float | None) -> Forecast:
    return Forecast(STAGES, PLANNED | changes)


def test_before_it_starts_a_run_takes_what_was_planned() -> None:
    assert forecast().seconds_left() == 120


def test_later_stages_take_longer_by_as_much_as_those_before() -> None:
    run = forecast(features=600.0)
    run.end("features", 1200, resumed=False)
    twice = (1200 + AS_PLANNED_S) / (600 + AS_PLANNED_S)
    assert run.scale == pytest.approx(twice)
    assert run.seconds_left() == pytest.approx(twice * (60 + 30 + 20))
    run.end("finetune", 15, resumed=False)
    assert run.scale == (1215 + AS_PLANNED_S) / (660 + AS_PLANNED_S)
    assert run.to_come("choose") == ["synthesize", "evaluate"]


def test_a_stage_of_seconds_says_little_of_hours() -> None:
    run = forecast(features=0.5, finetune=36_000.0)
    run.end("features", 12, resumed=False)  # 24 times as long
    left = run.seconds_left()
    assert left is not None
    assert 36_000 < left < 1.25 * 36_000


def test_a_resumed_stage_and_one_without_a_plan_say_nothing_of_later_ones() -> None:
    run = forecast()
    run.end("features", 1, resumed=True)
    run.end("choose", 7, resumed=False)
    assert run.scale == 1
    assert run.seconds_left() == 110


def test_a_stage_that_runs_takes_what_its_line_says_or_what_the_plan_leaves_for_further_lines() -> None:
    run = forecast()
    run.end("features", 80, resumed=False)  # (80 + 60) / (10 + 60)
    assert run.scale == 2
    later = 2 * (30 + 20)
    for elapsed, counted, left in [(0, None, 120), (50, None, 70), (200, None, 0), (50, 90, 90), (50, 5, 70)]:
        now = Current(stage="finetune", elapsed_s=elapsed, counted_s=counted)
        assert run.seconds_left(now) == left + later
    # the plan does not know how much of it an earlier attempt did
    now = Current(stage="finetune", elapsed_s=50, counted_s=5, resumed=True)
    assert run.seconds_left(now) == 5 + later


@pytest.mark.parametrize("stage", ["finetune", "evaluate"])
def test_nothing_is_said_where_the_time_of_a_stage_is_not_known(stage: str) -> None:
    run = forecast(**{stage: None})
    assert run.seconds_left() is None
    assert run.seconds_left(Current(stage="features", elapsed_s=1, counted_s=2)) is None
    for done in STAGES[: STAGES.index(stage) + 1]:
        run.end(done, 1, resumed=False)
    assert run.seconds_left() is not None


def test_the_rate_of_a_stage_makes_up_for_its_plan() -> None:
    run = forecast(finetune=None)
    assert run.seconds_left(Current(stage="finetune", elapsed_s=1)) is None
    assert run.seconds_left(Current(stage="finetune", elapsed_s=1, counted_s=8)) == 8 + 10 + 30 + 20
