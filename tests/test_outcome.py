"""The outcome in words: reasons are told where figures of the run show them, and only there."""

from typing import Any

import numpy as np
import pytest

from mmdd_ray.evaluation.metrics import METRICS
from mmdd_ray.evaluation.paired import ALL_ZERO, lack_of
from mmdd_ray.evaluation.report.differences import differences
from mmdd_ray.evaluation.report.outcome import outcomes
from mmdd_ray.evaluation.report.reasons import CHECKS
from mmdd_ray.evaluation.report.standing import EQUAL, standing
from mmdd_ray.evaluation.report.text import is_near_chance
from mmdd_ray.evaluation.spread import spread

CHANCE = {"retrieval": 0.8, "classification": 10.0}
FALLING = {"step": [0.0] * 40, "total": np.linspace(4, 1, 40).tolist()}
SPECTRUM = {"pairs": 100, "values": [1.0], "effective_rank": 20.0, "rank_90": 5}
GOOD_AUDIT = {
    "spectrum": {"set": SPECTRUM, "real": SPECTRUM},
    "saturation": {"set": 4.0, "real": 4.0, "image_px": 32},
    "map": {"variance": {"set": 0.5, "real": 0.5}},
}
GOOD_AGREEMENT = {"prompts": 100, "real": 0.4, "drawn": 0.5, "drawn_better": 70.0}
DRAWINGS, LOSSES = "how far drawn images fit their captions", "the losses of the distillation"


def report_of(
    ours: list[float], theirs: list[float], task: str = "retrieval", **changes: Any
) -> dict[str, Any]:
    """A report with these scores of students, whose other figures give no reason."""
    one = {
        "pairs": 100,
        "images": 100,
        "learning_rate": 0.1,
        "on_val": {"0.03": 1, "0.1": 2},
        "loss_curve": [4.0] * 9 + [1.0],
    }
    scores = {
        name: dict.fromkeys(METRICS[task], spread([runs]))
        for name, runs in (("edge", ours), ("random", theirs))
    }
    found = standing(scores["edge"][METRICS[task][-1]], scores["random"][METRICS[task][-1]])
    chance = {metric: {"mean": CHANCE[task], "std": 0.0, "runs": [CHANCE[task]]} for metric in METRICS[task]}
    return {
        "task": task,
        "protocol": {"published": False},
        "labels": {"edge": "EDGE"},
        "scores": scores | {"chance": chance},
        "standings": {"edge": {"random": found}},
        "differences": differences(scores),
        "sets": {"edge": dict(one), "random": dict(one)},
        "losses": FALLING,
        "refinement": {},
        "agreement": GOOD_AGREEMENT,
        "audit": GOOD_AUDIT,
    } | changes


BELOW, ABOVE, LEVEL = (
    ([6.0, 6.1, 6.2], [9.0, 9.2, 9.1]),
    ([9.0, 9.1, 9.3], [6.0, 6.2, 6.1]),
    ([6.0, 7.0, 8.0], [6.5, 7.4, 7.3]),
)


def outcome(report: dict[str, Any], ours: str = "edge") -> dict[str, Any]:
    return outcomes(report, ours)["edge"]


def test_a_bad_outcome_that_no_figure_explains_says_so_and_what_was_looked_at() -> None:
    found = outcome(report_of(*BELOW))
    assert found["title"] == "EDGE is below random real pairs here; no reason found"
    assert (found["tone"], found["reasons"], found["advice"]) == ("below", [], [])
    assert set(found["checked"]) == CHECKS.keys() - {
        "the number of images for each class"
    }  # of labelled sets


def test_a_good_outcome_has_no_reasons() -> None:
    found = outcome(report_of(*ABOVE))
    assert (found["tone"], found["title"]) == ("above", "EDGE is above random real pairs here")
    assert found["reasons"] == []


def _audit(**changes: Any) -> dict[str, Any]:
    return {"audit": GOOD_AUDIT | changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"agreement": GOOD_AGREEMENT | {"drawn": 0.31, "drawn_better": 12.0}},
            "CLIP’s cosine is 0.310 on average against 0.400, and the drawn image is the better one for only 12 %",
        ),
        (
            {"losses": {"step": [0.0] * 40, "total": [1.0, 1.2] * 20}},
            "“total” was 1.1 on average over the first 4 steps and 1.1 over the last",
        ),
        (
            {"losses": {"step": [0.0] * 40, "a": FALLING["total"], "b": [None, *FALLING["total"][::-1]]}},
            "“b” was 1.12 on average over the first 4 steps and 3.88 over the last",
        ),
        (
            {"refinement": {"step": [0.0] * 40, "total": [1.0, 1.2] * 20}},
            "“total of the refinement” was 1.1 on average",
        ),
        (
            _audit(spectrum={"set": SPECTRUM | {"effective_rank": 9.0}, "real": SPECTRUM}),
            "an effective rank of 9.0, that of the real data 20.0",
        ),
        (
            _audit(map={"variance": {"set": 0.2, "real": 0.5}}),
            "the variance of their CLIP features is 0.200, that of real images 0.500",
        ),
        (
            _audit(saturation={"set": 12.0, "real": 4.0, "image_px": 32}),
            "12.0 % of their levels are 0 or 255, and 4.0 %",
        ),
    ],
)
def test_figures_of_the_distillation_are_reasons_for_its_own_set_alone(
    changes: dict[str, Any], told: str
) -> None:
    report = report_of(*BELOW, **changes)
    found = outcome(report)
    assert found["title"].endswith("; likely reasons")
    assert len(found["reasons"]) == 1
    assert told in found["reasons"][0]
    assert outcome(report, ours="another")["reasons"] == []


def test_a_set_of_few_pairs_may_have_a_low_rank() -> None:
    few = {"set": SPECTRUM | {"pairs": 10, "effective_rank": 6.0}, "real": SPECTRUM}
    assert outcome(report_of(*BELOW, **_audit(spectrum=few)))["reasons"] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairs": 50}, "EDGE is smaller: it has 50 pairs, the other set 100."),
        (
            {"loss_curve": [4.0] * 9 + [2.0]},
            "training loss ends at 2.00 instead of 1.00, so its targets are harder",
        ),
        (
            {"loss_curve": [4.0] * 9 + [0.2]},
            "training loss ends at 0.20 instead of 1.00. They know the set by heart",
        ),
        ({"learning_rate": 0.03}, "The learning rate of EDGE, 0.03, is the smallest that was tried"),
    ],
)
def test_students_of_the_two_sets_are_compared(changes: dict[str, Any], told: str) -> None:
    report = report_of(*BELOW)
    report["sets"]["edge"] |= changes
    (reason,) = outcome(report)["reasons"]
    assert told in reason


def test_a_title_names_all_baselines_at_once() -> None:
    report = report_of(*BELOW)
    scores = report["scores"]
    names = ["random", "herding", "k-center"]
    report["scores"] = dict.fromkeys(names, scores["random"]) | {
        name: scores[name] for name in ("edge", "chance")
    }
    report["sets"] |= dict.fromkeys(names, report["sets"]["random"])
    report["standings"]["edge"] = dict.fromkeys(names, "below")
    assert outcome(report)["title"] == "EDGE is below all its baselines here; no reason found"
    report["standings"]["edge"]["herding"] = "above"
    assert outcome(report)["title"].startswith("EDGE is below random real pairs and k-center here")


def test_students_near_chance_come_first() -> None:
    all_low = outcome(report_of([0.9, 0.9, 1.0], [1.2, 1.3, 1.2]))
    assert "the best of them reach 1.2 % where chance is 0.8 %" in all_low["reasons"][0]
    one_low = outcome(report_of([0.9, 0.9, 1.0], [9.2, 9.3, 9.2]))
    assert one_low["reasons"][0].startswith("Students of EDGE stay near chance: 0.9 % where chance is 0.8 %.")


def test_a_spread_above_the_difference_tells_how_many_students_it_takes() -> None:
    report = report_of(*LEVEL)
    found = outcome(report)
    assert found["title"] == "EDGE cannot be told from random real pairs here; likely reasons"
    assert (
        "−0.1 points, and its 95 % interval reaches from −1.7 to +1.6 points over 3 paired"
        in found["reasons"][0]
    )
    assert "more than 100 students" in found["reasons"][0]
    larger = outcome(report_of([6.0, 7.0, 8.0], [6.2, 7.5, 8.7]))
    assert "About 6 students (evaluation.seeds) would tell" in larger["reasons"][0]
    published = outcome(report_of([6.0, 7.0, 8.0], [6.2, 7.5, 8.7], protocol={"published": True}))
    assert "evaluation.seeds" not in " ".join(published["reasons"])  # the protocol has a number of its own


@pytest.mark.parametrize(
    ("ours", "theirs", "title", "told"),
    [
        (
            [8.0, 9.0],
            [5.7, 6.7],
            "EDGE scores higher than random real pairs here; to keep in mind",
            "is +2.3 points over 2 paired students, which are too few to know its spread; 3 or more (evaluation.seeds)",
        ),
        (
            [5.7, 6.7, 7.7],
            [8.0, 9.0, 10.0],
            "EDGE scores lower than random real pairs here; likely reasons",
            "is −2.3 points with every one of 3 paired students: figures of few test data move in steps",
        ),
        (
            [5.0, 6.0, 9.0],
            [5.0, 6.0, 9.0],
            "EDGE cannot be told from random real pairs here; likely reasons",
            "All 3 paired students score exactly the same with EDGE and random real pairs.",
        ),
    ],
)
def test_differences_without_a_spread_get_no_interval_and_no_verdict_of_one(
    ours: list[float], theirs: list[float], title: str, told: str
) -> None:
    report = report_of(ours, theirs)
    found = outcome(report)
    assert found["title"] == title
    assert told in found["reasons"][0]
    assert not any("interval" in one or "would take" in one for one in found["reasons"])
    assert report["differences"]["edge"]["random"]["metrics"]["mean_recall"]["low"] is None


def test_the_first_line_and_the_table_of_differences_are_one_test() -> None:
    # students of one seed rise and fall together: paired they differ beyond doubt, by Welch's test they do not
    report = report_of([5.0, 9.0, 13.0], [4.0, 7.9, 12.1])
    assert report["differences"]["edge"]["random"]["metrics"]["mean_recall"]["low"] > 0
    assert report["standings"]["edge"]["random"] == "above"
    assert outcome(report)["tone"] == "above"


def test_single_students_and_missing_classes() -> None:
    single = outcome(report_of([6.0], [9.0]))
    assert single["title"] == "EDGE scores lower than random real pairs here; likely reasons"
    assert single["reasons"][0].startswith("A single student was trained on EDGE")
    report = report_of([30.0, 30.1, 30.2], [40.0, 40.2, 40.1], task="classification")
    report["sets"]["edge"]["images"] = 7
    report["sets"]["random"]["images"] = 7
    assert outcome(report)["reasons"] == [
        "EDGE has 7 images for 10 classes, so students see no image of at least 3 classes."
    ]


def test_without_an_audit_the_report_advises_one() -> None:
    found = outcome(report_of(*BELOW, audit={}))
    assert "evaluation.audit" in found["advice"][0]
    assert "the variety of the images" not in found["checked"]
    assert DRAWINGS in found["checked"]
    assert LOSSES in found["checked"]


def test_two_classes_are_learnt_where_most_answers_are_right() -> None:
    assert is_near_chance(60.0, 50.0)
    assert not is_near_chance(67.0, 50.0)
    assert not is_near_chance(100.0, 50.0)
    assert is_near_chance(0.99, 0.5)
    assert not is_near_chance(1.01, 0.5)


def test_means_that_differ_by_rounding_are_equal() -> None:
    ours, theirs = [0.1 + 0.2, 45.0], [0.3, 45.0]
    assert ours != theirs
    assert lack_of(ours, theirs) == ALL_ZERO
    assert standing(spread([ours]), spread([theirs])) == EQUAL
