"""A student of a finished run is trained again as the run did, and written for open_clip."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
from test_beside_runs import RATE, finish

from mmdd_ray.cli.tools import student
from mmdd_ray.data import shapes
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.panel import loss_curve
from mmdd_ray.evaluation.sets import distilled_set
from mmdd_ray.evaluation.tasks.students import train_student
from mmdd_ray.methods.evaluate.presets import local
from mmdd_ray.methods.student import export_student
from mmdd_ray.storage.store import Store

STUDENTS = replace(local().students, steps=3)


@pytest.fixture
def given(tmp_path: Path) -> str:
    """A distilled set."""
    samples = [
        Sample(key=f"{i:06d}", image=one["image"], captions=("a circle",), seed=i, source_key="")
        for i, one in enumerate(shapes.pairs(0, 6, seed=5))
    ]
    folder = str(tmp_path / "given")
    write_distilled(samples, Store(folder), method="EDGE", settings={}, seed=0, inputs={})
    return folder


def trained_on(run: str, pairs: Any, losses: Any) -> None:
    """Has the first student of a run trained on these pairs, with these losses."""
    store, file = Store(run), "evaluate/students/edge-draw0-seed1.json"
    own = store.read_json(file)
    own["inputs"][0] = pairs.fingerprint()
    store.write_json(file, own | {"loss_curve": loss_curve(losses), "steps": len(losses)})


def test_it_has_the_losses_of_the_runs_own_student(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finish(
        tmp_path / "run", {"edge": [9.0, 11.0], "random": [6.0, 7.0]}, set=(given,), students=STUDENTS
    )
    pairs = distilled_set(Store(given), STUDENTS.image_px)
    seed = derive_seed(local().run.seed, 1)
    losses = train_student(pairs, STUDENTS, learning_rate=RATE, seed=seed, device="cpu").losses
    trained_on(run, pairs, losses)
    capsys.readouterr()
    assert student([run, "--out", str(tmp_path / "student")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "student 1 of edge, 3 steps at the learning rate 0.1; mean recall in the report 9.0"
    assert shown[1:] == [f"for open_clip and clip_benchmark: local-dir:{tmp_path / 'student'}"]
    open_clip.create_model(f"local-dir:{tmp_path / 'student'}")

    trained_on(run, pairs, losses + 0.5)
    assert student([run, "--out", str(tmp_path / "other")]) == 0
    assert "its losses differ by up to 0.5 from those of the run" in capsys.readouterr().out


def test_one_that_open_clip_cannot_have_is_refused_before_it_is_trained(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: str, **asked: Any) -> str:
        with pytest.raises(UserError) as refusal:
            export_student(run, tmp_path / "student", **asked)
        return str(refusal.value)

    monkeypatch.delattr("mmdd_ray.evaluation.tasks.students.train_student")
    run = finish(tmp_path / "a", {"edge": [9.0, 11.0], "random": [6.0, 7.0]}, set=(given,), students=STUDENTS)
    assert "unknown set random; choose one of edge" in refused(run, name="random")
    told = "has no student 3 of draw 0 of edge; its draws are 0 to 0, its students 1 to 2"
    assert told in refused(run, seed=3)
    assert "the set edge of" in refused(run)  # which other students were trained on
    labelled = finish(tmp_path / "b", {"vlcp": [30.0, 34.0]}, task="classification")
    assert "has classifiers, of which open_clip knows nothing" in refused(labelled)
    published = {"name": "covmatch-both-encoders", "published": True}
    other = finish(tmp_path / "c", {"edge": [9.0, 11.0]}, protocol=published)
    assert "go on with the run and --evaluation.protocols equal-budget" in refused(other)
