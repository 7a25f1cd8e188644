"""Several draws of one run: seeds, spread of their scores, folders, and what a larger number of them keeps."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from mmdd_ray.config import Evaluation, Run, extending
from mmdd_ray.diffusion.synthesize import sample_seeds
from mmdd_ray.engine.draws import count_sets, draws_of
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.engine.seeds import draw_seed
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.evaluate.presets import local as evaluate_local
from mmdd_ray.methods.execute import check

# ---- scores


def test_the_spread_of_students_is_pooled_within_draws_and_that_of_draws_is_of_their_means() -> None:
    scores_KS = np.random.default_rng(3).normal(10, 2, size=(4, 5)) + np.array([[0.0], [3.0], [-1.0], [7.0]])
    found = spread(scores_KS.tolist())
    means_K = scores_KS.mean(axis=1)
    residuals_KS = scores_KS - means_K[:, None]
    assert found["mean"] == pytest.approx(scores_KS.mean())
    assert found["std"] == pytest.approx(np.sqrt((residuals_KS**2).sum() / (4 * (5 - 1))))
    assert found["std_between_draws"] == pytest.approx(np.std(means_K, ddof=1))
    assert found["draw_means"] == pytest.approx(means_K.tolist())
    assert found["runs"] == scores_KS.ravel().tolist()
    assert found["std_between_draws"] > found["std"]  # draws differ by more than their students do


def test_one_draw_is_reported_as_ever_and_one_student_has_no_spread() -> None:
    runs = [11.1, 12.7, 9.4]
    assert spread([runs]) == {
        "mean": float(np.mean(runs)),
        "std": float(np.std(runs, ddof=1)),
        "runs": runs,
    }
    assert spread([[5.0]]) == {"mean": 5.0, "std": 0.0, "runs": [5.0]}
    several = spread([[5.0], [7.0]])
    assert several["std"] == 0.0
    assert several["std_between_draws"] == pytest.approx(2**0.5)


# ---- seeds and baselines


def test_every_draw_has_a_seed_that_nothing_else_has() -> None:
    assert draw_seed(7, 0) == 7
    seeds = [draw_seed(7, number) for number in range(1, 200)]
    assert seeds == [draw_seed(7, number) for number in range(1, 200)]
    assert len({*seeds, *(draw_seed(8, number) for number in range(1, 200)), *sample_seeds(7, 200)}) == 598
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_later_draws_repeat_the_baselines_that_depend_on_the_seed() -> None:
    evaluation = replace(
        edge_local().evaluation, draws=3, baselines=("random", "herding", "k-center", "full")
    )
    settings = replace(edge_local(), run=Run(seed=5), evaluation=evaluation)
    assert count_sets(evaluation) == 5 + 3 + 3
    assert count_sets(evaluation, without=["full"]) == 4 + 3 + 3
    first, second, third = draws_of(settings)
    assert first.compared == first.settings == replace(settings, evaluation=replace(evaluation, draws=1))
    assert second.compared.evaluation.baselines == ("random", "k-center")
    assert second.settings.evaluation.baselines == evaluation.baselines
    assert (first.within, second.within) == ("", "draws/1/")
    assert len({one.settings.run.seed for one in (first, second, third)}) == 3
    # what is exported says nothing of other draws: the set of draw 0 is that of a run without them
    assert resolved(first.settings) == resolved(replace(settings, evaluation=replace(evaluation, draws=1)))


def test_a_set_that_is_there_cannot_be_drawn_again() -> None:
    settings = evaluate_local()
    asked = replace(settings, set=("any",), evaluation=replace(settings.evaluation, draws=2))
    with pytest.raises(UserError, match=r"^evaluation\.draws=2, but a set that is there already"):
        check(asked)


# ---- the run directory


@dataclass(frozen=True, kw_only=True)
class Section:
    draws: int = extending(1)
    seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    run: Run = field(default_factory=Run)
    evaluation: Section = field(default_factory=Section)


def test_more_draws_extend_a_run_and_its_settings_say_so(tmp_path: Path) -> None:
    three = Settings(evaluation=Section(draws=3))
    with RunDir.open(str(tmp_path), "edge", "local", Settings()) as run:
        run.stage("features", lambda stage: StageResult(rows_in=1, rows_out=1))
    RunDir.open(str(tmp_path), "edge", "local", three).close()
    held = json.loads((tmp_path / "settings.json").read_text())
    assert held["settings"]["evaluation"] == {"draws": 3, "seeds": 3}
    with pytest.raises(UserError, match=r"other settings:\n  evaluation\.seeds: 3 -> 5\nset run\.dir"):
        RunDir.open(str(tmp_path), "edge", "local", Settings(evaluation=Section(draws=4, seeds=5)))
    assert json.loads((tmp_path / "settings.json").read_text()) == held

    # a run of a version that had no draws
    del held["settings"]["evaluation"]["draws"]
    (tmp_path / "settings.json").write_text(json.dumps(held))
    RunDir.open(str(tmp_path), "edge", "local", three).close()
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["evaluation"]["draws"] == 3


class Ledger:
    """Runs the stages of a small method whose bodies say what they were called for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[str] = []

    def body(self, label: str, content: bytes = b"same"):
        def write(stage: StageDir) -> StageResult:
            self.calls.append(f"{label}: {','.join(stage.store.files())}")
            stage.store.write_bytes("out", content)
            return StageResult(rows_in=1, rows_out=1)

        return write

    def go(self, draws: int, *, tuned: bytes = b"same", tuned_again: bytes = b"same") -> list[str]:
        self.calls = []
        settings = Settings(evaluation=Section(draws=draws))
        with RunDir.open(str(self.folder), "edge", "local", settings) as run:
            features = run.stage("features", self.body("features"))
            latents = run.stage("latents", self.body("latents"), [features])
            made = []
            for number in range(draws):
                within = f"draws/{number}/" if number else ""
                body = self.body(f"tune {number}", tuned_again if number else tuned)
                tune = run.stage("tune", body, [features], within)
                made.append(run.stage("make", self.body(f"make {number}"), [latents, tune], within))
            run.stage("evaluate", self.body("evaluate"), [features, *made])
        return self.calls


def test_draws_share_stages_and_an_evaluation_goes_on_with_what_it_has(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    fresh = "started.json"
    assert ledger.go(1) == [
        f"features: {fresh}",
        f"latents: {fresh}",
        f"tune 0: {fresh}",
        f"make 0: {fresh}",
        f"evaluate: {fresh}",
    ]
    assert ledger.go(1) == []
    assert ledger.go(2) == [f"tune 1: {fresh}", f"make 1: {fresh}", f"evaluate: out,{fresh}"]
    assert ledger.go(2) == []
    manifest = json.loads((tmp_path / "run/draws/1/make/manifest.json").read_text())
    assert manifest["stage"] == "draws/1/make"
    assert set(manifest["inputs"]) == {"draws/1/tune", "latents"}
    evaluated = json.loads((tmp_path / "run/evaluate/manifest.json").read_text())
    assert set(evaluated["inputs"]) == {"features", "make", "draws/1/make"}
    assert ledger.go(1) == [f"evaluate: out,{fresh}"]


def test_a_draw_starts_afresh_when_its_own_inputs_change_and_not_for_those_of_another(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    ledger.go(2)
    (tmp_path / "run/tune/manifest.json").unlink()
    calls = ledger.go(2, tuned=b"other")
    assert [call.partition(":")[0] for call in calls] == ["tune 0", "make 0"]  # which comes out the same
    (tmp_path / "run/draws/1/tune/manifest.json").unlink()
    calls = ledger.go(2, tuned=b"other", tuned_again=b"another")
    assert [call.partition(":")[0] for call in calls] == ["tune 1", "make 1"]


def test_lines_of_a_stage_name_its_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmdd_ray.engine.progress import progress

    shown = []

    def body(stage: StageDir) -> StageResult:
        with progress(stage.name, total=1) as bar:
            shown.append(str(bar).split()[0])
        return StageResult(rows_in=1, rows_out=1)

    with RunDir.open(str(tmp_path / "run"), "edge", "local", Settings()) as run:
        run.stage("tune", body, within="draws/1/")
        run.stage("latents", body)
        run.stage("evaluate", body)
    assert shown == ["draws/1/tune", "latents", "evaluate"]
    assert "draws/1/tune starts\n" in capsys.readouterr().out


def test_draws_are_a_count() -> None:
    evaluation = Evaluation(val="shapes:10", test="shapes:10", draws=0)
    with pytest.raises(UserError, match=r"evaluation\.draws=0: input should be greater than or equal to 1"):
        check(replace(edge_local(), evaluation=evaluation))
