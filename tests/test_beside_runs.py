"""Finished runs in one table: what is refused, what is merged, and differences against SciPy's."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmdd_ray.cli.tools import compare
from mmdd_ray.config import Classifiers, Data, Students
from mmdd_ray.engine.run_dir import SETTINGS, RunDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.beside_runs import compare_runs
from mmdd_ray.evaluation.finished_run import FinishedRun
from mmdd_ray.evaluation.metrics import METRICS, accuracy_chance, chance
from mmdd_ray.evaluation.report.build import build_report
from mmdd_ray.evaluation.report.comparison import check_out, comparison_html, comparison_table
from mmdd_ray.evaluation.report.differences import MADE_ONCE
from mmdd_ray.evaluation.report.page import write_report
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.methods.evaluate.presets import local
from mmdd_ray.methods.evaluate_labelled.presets import local as labelled_local
from mmdd_ray.methods.precompute.presets import local as precompute_local
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
RATE = 0.1
EQUAL_BUDGET = {
    "name": "equal-budget",
    "version": 1,
    "source": "us",
    "summary": "80 steps",
    "chosen": "rates",
}
EQUAL_BUDGET |= {"differs": [], "unsure": [], "published": False}
Finish = Callable[..., str]


def finish(
    folder: Path,
    sets: Mapping[str, list[float]],
    *,
    test_print: str = "test",
    prints: Mapping[str, str] | None = None,
    protocol: Mapping[str, Any] | None = None,
    published: bool = False,
    notes: Mapping[str, Sequence[str]] | None = None,
    made_by: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    best_look: float | None = None,
    pairs: int = 100,
    draws: int = 1,
    task: str = "retrieval",
    **changes: Any,
) -> str:
    """Writes a finished run of students with these figures, those of a set draw by draw."""
    settings: Any = local() if task == "retrieval" else labelled_local()
    evaluation = {"evaluation": settings.evaluation} | changes
    whole = {name: getattr(settings, name) for name in vars(settings)} | evaluation
    given = type(settings)(**whole)
    with RunDir.open(str(folder), "evaluate", "local", given) as run:
        store = run.store.child("evaluate")
        found: dict[str, Any] = {}
        for name, figures in sets.items():
            own = (prints or {}).get(name, name)
            rows = np.reshape(figures, (draws, -1))
            for draw, of_draw in enumerate(rows.tolist()):
                for seed, figure in enumerate([0.0, *of_draw]):
                    held_out, fingerprint = ("test", test_print) if seed else ("val", "val")
                    student = {"set": name, "learning_rate": RATE, "seed": seed, "held_out": held_out}
                    student |= {"draw": draw, "inputs": [f"{own}{draw}", fingerprint, *made_by]}
                    student["seconds"] = 1.0
                    student["metrics"] = dict.fromkeys(METRICS[task], figure)
                    store.write_json(f"students/{name}-draw{draw}-seed{seed}.json", student)
            # of an earlier choice of the rate: no part of the report
            store.write_json(f"students/{name}-old.json", student | {"learning_rate": 0.03, "metrics": {}})
            found[name] = {"draws": draws, "learning_rate": RATE, "on_val": {"0.1": 0.0}, "loss_curve": [1.0]}
            found[name] |= {"pairs": pairs, "images": 50, "bytes": 3000, "seconds": 2.0, "steps": 80}
            found[name] |= {"images_seen": 4000, "best_look": None, "looks": []}
            found[name]["metrics"] = dict.fromkeys(METRICS[task], spread(rows.tolist()))
            if best_look is not None:
                found[name]["best_look"] = dict.fromkeys(METRICS[task], spread([[best_look]]))
        by_chance = chance(50, 1) if task == "retrieval" else accuracy_chance(48)
        of_protocol = EQUAL_BUDGET | (protocol or {})
        panel = {
            "protocol": of_protocol,
            "models": "tiny-nf + tiny-bert at 32 px",
            "folder": "students",
            "notes": notes or {},
        }
        result = {"task": task, **panel, "sets": found, "chance": by_chance, "others": []}
        if published:
            theirs = {
                "protocol": of_protocol | {"name": "lors", "published": True},
                "folder": "students-lors",
            }
            result["others"] = [result | theirs, result | theirs | {"models": "other + tiny-bert at 32 px"}]
            for file in store.files("students"):
                store.write_bytes(f"students-lors/{file.rpartition('/')[2]}", store.read_bytes(file))
        run.stage("evaluate", lambda stage: StageResult(rows_in=1, rows_out=1, outputs=[]))
        report = build_report(run.store, result, labels=labels)
        write_report(report, run.store)
    return str(folder)


def test_a_table_has_all_sets_and_baselines_that_are_the_same_once(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0], "random": [6.0, 7.0], "herding": [5.0, 6.0]})
    other = finish(
        tmp_path / "b",
        {"covmatch": [12.0, 10.0], "random": [6.0, 7.0], "herding": [5.0, 6.5]},
        labels={"covmatch": "CovMatch"},
    )
    found = compare_runs([one, other])
    (table,) = found["tables"]
    rows = {row["label"]: row for row in table["sets"]}
    assert list(rows) == ["edge", "CovMatch", "Random real data", "Herding (a)", "Herding (b)"]
    assert rows["Random real data"]["runs"] == ["a", "b"]
    assert [rows[name]["distilled"] for name in rows] == [True, True, False, False, False]
    assert {row["images_seen"] for row in rows.values()} == {4000}
    assert rows["edge"]["scores"]["mean_recall"]["mean"] == 10.0
    assert found["notes"] == [MADE_ONCE.format(sets="edge and CovMatch", were="were")]
    text, page = comparison_table(found), comparison_html(found)
    assert "edge − CovMatch  −1.0  (–, too few), 2 students" in text
    assert max(map(len, text.splitlines())) <= 80 + len(str(tmp_path))
    assert "10.0 ± 1.4" in text
    assert "10.0 ± 1.4" in page
    assert "<td>edge − CovMatch</td><td>−1.0</td>" in page
    assert "--paper:" in page
    assert "<script" not in page
    json.dumps(found, allow_nan=False)


def test_scores_stand_against_time_where_the_times_of_two_sets_are_known(tmp_path: Path) -> None:
    runs = []
    for name, seconds in (("edge", 60.0), ("covmatch", 3600.0)):
        runs.append(finish(tmp_path / name, {name: [9.0, 11.0], "random": [6.0, 7.0]}))
        store = Store(runs[-1])
        times = {"seconds_of_sets": {name: seconds}}
        store.write_json("report.json", store.read_json("report.json") | times)
    found = compare_runs(runs)
    sets = {one["label"]: one["making_seconds"] for one in found["tables"][0]["sets"]}
    assert sets == {"edge": 60.0, "covmatch": 3600.0, "Random real data": None}
    told = "mean recall against the time to make a set: edge, covmatch"
    assert f'role="img" aria-label="{told}"' in comparison_html(found)
    herding = found["tables"][0]["sets"][2] | {"label": "Herding", "set": "herding"}
    found["tables"][0]["sets"].append(herding | {"untimed": "the run was resumed in the stage coresets"})
    told_why = (
        "Herding is not shown: its time is not known, because the run was resumed in the stage coresets."
    )
    assert told_why in comparison_html(found)
    found["tables"][0]["sets"][0]["making_seconds"] = None
    assert told not in comparison_html(found)


def test_classifiers_stand_in_a_table_of_their_accuracy(tmp_path: Path) -> None:
    one = finish(
        tmp_path / "a", {"vlcp": [30.0, 34.0, 32.0], "prompts": [20.0, 21.0, 22.0]}, task="classification"
    )
    other = finish(tmp_path / "b", {"chosen": [31.0, 33.0, 32.0]}, task="classification")
    found = compare_runs([one, other])
    rows = found["tables"][0]["sets"]
    assert [row["label"] for row in rows] == ["vlcp", "chosen", "Class names as prompts"]
    assert "vlcp − chosen  +0.0  (−2.5 to +2.5), 3 students" in comparison_table(found)
    assert "<h2>Accuracy on the test images, protocol equal-budget</h2>" in comparison_html(found)


def test_the_same_name_and_figures_of_another_set_are_two_sets(tmp_path: Path) -> None:
    sets = {"edge": [9.0, 11.0], "random": [6.0, 7.0]}
    one = finish(tmp_path / "a" / "run", sets)
    other = finish(tmp_path / "b" / "run", sets, prints={"random": "of other data"})
    labels = [row["label"] for row in compare_runs([one, other])["tables"][0]["sets"]]
    assert labels == ["edge (a)", "edge (b)", "Random real data (a)", "Random real data (b)"]


def test_differences_are_those_of_scipy(tmp_path: Path) -> None:
    ours, theirs = np.random.default_rng(0).normal(10, 2, (2, 5)).tolist()
    uris = [finish(tmp_path / "a", {"edge": ours}), finish(tmp_path / "b", {"covmatch": theirs})]
    ((difference,),) = (table["differences"] for table in compare_runs(uris)["tables"])
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    for score in difference["metrics"].values():
        np.testing.assert_allclose([score["low"], score["high"]], [low, high])
        np.testing.assert_allclose(score["mean"], np.mean(ours) - np.mean(theirs))
    assert difference["count"] == 5


def test_sets_are_compared_with_the_small_baselines_of_their_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    random, full = rng.normal(6, 1, (2, 4)).tolist()
    edge, covmatch, herding = rng.normal(9, 1, (3, 4)).tolist()
    one = finish(tmp_path / "a", {"edge": edge, "random": random, "full": full})
    other = finish(tmp_path / "b", {"covmatch": covmatch, "random": random, "herding": herding})
    (table,) = compare_runs([one, other])["tables"]
    found = {(one["ours"], one["theirs"]): one["metrics"]["mean_recall"] for one in table["differences"]}
    expected = {
        ("edge", "covmatch"): (edge, covmatch),
        ("edge", "Random real data"): (edge, random),
        ("covmatch", "Random real data"): (covmatch, random),
        ("covmatch", "Herding"): (covmatch, herding),
    }
    assert list(found) == list(expected)
    for sets, (ours, theirs) in expected.items():
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        np.testing.assert_allclose([found[sets]["low"], found[sets]["high"]], interval)


def test_of_several_draws_the_means_are_compared(tmp_path: Path) -> None:
    draws = [8.0, 10.0, 12.0, 10.0, 13.0, 17.0, 9.0, 9.0, 15.0]
    one = finish(tmp_path / "a", {"edge": draws}, draws=3)
    other = finish(tmp_path / "b", {"covmatch": [7.0, 8.0, 9.0, 99.0]})
    found = compare_runs([one, other])
    ((difference,),) = (table["differences"] for table in found["tables"])
    test = stats.ttest_ind(
        [10.0, 40 / 3, 11.0], [7.0, 8.0, 9.0], equal_var=False
    )  # of the seeds that both have
    expected = test.confidence_interval(0.95)
    score = difference["metrics"]["mean_recall"]
    np.testing.assert_allclose([score["low"], score["high"]], expected)
    assert (difference["over"], difference["count"]) == ("draws", 3)
    assert found["notes"][-1] == MADE_ONCE.format(sets="covmatch", were="was")


def test_a_single_student_has_no_interval(tmp_path: Path) -> None:
    uris = [finish(tmp_path / "a", {"edge": [9.0]}), finish(tmp_path / "b", {"covmatch": [7.0]})]
    found = compare_runs(uris)
    score = found["tables"][0]["differences"][0]["metrics"]["mean_recall"]
    assert score == {"mean": 2.0, "low": None, "high": None, "lack": "too few"}
    assert "edge − covmatch  +2.0  (–, too few), 1 student" in comparison_table(found)


def test_runs_that_have_the_same_distilled_set_are_told_so(tmp_path: Path) -> None:
    sets, prints = {"edge": [9.0, 11.0, 10.0]}, {"edge": "one set"}
    uris = [finish(tmp_path / name, sets, prints=prints) for name in "ab"]
    uris.append(finish(tmp_path / "c", {"covmatch": [7.0, 9.5, 8.0]}))
    found = compare_runs(uris)
    assert found["notes"][0] == "edge (a) and edge (b) are the same set, for they have the very same pairs."
    first, second, _ = found["tables"][0]["differences"]
    assert first["metrics"]["mean_recall"] == {"mean": 0.0, "low": None, "high": None, "lack": "same set"}
    assert second["metrics"]["mean_recall"]["low"] is not None
    assert "edge (a) − edge (b)  the same set" in comparison_table(found)
    assert "<td>edge (a) − edge (b)</td><td>+0.0</td>" in comparison_html(found)
    assert found["notes"][0] in comparison_html(found)


def test_no_set_is_the_best_where_numbers_of_students_differ(tmp_path: Path) -> None:
    one = finish(tmp_path / "a-run-with-a-long-name", {"edge": [7.0, 6.6, 7.7]})
    other = finish(tmp_path / "b", {"covmatch": [7.6]})
    found = compare_runs([one, other])
    assert found["notes"][:1] == [
        "The runs have different numbers of students of a set (3 in a-run-with-a-long-name, 1 in b), so their means "
        "are not equally certain, and none is marked as the best."
    ]
    page = comparison_html(found)
    assert "<b>" not in page
    assert "in bold" not in page
    alike = compare_runs([one, finish(tmp_path / "c", {"covmatch": [9.0, 8.9, 9.3]})])
    assert "<b>9.1 ± 0.2</b>" in comparison_html(alike)
    names = [line.index(str(tmp_path)) for line in comparison_table(found).splitlines()[:2]]
    assert names[0] == names[1]  # folders stand below each other


def test_an_unfinished_run_is_gone_on_with_by_the_command_that_began_it(tmp_path: Path) -> None:
    good = finish(tmp_path / "good", {"edge": [9.0, 11.0]})
    with RunDir.open(str(tmp_path / "begun"), "evaluate", "local", local()) as run:
        run.store.write_json("status.json", {"command": "mmdd evaluate --run.dir begun --evaluation.seeds 2"})
    with pytest.raises(
        UserError, match=r"go on with `mmdd evaluate --run\.dir begun --evaluation\.seeds 2`$"
    ):
        compare_runs([good, str(tmp_path / "begun")])
    (tmp_path / "begun" / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"go on with `python jobs/evaluate\.py local --run\.dir"):
        compare_runs([good, str(tmp_path / "begun")])


def test_a_folder_with_other_files_is_refused_and_an_earlier_comparison_replaced(tmp_path: Path) -> None:
    check_out(Store(str(tmp_path / "new")))
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        UserError, match=r"is not empty, it has thesis\.tex and no comparison\.json; name a new"
    ):
        compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path)])
    (tmp_path / "comparison.json").write_text("{}")
    check_out(Store(str(tmp_path)))


def test_single_students_are_called_so(tmp_path: Path) -> None:
    uris = [finish(tmp_path / "a", {"edge": [9.0]}), finish(tmp_path / "b", {"covmatch": [7.0]})]
    found = compare_runs(uris)
    for text in (comparison_table(found), comparison_html(found)):
        assert "ercent, of one student for each set" in text
        assert "standard deviation" not in text


def test_students_of_other_seeds_are_not_paired_and_the_page_says_so(tmp_path: Path) -> None:
    settings = local()
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    run = type(settings.run)(seed=7)
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0], "vlcp": [8.0, 12.0]}, run=run)
    found = compare_runs([one, other])
    (table,) = found["tables"]
    assert [(one["ours"], one["theirs"]) for one in table["differences"]] == [("covmatch", "vlcp")]
    assert "run.seed is 0 in a, 7 in b: students of runs with different seeds" in comparison_html(found)


def test_each_protocol_has_a_table_of_its_own(tmp_path: Path) -> None:
    uris = [
        finish(tmp_path / "a", {"edge": [9.0, 11.0]}),
        finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, protocol={"version": 1}),
        finish(
            tmp_path / "c",
            {"vlcp": [9.0, 12.0]},
            protocol={"name": "panel", "version": 1},
            students=Students(steps=7),
            test_print="of other size",
        ),
    ]
    found = compare_runs(uris)
    assert [table["runs"] for table in found["tables"]] == [["a", "b"], ["c"]]
    assert [len(table["differences"]) for table in found["tables"]] == [1, 0]
    told = "Each protocol has a table of its own (equal-budget, panel): figures"
    assert told in " ".join(comparison_table(found).split())


def test_students_of_another_teacher_or_version_are_refused(tmp_path: Path) -> None:
    uris = [
        finish(tmp_path / name, {"edge": [9.0, 11.0]}, made_by=["soft-label 1", checksum])
        for name, checksum in (("a", "sha256:1"), ("b", "sha256:2"))
    ]
    with pytest.raises(
        UserError, match=r"the protocol's version or its teacher is soft-label 1, sha256:1 in"
    ):
        compare_runs(uris)


def test_a_teacher_counts_where_classifiers_learn_from_it_alone() -> None:
    def judged(protocol: dict[str, Any], teacher: str | None) -> dict[str, Any]:
        classifiers = asdict(Classifiers(teacher=teacher))
        report = {"task": "classification", "settings": {"classifiers": classifiers}, "protocol": protocol}
        return dict(FinishedRun("a", "a", report, {}, {}).judged)

    for published in (False, True):  # whose students have its checksum beside them
        protocol = {"name": "hard-label", "version": 1, "published": published}
        assert judged(protocol, "t.pth") == judged(protocol, None)


def test_best_looks_stand_apart_and_are_called_so(tmp_path: Path) -> None:
    published = {"name": "lors", "published": True, "chosen": "published learning rates"}
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]}, protocol=published, best_look=12.5)
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, protocol=published)
    found = compare_runs([one, other])
    text, page = comparison_table(found), comparison_html(found)
    assert "published learning rates\nbest look: mean recall at each student's best test, chosen on" in text
    assert "12.5" in text
    assert "<th>mean recall, best look</th>" in page
    assert "<td>12.5</td>" in page
    assert "Published learning rates. Best look: each student’s" in " ".join(page.split())
    plain = compare_runs([finish(tmp_path / "c", {"edge": [9.0]}), finish(tmp_path / "d", {"vlcp": [9.0]})])
    assert "best look" not in comparison_table(plain) + comparison_html(plain)


def test_sets_of_other_sizes_and_runs_of_other_versions_are_told(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, pairs=2000)
    alike = compare_runs([one, other])["notes"]
    assert "The sets differ in size, so they are no fair comparison: edge 100, covmatch 2,000 pairs." in alike
    assert not any("versions of mmdd-ray" in note for note in alike)
    store = Store(other)
    report = store.read_json("report.json")
    for versions, said in (("0.0.1", "0.0.1"), (["0.0.1", "0.0.2"], "0.0.1 and 0.0.2")):
        report["versions"]["mmdd-ray"] = versions
        store.write_json("report.json", report)
        told = [note for note in compare_runs([one, other])["notes"] if "versions of mmdd-ray" in note]
        assert [note.partition(" in a, ")[2] for note in told] == [
            f"{said} in b; its changelog says what these do differently."
        ]


def test_what_was_noted_of_a_set_is_said_beside_runs_too(tmp_path: Path) -> None:
    learnt = {"edge": ["its students had the learning rates that were learnt with it: 0.2 and 0.3"]}
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]}, notes=learnt)
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]})
    assert f"edge: {learnt['edge'][0]}." in compare_runs([one, other])["notes"]


def test_a_run_named_by_a_link_is_named_twice(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    (tmp_path / "link").symlink_to(one)
    for again in (str(tmp_path / "link"), f"{tmp_path}/b/../a", f"file://{one}/"):
        with pytest.raises(UserError, match=r"/a is named twice; name each run once"):
            compare_runs([one, again])


def test_a_run_with_several_protocols_stands_in_the_table_of_each(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]}, published=True)
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, students=Students(steps=7), published=True)
    with pytest.raises(UserError, match=r"students\.steps is 80 in"):  # under our own protocol
        compare_runs([one, other])
    again = finish(tmp_path / "c", {"vlcp": [9.0, 12.0]}, published=True)
    found = compare_runs([one, again])
    tables = [
        (table["protocol"]["name"], [row["label"] for row in table["sets"]]) for table in found["tables"]
    ]
    assert tables == [("equal-budget", ["edge", "vlcp"]), ("lors", ["edge", "vlcp"])]
    alone = finish(tmp_path / "d", {"covmatch": [9.0, 12.0]}, protocol={"name": "lors", "published": True})
    assert [table["runs"] for table in compare_runs([one, alone])["tables"]] == [["a"], ["a", "d"]]


def test_looks_on_the_way_change_no_figure_and_refuse_nothing(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, students=Students(looks=8))
    assert len(compare_runs([one, other])["tables"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": Students(steps=60)}, r"students\.steps is 80 in \S+/a, but 60 in \S+/b, so their"),
        (
            {"students": Students(learning_rates=(0.1,))},
            r"students\.learning_rates is 0\.03, 0\.1 in \S+, but 0\.1 in",
        ),
        ({"test_print": "other"}, r"fingerprint of evaluation\.test=shapes:\S+ is test in \S+, but other in"),
    ],
)
def test_students_that_were_made_or_tested_otherwise_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    with pytest.raises(UserError, match=message):
        compare_runs([one, finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, **changes)])


def test_other_test_data_and_tasks_are_named_by_their_setting(tmp_path: Path) -> None:
    evaluation = local().evaluation
    smaller = type(evaluation)(val=evaluation.val, test=evaluation.test, max_pairs=9)
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, evaluation=smaller, test_print="fewer")
    with pytest.raises(UserError, match=r"evaluation\.max_pairs is 1000 in \S+/a, but 9 in \S+/b"):
        compare_runs([one, other])
    labelled = finish(tmp_path / "c", {"vlcp": [9.0, 12.0]}, task="classification")
    with pytest.raises(UserError, match=r"the task is retrieval in .*, but classification in"):
        compare_runs([one, labelled])


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    good = finish(tmp_path / "good", {"edge": [9.0, 11.0]})

    def refused(name: str) -> str:
        with pytest.raises(UserError) as error:
            compare_runs([good, str(tmp_path / name)])
        return str(error.value)

    with pytest.raises(UserError, match="name at least two run directories"):
        compare_runs([good])
    with pytest.raises(UserError, match="is named twice"):
        compare_runs([good, f"{tmp_path}/good"])
    assert f"{tmp_path}/nothing is no run directory, as it has no settings.json" in refused("nothing")
    Store(str(tmp_path / "foreign")).write_json(SETTINGS, {"theme": "dark"})
    assert "settings.json is no run's" in refused("foreign")
    with RunDir.open(str(tmp_path / "begun"), "evaluate", "local", local()):
        pass
    assert (
        "is not finished, as it has no report.json; go on with `python jobs/evaluate.py local --run.dir "
        in (refused("begun"))
    )
    with RunDir.open(str(tmp_path / "moments"), "precompute", "local", precompute_local()):
        pass
    assert "is a run of the job precompute, which trains no students" in refused("moments")
    old = json.loads((tmp_path / "begun" / SETTINGS).read_text())
    Store(str(tmp_path / "old")).write_json(SETTINGS, old | {"layout": 1})
    assert "another version of mmdd-ray, with the layout 1 where" in refused("old")


def test_a_run_whose_students_are_not_those_of_its_report_is_refused(tmp_path: Path) -> None:
    good = finish(tmp_path / "good", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "other", {"covmatch": [9.0, 11.0]})
    students = Store(other).child("evaluate/students")
    whole = students.read_json("covmatch-draw0-seed1.json")
    students.write_json("covmatch-draw0-seed1.json", whole | {"metrics": {"mean_recall": 8.0}})
    with pytest.raises(UserError, match=r"has other figures of the set covmatch than report\.json"):
        compare_runs([good, other])
    students.remove("covmatch-draw0-seed1.json")
    with pytest.raises(
        UserError, match=r"lacks the student of the set covmatch with the draw and seed \(0, 1\)"
    ):
        compare_runs([good, other])
    settings = Store(other).read_json(SETTINGS)
    settings["settings"]["evaluation"]["draws"] = 2
    Store(other).write_json(SETTINGS, settings)
    with pytest.raises(UserError, match=r"its settings were extended after its report\.json was written"):
        compare_runs([good, other])
    (tmp_path / "other" / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report\.json is damaged"):
        compare_runs([good, other])


def test_the_job_writes_both_files_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]}, data=Data(uri="shapes:20?seed=9"))
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['jobs/compare.py', {one!r}, {other!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "try:\n"
        "    runpy.run_path('jobs/compare.py', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "edge − covmatch  −0.5" in shown.stdout
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["task"] == "retrieval"
    assert (tmp_path / "out" / "comparison.html").read_text().startswith("<!doctype html>")


def test_a_run_in_an_object_store_is_read(tmp_path: Path, s3_server: str) -> None:
    import fsspec

    one = finish(tmp_path / "a", {"edge": [9.0, 11.0]})
    other = finish(tmp_path / "b", {"covmatch": [9.0, 12.0]})
    fsspec.filesystem("s3").mkdir("compared")
    Store("s3://compared").upload_folder(Path(other), "b")
    found = compare_runs([one, "s3://compared/b"])
    assert found["runs"]["b"]["dir"] == "s3://compared/b"
    assert len(found["tables"][0]["differences"]) == 1
