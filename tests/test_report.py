"""The report: its schema, what it says about known figures, and that captions stay text."""
# over 400 lines: nearly all of its tests read the report of one run

import json
import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data import shapes
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.run_dir import RunDir, StageResult
from mmdd_ray.evaluation.metrics import METRICS as METRICS_OF
from mmdd_ray.evaluation.report import charts
from mmdd_ray.evaluation.report.beside import Beside
from mmdd_ray.evaluation.report.build import build_report
from mmdd_ray.evaluation.report.layout import TERMINAL_COLUMNS
from mmdd_ray.evaluation.report.page import report_html, write_report
from mmdd_ray.evaluation.report.page_charts import report_charts
from mmdd_ray.evaluation.report.panels import across_students, of_other_protocols
from mmdd_ray.evaluation.report.stages import untimed_sets
from mmdd_ray.evaluation.report.standing import sentence, standing
from mmdd_ray.evaluation.report.table import summary_table
from mmdd_ray.evaluation.report.text import best_scores, headline, tiles, verdict
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.storage.store import Store

METRICS = METRICS_OF["retrieval"]
HOSTILE = "</figcaption><script>alert('1')</script><img src=x onerror=alert(2)> & {{ 7 * 7 }}"


def _metrics(*runs: float) -> dict[str, Any]:
    mean = sum(runs) / max(len(runs), 1)
    std = (sum((run - mean) ** 2 for run in runs) / max(len(runs) - 1, 1)) ** 0.5
    return {metric: {"mean": mean, "std": std, "runs": list(runs)} for metric in METRICS}


def _set(pairs: int, *runs: float) -> dict[str, Any]:
    return {
        "learning_rate": 0.03,
        "on_val": {"0.03": 1.0},
        "metrics": _metrics(*runs),
        "best_look": None,
        "looks": [],
        "steps": 80,
        "images_seen": 5120,
        "loss_curve": [4.0, 2.0, None],
        "pairs": pairs,
        "images": pairs // 2,
        "bytes": 3_500,
        "seconds": 2.0,
    }


PANEL = {
    "protocol": {
        "name": "equal-budget",
        "version": 1,
        "source": "mmdd-ray",
        "summary": "80 steps",
        "chosen": "learning rate of each set by its figures on validation data",
        "differs": [],
        "unsure": [],
        "published": False,
    },
    "models": "tiny-nf + tiny-bert at 32 px",
    "folder": "students",
    "notes": {},
}
EVALUATION = {  # sets in another order than the report's
    "task": "retrieval",
    **PANEL,
    "others": [],
    "sets": {
        "full": _set(4000, 40.0, 44.0, 42.0),
        "random": _set(100, 11.0, 9.0, 10.0),
        "edge": _set(100, 12.0, 15.0, 13.5),
        "k-center": _set(100, 13.9, 13.9, 13.9),
    },
    "chance": dict.fromkeys(METRICS, 0.75),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A finished run of two stages with a distilled set of 3 images and 7 pairs."""
    folder = tmp_path_factory.mktemp("run") / "it"
    settings = Edge(
        data=Data(uri="s3://user:secret@bucket/*.tar"),
        evaluation=Evaluation(val="shapes:10", test="shapes:10"),
    )
    drawn = list(shapes.pairs(0, 3, seed=1))
    samples = [
        Sample(
            key=f"edge-{i}",
            image=pair["image"],
            captions=(HOSTILE, *pair["captions"][: i % 2], "another"),
            seed=i,
            source_key=pair["key"],
        )
        for i, pair in enumerate(drawn)
    ]
    with RunDir.open(str(folder), "edge", "local", settings) as open_run:
        open_run.devices = {"cpus": 2.0, "gpus": 0.0}
        open_run.stage(
            "features", lambda _: StageResult(rows_in=12, rows_out=9, rejects={"blank caption": 3})
        )
        open_run.stage(
            "synthesis", lambda _: StageResult(rows_in=9, rows_out=3, rejects={"blank caption": 1, "late": 9})
        )
        write_distilled(
            samples, open_run.store.child("distilled"), method="EDGE", settings={}, seed=0, inputs={}
        )
        yield open_run.store


def test_scores_beyond_retrieval_are_a_table_of_their_own_where_there_are_any(run: Store) -> None:
    extra = {"zero-shot/top-1": 2.5, "compositional/swap_att": 50.0, "compositional": 50.0}
    sets = {
        name: one
        | {"metrics": one["metrics"] | {metric: spread([[20.0 + place, 24.0 + place]]) for metric in extra}}
        for place, (name, one) in enumerate(EVALUATION["sets"].items())
    }
    found = EVALUATION | {"sets": sets, "chance": EVALUATION["chance"] | extra}
    plain, report = build_report(run, EVALUATION), build_report(run, found)
    assert (report["scores"], report["standings"]) == (plain["scores"], plain["standings"])
    assert list(report["extra_scores"]) == list(report["scores"])
    assert report["extra_scores"]["edge"]["zero-shot/top-1"]["mean"] == 24.0
    assert report["extra_scores"]["chance"]["compositional"]["mean"] == 50.0
    lines = summary_table(report).splitlines()
    at = lines.index("Beyond retrieval: accuracy in percent")
    assert lines[at + 2].split() == list(report["scores"])
    assert lines[at + 3].split("  ")[0] == "zero-shot Top-1"
    assert lines[at + 4].startswith("compositional swap att ")
    page = report_html(report, run)
    table = page[page.index("<h2>Beyond retrieval</h2>") :].partition("</table>")[0]
    assert re.findall("<th>(.*?)</th>", table)[1:] == [
        "Zero-shot top-1",
        "Compositional swap att",
        "Compositional",
    ]
    assert re.findall("<b>(.*?)</b>", table) == ["25.0 ± 2.8"]  # the others are below chance
    assert plain["extra_scores"] == {}
    assert "Beyond retrieval" not in summary_table(plain) + report_html(plain, run)


def test_images_in_common_are_named_in_readable_lines(run: Store) -> None:
    keys = [f"{'a long folder ' * 3}/<b>{number:06d}" for number in range(12)]
    test = {"images": 50, "of_images": 50, "rows": 50, "repeated": 0}
    test |= {"common": {"training": 12}, "common_keys": {"training": keys}}
    drawn = {
        "images": 5,
        "of_images": 9,
        "rows": 5,
        "repeated": 0,
        "drawn": "drawn by their names",
        "common": {},
    }
    report = build_report(run, EVALUATION | {"held_out": {"test": test, "compositional": drawn}})
    assert report["held_out"]["test"]["common_keys"]["training"] == keys
    said = f"test: 12 of 50 images are also training images, byte for byte: {', '.join(keys[:10])} and 2 more"
    lines = summary_table(report).splitlines()
    own = lines[next(n for n, line in enumerate(lines) if line.startswith("held out")) :]
    assert max(map(len, own)) <= TERMINAL_COLUMNS
    assert said in " ".join(" ".join(own).split())
    assert "held out     compositional: 5 of 9 images, drawn by their names" in own
    page = report_html(report, run)
    assert f"Held out: {escape(said)}." in page
    assert "Held out: compositional: 5 of 9 images, drawn by their names." in page


def test_report_json_has_the_promised_schema(run: Store) -> None:
    losses = {"step": [0.0, 1.0], "contrastive": [3.0, float("nan")]}
    quality = {"alignment": {"before": 0.2, "after": 0.3}}
    command = "python jobs/edge.py --data.uri https://me:pass@host/x"
    report = build_report(run, EVALUATION, losses=losses, quality=quality, command=command)
    write_report(report, run)
    text = run.read_bytes("report.json").decode()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == report
    assert list(read["scores"]) == ["edge", "random", "k-center", "full", "chance"]
    assert all(tuple(one) == METRICS for one in read["scores"].values())
    assert read["scores"]["edge"]["tr@5"] == {
        "mean": 13.5,
        "std": pytest.approx(1.5),
        "runs": [12.0, 15.0, 13.5],
    }
    assert read["scores"]["chance"]["ir@1"] == {"mean": 0.75, "std": 0.0, "runs": [0.75]}
    assert list(read["stages"]) == ["features", "synthesis"]
    assert set(read["stages"]["features"]) == {
        "rows_in",
        "rows_out",
        "seconds",
        "resumed",
        "planned_seconds",
        "peak_bytes",
        "planned_peak_bytes",
        "gpu_hours",
        "planned_gpu_hours",
    }
    assert read["real_images"] == 9
    assert (read["stages"]["features"]["rows_in"], read["stages"]["synthesis"]["rows_out"]) == (12, 3)
    assert read["seconds"] == pytest.approx(sum(stage["seconds"] for stage in read["stages"].values()))
    assert read["rejects"] == {"late": 9, "blank caption": 4}
    assert (read["distilled"]["images"], read["distilled"]["pairs"]) == (3, 7)
    assert read["distilled"]["checksum"] == run.read_json("distilled/manifest.json")["checksum"]
    assert (read["method"], read["preset"], read["devices"]) == ("EDGE", "local", {"cpus": 2.0, "gpus": 0.0})
    assert read["sets"]["full"]["learning_rate"] == 0.03
    assert read["losses"] == {"step": [0.0, 1.0], "contrastive": [3.0, None]}
    assert "secret" not in text
    assert "pass@" not in text


class _Page(HTMLParser):
    """Tags with their attributes, and the text by the tag it is in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data.strip()))


def test_page_is_whole_needs_no_network_and_shows_captions_as_text(run: Store) -> None:
    losses = {"step": [0.0, 1.0], "contrastive": [3.0, 2.0], "diversity": [0.5, 0.4]}
    quality = {"alignment": {"before": 0.2, "after": 0.3}}
    report = build_report(run, EVALUATION, losses=losses, quality=quality, command=HOSTILE)
    page = _Page(report_html(report, run))
    assert page.open == []
    assert "script" not in dict(page.tags)
    assert page.text.count(("li", HOSTILE)) == 3
    assert page.text.count(("pre", HOSTILE)) == 1
    links = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert len(links) >= 4
    assert all((link or "").startswith("data:image/png;base64,") for link in links if link and link[0] != "#")
    ids = Counter(found["id"] for _, found in page.tags if "id" in found)
    assert all(count == 1 for count in ids.values())
    assert sum(tag == "svg" and found.get("role") == "img" for tag, found in page.tags) == 5
    assert [text for tag, text in page.text if tag == "td" and text in ("Alignment", "0.2", "0.3")] == [
        "Alignment",
        "0.2",
        "0.3",
    ]


def test_table_prints_the_best_small_set_in_bold_and_never_the_full_data(run: Store) -> None:
    page = _Page(report_html(build_report(run, EVALUATION), run))
    bold = [text for tag, text in page.text if tag == "b" and "±" in text]
    assert bold == ["13.9 ± 0.0"] * len(METRICS)
    assert ("td", "42.0 ± 2.0") in page.text


@pytest.mark.parametrize(
    ("edge", "random", "bold"),
    [
        ([9.0, 9.4, 9.2], [6.0, 6.1, 6.3], 9.2),
        ([9.01, 9.0, 9.02], [9.0, 9.01, 9.0], None),  # all show 9.0
        ([0.5, 1.6, 0.9], [0.7, 0.6, 0.8], None),  # 0.75 is chance
        ([1.4, 1.45], [0.7, 0.8], None),  # too few to tell it from chance
        ([1.6, 1.7], [0.7, 0.8], 1.65),
        ([9.0, 9.4, 9.2], [6.0], None),  # the luck of one student is larger than that of three
    ],
)
def test_the_best_is_bold_only_where_that_says_something(
    edge: list[float], random: list[float], bold: float | None
) -> None:
    scores = {"edge": _metrics(*edge), "random": _metrics(*random), "full": _metrics(20.0)}
    found = best_scores(scores | {"chance": _metrics(0.75)})
    assert found == ({} if bold is None else dict.fromkeys(METRICS, pytest.approx(bold)))


@pytest.mark.parametrize(
    ("random", "doubt"),
    [
        ((11.0, 9.0, 10.0), "not distinguishable"),
        ((9.0, 11.1, 9.9), ""),
        ((9.0, 12.0, 10.5), "spread not known"),
    ],
)
def test_a_ratio_that_is_no_finding_is_muted(
    run: Store, random: tuple[float, float, float], doubt: str
) -> None:
    sets = EVALUATION["sets"] | {"random": _set(100, *random)}
    report = build_report(run, EVALUATION | {"sets": sets})
    tile = tiles(report)[1]
    assert (tile.what, tile.doubt) == ("the recall of random pairs", doubt)
    told = f'<div class="tile unsure"><b>{tile.value}</b><span>{tile.what}; <em>{doubt}</em>'
    assert (told in report_html(report, run)) == bool(doubt)


def test_figures_of_one_student_are_called_so(run: Store) -> None:
    sets = {"edge": _set(100, 12.0), "random": _set(100, 10.0)}
    report = build_report(run, EVALUATION | {"sets": sets})
    assert "recall in percent, of one student" in summary_table(report).splitlines()
    page = report_html(report, run)
    assert "Percent, of one student for each set" in page
    assert "mean ± standard deviation" not in page
    assert "mean ± standard deviation" in report_html(build_report(run, EVALUATION), run)


def test_the_recall_of_captions_is_not_called_like_that_of_students(run: Store) -> None:
    quality = {"alignment": {"set": 0.66}, "recall": {"set": 100.0}}
    page = _Page(report_html(build_report(run, EVALUATION, quality=quality), run))
    cells = [text for tag, text in page.text if tag == "td"]
    assert "Captions that find their own image, by CLIP, %" in cells
    assert "Alignment" in cells
    assert "Recall" not in cells


def test_a_chart_against_time_names_the_sets_without_one_and_is_left_out_where_ours_has_none(
    run: Store,
) -> None:
    def stage(took: float, resumed: bool = False, **extra: Any) -> dict[str, Any]:
        return {"seconds": took, "resumed": resumed, "extra": extra}

    stages = {
        "features": stage(30.0),
        "coresets": stage(2.0, seconds={"herding": 1.0}),
        "synthesize": stage(9.0),
    }
    names = ["edge", "random", "herding", "k-center", "full"]
    assert untimed_sets(stages, "edge", names) == {"k-center": "the run did not measure it"}
    resumed = stages | {"synthesize": stage(9.0, resumed=True)}
    why = "the run was resumed in the stage synthesize"
    assert untimed_sets(resumed, "edge", names[:3]) == {"edge": why}
    report = build_report(run, EVALUATION)
    assert "by_seconds" in report_charts(report)
    assert "k-center is not shown: its time is not known, because the run did not" in report_html(report, run)
    lost = report | {"seconds_of_sets": {"k-center": 37.6}, "untimed_sets": {"edge": why}}
    assert "by_seconds" not in report_charts(lost)


def test_time_begins_at_zero() -> None:
    chart = charts.against_seconds({"a": (37.6, 5.0, 0.1), "b": (37.9, 6.0, 0.1)}, {"c": 4.0}, "recall, %")
    assert chart.figure.axes[0].get_xlim()[0] == 0


def _after_verdict(report: dict[str, Any]) -> list[str]:
    lines = summary_table(report).splitlines()
    return lines[lines.index("") + 1 :]


def test_a_table_of_all_baselines_fits_a_terminal_in_two_parts(run: Store) -> None:
    names = ("edge", "random", "herding", "k-center", "clip-score", "full")
    sets = {name: _set(100, 10.0 + place, 12.0 + place) for place, name in enumerate(names)}
    lines = _after_verdict(build_report(run, EVALUATION | {"sets": sets}))
    table = lines[4 : lines.index("", lines.index("", 4) + 1)]
    assert max(map(len, table)) <= 80
    first, second = table[: len(table) // 2], table[len(table) // 2 + 1 :]
    assert [part[0].split() for part in (first, second)] == [list(names[:5]), ["full", "chance"]]
    assert [line[:11] for line in first] == [line[:11] for line in second]
    figures = [re.split(r"\s{2,}", line) for line in first if line.startswith("mean recall")]
    assert figures == [["mean recall", *(f"{11 + place}.0 ± 1.4" for place in range(5))]]
    assert re.split(r"\s{2,}", second[-3]) == ["mean recall", "16.0 ± 1.4", "0.8"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (7.04, "7.0 s"),
        (59.97, "1 min 0 s"),
        (179.6, "3 min 0 s"),
        (3599.7, "1 h 00 min"),
        (7170.0, "1 h 59 min"),
    ],
)
def test_no_time_has_sixty_seconds(run: Store, seconds: float, shown: str) -> None:
    lines = summary_table(build_report(run, EVALUATION) | {"seconds": seconds}).splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("time")] == [shown]


def test_headline_and_summary_table_give_the_figures(run: Store) -> None:
    report = build_report(run, EVALUATION)
    assert headline(report).replace("\u00a0", " ") == (
        "100 synthetic pairs of EDGE reach 13.5 ± 1.5 % mean recall; 100 random real pairs 10.0 ± 1.0 %; "
        "the full data (4,000 pairs) 42.0 ± 2.0 %."
    )
    first, second, _, *lines = summary_table(report).splitlines()
    assert (first, second) == (
        "EDGE is within the spread of all its baselines: random real pairs (10.0 %) and",
        "k-center (13.9 %).",
    )
    assert max(map(len, lines[:14])) <= 80
    assert lines[:3] == [
        "equal-budget, version 1: tiny-nf + tiny-bert at 32 px",
        "recall in percent, mean ± standard deviation over students",
        "learning rate of each set by its figures on validation data",
    ]
    assert lines[4].split() == ["edge", "random", "k-center", "full", "chance"]
    assert re.split(r"\s{2,}", next(line for line in lines if line.startswith("mean recall"))) == [
        "mean recall",
        "13.5 ± 1.5",
        "10.0 ± 1.0",
        "13.9 ± 0.0",
        "42.0 ± 2.0",
        "0.8",
    ]
    assert lines[12].split() == ["pairs", "100", "100", "100", "4,000"]
    assert re.split(r"\s{2,}", lines[13]) == ["size", "4 kB", "4 kB", "4 kB", "4 kB"]
    assert lines[15:18] == [
        "mean recall of EDGE, difference to … (95 % interval)",
        "  Random real data  +3.5 [−2.7, +9.7]  3 paired students",
        "  k-center          −0.4 [−4.1, +3.3]  3 paired students",
    ]
    assert "3 images, 7 pairs" in lines[20]
    assert f"report.html  {run.uri}/report.html" in lines


def test_several_draws_are_told_apart_from_students(tmp_path: Path) -> None:
    settings = Edge(
        data=Data(uri="shapes:10"), evaluation=Evaluation(val="shapes:10", test="shapes:10", draws=2)
    )
    edge, random = _set(100), _set(100, 9.0, 11.0)
    edge["metrics"] = dict.fromkeys(METRICS, spread([[12.0, 14.0], [17.0, 19.0]]))
    with RunDir.open(str(tmp_path / "run"), "edge", "local", settings) as open_run:
        for within in ("", "draws/1/", "draws/2/"):  # the last is of an earlier, larger number
            open_run.stage("finetune", lambda _: StageResult(rows_in=1, rows_out=1), within=within)
            drawn = next(shapes.pairs(0, 1, seed=1))
            sample = Sample(key="0", image=drawn["image"], captions=("a",), seed=0, source_key="")
            folder = open_run.store.child(f"{within}distilled")
            write_distilled([sample], folder, method="EDGE", settings={}, seed=len(within), inputs={})
        store = open_run.store
        evaluation = EVALUATION | {"sets": {"edge": edge, "random": random}}
        report = build_report(store, evaluation)
    assert list(report["stages"]) == ["finetune", "draws/1/finetune"]
    assert [one["set"] for one in report["draws"]] == ["distilled", "draws/1/distilled"]
    assert report["draws"][1]["seed"] == report["draws"][0]["seed"] + len("draws/1/")
    score = report["scores"]["edge"]["ir@1"]
    assert (score["std"], score["std_between_draws"]) == (pytest.approx(2**0.5), pytest.approx(12.5**0.5))
    assert headline(report).replace("\u00a0", " ") == (
        "100 synthetic pairs of EDGE reach 15.5 ± 1.4 % (over 2 draws ± 3.5) mean recall; "
        "100 random real pairs 10.0 ± 1.4 %."
    )
    page = _Page(report_html(report, store))
    assert [text for tag, text in page.text if text.startswith("15.5 ±")] == ["15.5 ± 1.4 ± 3.5"] * len(
        METRICS
    )
    assert ("td", "10.0 ± 1.4") in page.text
    assert any("between the means of its draws" in text for _, text in page.text)
    lines = _after_verdict(report)
    assert lines[1:3] == [
        "recall in percent, mean ± standard deviation over students",
        "of draws: standard deviation between the means of 2 draws",
    ]
    at = [line.split() for line in lines].index(["of", "draws", "±", "3.5"])
    assert lines[at - 1].startswith("mean recall")


def test_a_single_student_of_each_draw_has_no_deviation(run: Store) -> None:
    one = _set(100) | {"metrics": dict.fromkeys(METRICS, spread([[12.0], [14.0]]))}
    report = build_report(run, EVALUATION | {"sets": {"edge": one}})
    assert "13.0 ± – ± 1.4" in report_html(report, run)
    assert "reach 13.0 % (over 2 draws ± 1.4) mean recall" in headline(report).replace("\u00a0", " ")


def test_without_evaluation_there_is_a_report_without_recall(run: Store) -> None:
    report = build_report(run)
    assert (report["scores"], report["sets"]) == ({}, {})
    assert headline(report) == "3 synthetic images with 7 captions, not evaluated."
    page = _Page(report_html(report, run))
    assert not any(tag == "svg" and found.get("role") == "img" for tag, found in page.tags)
    assert ("td", "features") in page.text
    assert summary_table(report).startswith("set          3 images, 7 pairs")


def test_evaluation_of_a_run_without_a_distilled_set(tmp_path: Path) -> None:
    settings = Edge(data=Data(uri="shapes:10"), evaluation=Evaluation(val="shapes:10", test="shapes:10"))
    with RunDir.open(str(tmp_path / "run"), "evaluate", "local", settings) as open_run:
        only = EVALUATION | {"sets": {"random": _set(100, 9.0)}}
        report = build_report(open_run.store, only)
        write_report(report, open_run.store)
    assert report["distilled"] is None
    assert headline(report).replace("\u00a0", " ") == "100 random real pairs 9.0 %."
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_versions_that_changed_between_the_stages_are_all_listed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("settings.json", {"job": "edge", "preset": "local", "settings": {}})
    for second, torch in enumerate(("2.8", "2.9", "2.9")):
        manifest = {"stage": f"s{second}", "finished": f"00:0{second}", "seconds": 61.0, "rejects": {}}
        manifest["resumed"] = second == 1
        manifest |= {
            "rows_in": 1,
            "rows_out": 1,
            "devices": {},
            "versions": {"torch": torch, "python": "3.11"},
        }
        store.write_json(f"s{second}/manifest.json", manifest)
    report = build_report(store)
    assert report["versions"] == {"torch": ["2.8", "2.9"], "python": "3.11"}
    assert "time         3 min 3 s (only the last attempt of s1)" in summary_table(report)
    page = _Page(report_html(report, store))
    assert [text for tag, text in page.text if tag == "td" and text[:1] == "s"] == ["s0", "s1 *", "s2"]
    assert any(text.startswith("* This stage was resumed") for _, text in page.text)


def test_a_random_part_of_the_data_is_not_called_all_of_them(tmp_path: Path) -> None:
    settings = Edge(data=Data(uri="shapes:10"), evaluation=Evaluation(val="shapes:10", test="shapes:10"))
    with RunDir.open(str(tmp_path / "run"), "edge", "local", settings) as open_run:
        open_run.stage("features", lambda _: StageResult(rows_in=4_000_000, rows_out=3_318_333))
        report = build_report(open_run.store, EVALUATION)
        page = report_html(report, open_run.store)
    part = "2,000 of 3,318,333 real images"
    assert part + " (4,000 pairs) 42.0" in headline(report).replace("\u00a0", " ")
    assert f"full         {part}, drawn at random" in summary_table(report).splitlines()
    texts = _Page(page).text
    assert texts.count(("td", part)) == 2
    assert ("span", f"of the recall of {part}") in texts
    assert page.count(part) == 8  # headline, tile, two tables, two charts with their descriptions
    assert "ull data" not in page
    assert "* This stage was resumed" not in page


def test_charts_say_what_they_show_and_take_the_colours_of_the_page() -> None:
    chart = charts.bars(["a <b>", "c"], [12.34, 50.0], [0.5, 2.0], chance=1.0, what="mean recall")
    assert "a &lt;b&gt;" in chart
    assert "12.3<" in chart
    assert "currentColor" in chart
    assert charts.INK not in chart
    assert chart == charts.bars(["a <b>", "c"], [12.34, 50.0], [0.5, 2.0], chance=1.0, what="mean recall")
    diverged = charts.lines({"x": [1.0, None, 3.0], "y": [None, None]}, "done", "loss")
    assert "loss" in diverged


def test_classifiers_are_reported_by_their_accuracy(run: Store) -> None:
    def one(images: int, *runs: float) -> dict[str, Any]:
        mean = sum(runs) / len(runs)
        score = {"mean": mean, "std": 1.0, "runs": list(runs)}
        return _set(images, *runs) | {
            "images": images,
            "metrics": dict.fromkeys(METRICS_OF["classification"], score),
        }

    evaluation = {
        "task": "classification",
        **PANEL,
        "others": [],
        "sets": {"vlcp": one(100, 40.0, 42.0), "random": one(100, 30.0, 32.0), "full": one(5000, 70.0, 72.0)},
        "chance": {"top-1": 10.0, "top-5": 50.0},
    }
    report = build_report(run, evaluation, labels={"vlcp": "VLCP"})
    assert report["scores"]["chance"]["top-5"]["mean"] == 50.0
    told = headline(report).replace("\u00a0", " ")
    assert told == (
        "100 synthetic images of VLCP reach 41.0 ± 1.0 % top-1 accuracy; 100 random real images 31.0 ± 1.0 %; "
        "the full data (5,000 images) 71.0 ± 1.0 %."
    )
    page = report_html(report, run)
    assert "Accuracy on the test images" in page
    assert "the accuracy of random images" in page
    assert "recall" not in page.lower().replace("retrieval", "")
    assert "Top-1" in summary_table(report)


def _other(name: str, models: str, **sets: Any) -> dict[str, Any]:
    protocol = PANEL["protocol"] | {
        "name": name,
        "unsure": ["who fed the cat"],
        "published": name != "equal-budget",
    }
    return EVALUATION | {"protocol": protocol, "models": models, "sets": sets}


def test_protocols_and_students_have_tables_of_their_own(run: Store) -> None:
    own, wide = PANEL["models"], "wide-nf + tiny-bert at 32 px"
    published = {"edge": _set(100, 31.0, 33.0), "random": _set(100, 21.0, 21.0)}
    for one in published.values():
        one["best_look"] = _metrics(77.0, 79.0)
        one["looks"] = [{"steps": 5, "mean_recall": 3.0}, {"steps": 10, "mean_recall": 32.0}]
    small = {"edge": _set(100, 10.5, 10.5), "random": _set(100, 4.0, 5.0)}
    evaluation = EVALUATION | {
        "others": [
            _other("equal-budget", wide, **{name: _set(100, 1.0, 3.0) for name in EVALUATION["sets"]}),
            _other("lors-frozen-text-small", own, **published)
            | {"notes": {"edge": ["its texts were captions"]}},
            _other("lors-frozen-text-small", wide, **small),
        ]
    }
    parts = [
        {"pairs": pairs, "images": pairs, "mean": mean, "std": 0.1}
        for pairs, mean in ((25, 4.0), (100, 13.5))
    ]
    report = build_report(run, evaluation | {"by_pairs": {"edge": parts}})
    assert "by pairs     EDGE: 4.0 of 25, 13.5 of 100" in summary_table(report)
    assert "Mean recall against pairs" in report_html(report, run)
    assert [panel["protocol"]["name"] for panel in of_other_protocols(report)] == ["lors-frozen-text-small"]
    equal, lors = across_students(report)
    assert equal["models"] == [own, wide]
    assert equal["rows"]["edge"]["drop"] == pytest.approx(13.5 - 2.0)
    assert lors["rows"]["edge"]["drop"] == pytest.approx(32.0 - 10.5)
    assert lors["rows"]["chance"]["drop"] is None

    text = summary_table(report)
    outcome = " ".join(text.split())
    assert outcome.startswith("Under equal-budget, EDGE is within the spread of all its baselines: random")
    assert "Under lors-frozen-text-small, EDGE is higher than random real pairs (21.0 %);" in outcome
    first, second = (
        text.index("equal-budget, version 1: tiny-nf"),
        text.index("lors-frozen-text-small, version 1"),
    )
    assert "32.0" not in text[first:second]  # no figure of one protocol in the table of another
    assert "best look" in text[second:]
    assert "EDGE: its texts were captions" in " ".join(text[second:].split())
    assert "78.0 ± 1.4" in text[second:]

    page = report_html(report, run)
    assert "Learning curves: lors-frozen-text-small" in page
    assert "Learning curves: equal-budget" not in page
    assert "Not known: who fed the cat." in page
    assert "EDGE: its texts were captions." in page


def test_a_difference_counts_where_the_t_test_sees_it() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        ours, theirs = rng.normal(10, 1, rng.integers(3, 6)), rng.normal(rng.uniform(6, 14), 2, 4)
        found = standing(_metrics(*ours)["ir@1"], _metrics(*theirs)["ir@1"])
        if len(ours) == len(theirs):  # students of one seed start alike
            differs = ttest_rel(ours, theirs).pvalue < 0.05
        else:
            differs = ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05
        assert found == ("level" if not differs else "above" if ours.mean() > theirs.mean() else "below")
        seen.add(found)
    assert seen == {"above", "level", "below"}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([5.0, 6.0, 7.0], [4.0, 5.0, 6.0], "higher"),  # no spread at all
        ([5.3, 6.3, 7.6], [5.2, 6.2, 7.5], "higher"),  # equal but for rounding
        ([4.0, 4.0], [4.0, 4.0], "equal"),
        ([4.0, 4.0], [4.0, 5.0], "lower"),  # of two, which are too few
        ([4.0, 4.0], [4.0, 5.0, 6.0], "lower"),
        ([5.0], [4.0], "higher"),
        ([3.0], [4.0, 4.1, 4.2], "lower"),
        ([4.0], [4.0], "equal"),
    ],
)
def test_a_difference_without_a_spread(ours: list[float], theirs: list[float], expected: str) -> None:
    assert standing(_metrics(*ours)["ir@1"], _metrics(*theirs)["ir@1"]) == expected


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ({"a": "below"}, "EDGE is below a."),
        ({"a": "below", "b": "below", "c": "below"}, "EDGE is below all its baselines: a, b and c."),
        ({"a": "below", "b": "above"}, "EDGE is above b, and below a."),
        (
            {"a": "below", "b": "above", "c": "level", "d": "above"},
            "EDGE is above b and d, within the spread of c, and below a.",
        ),
        (
            {"a": "lower", "b": "higher", "c": "same"},
            "EDGE is higher than b, the same set as c, and lower than a; a doubt.",
        ),
    ],
)
def test_a_verdict_is_a_sentence(standings: dict[str, str], expected: str) -> None:
    assert sentence("EDGE", standings, "a doubt" if "lower" in standings.values() else "") == expected


def test_the_first_line_says_that_a_set_is_below_its_baselines(run: Store) -> None:
    sets = {
        "edge": _set(100, 6.3, 6.7, 7.1),
        "random": _set(100, 9.4, 9.6, 9.8),
        "herding": _set(100, 10.5, 10.7, 10.9),
        "full": _set(4000, 3.0, 3.1, 3.2),  # of another size, so no baseline of the verdict
    }
    report = build_report(run, EVALUATION | {"sets": sets})
    assert report["standings"] == {"edge": {"random": "below", "herding": "below"}}
    told = "EDGE is below all its baselines: random real pairs (9.6 %) and herding (10.7 %)."
    assert verdict(report).replace("\u00a0", " ") == told
    page = _Page(report_html(report, run))
    assert [text.replace("\u00a0", " ") for tag, text in page.text if tag == "strong"] == [told]
    first = next(text for tag, text in page.text if tag in ("p", "strong") and text)
    assert first.replace("\u00a0", " ") == told
    assert summary_table(report).replace("\n", " ").startswith(told)


@pytest.mark.parametrize(
    ("random", "other", "doubt"),
    [
        ((9.0,), (5.0,), "; single students say nothing about the spread."),
        ((9.0, 9.5), (5.0, 6.0), "; 2 students say too little about the spread."),
        ((9.0, 9.5, 9.3), (8.0, 8.5, 8.3), "; 3 equal differences say nothing about the spread."),
        ((9.0, 9.5), (9.0, 9.5), "equal to random real pairs (9.2 %)."),
    ],
)
def test_the_first_line_says_why_a_spread_is_not_known(
    run: Store, random: tuple[float, ...], other: tuple[float, ...], doubt: str
) -> None:
    # the second set has no row in the table of differences to baselines
    sets = {"edge": _set(100, *other), "other": _set(100, *other), "random": _set(100, *random)}
    first, _, second = verdict(build_report(run, EVALUATION | {"sets": sets})).partition(" other is ")
    assert first.replace("\u00a0", " ").endswith(doubt)
    assert second.replace("\u00a0", " ").endswith(doubt)


def test_a_good_outcome_near_chance_is_said_on_the_terminal_too(run: Store) -> None:
    sets = {"edge": _set(100, 1.3, 1.4, 1.35), "random": _set(100, 1.0, 1.1, 0.98)}
    report = build_report(run, EVALUATION | {"sets": sets})
    assert report["standings"] == {"edge": {"random": "above"}}
    shown = " ".join(summary_table(report).split())
    assert "EDGE is above random real pairs here; to keep in mind:" in shown
    assert "The students hardly learn here, whatever the set" in shown


def test_a_set_that_is_its_own_baseline_is_called_the_same(run: Store) -> None:
    figures = (7.5, 8.3, 7.9)
    sets = {
        "edge": _set(100, *figures) | {"fingerprints": ["0e90"]},
        "random": _set(100, *figures) | {"fingerprints": ["0e90"]},
        "herding": _set(100, 5.0, 5.2, 5.3) | {"fingerprints": ["8cdc"]},
    }
    report = build_report(run, EVALUATION | {"sets": sets})
    assert report["standings"] == {"edge": {"random": "same", "herding": "above"}}
    outcome = report["outcome"]["edge"]
    assert outcome["title"] == "EDGE is the same set as random real pairs here"
    assert outcome["reasons"] == [
        "EDGE has the very same pairs as random real pairs, so there is nothing to compare."
    ]
    assert verdict(report).replace("\u00a0", " ") == (
        "EDGE is above herding (5.2 %), and the same set as random real pairs (7.9 %)."
    )
    lines = summary_table(report).splitlines()
    assert "  Random real data  the same set" in lines
    assert "would take" not in " ".join(lines)
    assert "<td>the same set</td><td></td>" in report_html(report, run)


def test_a_set_with_nothing_to_compare_with_gets_no_verdict(run: Store) -> None:
    alone = build_report(run, EVALUATION | {"sets": {"edge": _set(100, 6.3), "full": _set(4000, 3.0)}})
    assert (alone["standings"], verdict(alone)) == ({}, "")
    assert "strong" not in dict(_Page(report_html(alone, run)).tags)
    assert verdict(build_report(run)) == ""


def test_the_page_shows_real_pairs_beside_what_was_drawn(run: Store) -> None:
    png = next(shapes.pairs(0, 1, seed=1))["image"]
    pairs = [Beside(HOSTILE, png, png, -0.25, 0.75), Beside("a cat", None, png, 0.5, 0.25)]
    agreement = {"prompts": 50, "real": 0.4321, "drawn": 0.8768, "drawn_better": 62.0}
    report = build_report(run, EVALUATION, agreement=agreement)
    assert report["agreement"] == agreement
    page = _Page(report_html(report, run, pairs))
    assert page.open == []
    assert "script" not in dict(page.tags)
    assert ("figcaption", HOSTILE) in page.text
    shown = [
        found
        for tag, found in page.tags
        if tag == "img" and found.get("alt") in ("Real image", "Drawn image")
    ]
    assert [found["alt"] for found in shown] == ["Real image", "Drawn image", "Drawn image"]
    assert all((found["src"] or "").startswith("data:image/png;base64,") for found in shown)
    bold = [text for tag, text in page.text if tag == "b"]
    assert bold[bold.index("0.432") :][:7] == ["0.432", "0.877", "62 %", "-0.25", "0.75", "0.50", "0.25"]
    assert [text for tag, text in page.text if tag == "i"] == ["The data do not have this image any more."]
    without = report_html(build_report(run, EVALUATION), run)
    assert "Drawn image" not in without


def audit_of(learnt: dict[str, Any] | None = None) -> dict[str, Any]:
    spectrum = {"pairs": 1234, "values": [1.0, 0.1], "effective_rank": 1.36, "rank_90": 1}
    pair = {"real": "s/k", "cosine": 0.9, "rms": 3.0}
    return {
        "clip": "tiny-clip",
        "copies": {
            "images": 4000,
            "checked": 1000,
            "copies": 20,
            "rate": 2.0,
            "all_checked": 1950,
            "all_copies": 31,
            "real_images": 500,
            "real_rate": 1.5,
            "neighbours": 16,
            "small_px": 32,
            "copy_rms": 12.0,
            "beyond_real": 3.25,
            "closest": [],
        },
        "leakage": {"images": 60, "near": 2, "same_bytes": 7, "first": [{"test": HOSTILE, **pair}]},
        "spectrum": {"set": spectrum, "real": spectrum | {"pairs": 5678.0}},
        "saturation": {"set": 5.125, "real": 4.0, "image_px": 32},
        "learnt": learnt,
    }


def test_the_page_says_how_many_images_are_copies(run: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "run"))
    for name in run.files():
        other.write_bytes(name, run.read_bytes(name))
    other.write_bytes("audit/copies.png", b"PNG")
    text = {
        "began_as": HOSTILE,
        "nearest_caption": "a star",
        "cosine": 0.5,
        "real": "s/k",
        "nearest_words": "",
    }
    learnt = {"pairs": 3, "bytes": 9_000_000, "shown_bytes": 1_500_000, "captions": 5000, "texts": [text]}
    for audit, bytes_shown in ((audit_of(), 0), (audit_of(learnt), 1)):
        report = build_report(other, EVALUATION, audit=audit)
        assert report["audit"] == audit
        page = report_html(report, other)
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
        assert (
            "20 of 1,000 images of the set, drawn at random from 4,000, (2.0 %) differ from a real image"
            in words
        )
        assert "1.5 % of 500 real images are copies of another real one" in words
        assert "3.2 % of the set’s images lie nearer" in words
        assert "A check for copies and no privacy guarantee" in words
        assert "With those that are nearest by CLIP, 1,950 were compared and 31 are copies" in words
        assert "2 of 60 are copies of training images by that measure" in words
        assert "7 more have the very bytes of one" in words
        assert words.count("unfair to them in bytes") == bytes_shown
        assert words.count("9.0 MB, and 1.5 MB as 8-bit images") == bytes_shown
        assert page.count("a star (0.50, s/k)") == bytes_shown
        assert page.count("data:image/png;base64,UE5H") == 1
        assert "<script>alert" not in page
    assert "Nearest real images" not in report_html(build_report(other, EVALUATION), other)
