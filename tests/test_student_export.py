"""A student of a finished run is trained again as the run did, and written for open_clip."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from test_beside_runs import RATE, finish
from test_open_clip_export import image_folder

from mmdd_ray.cli.tools import student
from mmdd_ray.data import shapes
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.devices import one_thread
from mmdd_ray.engine.seeds import derive_seed
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.panel import loss_curve
from mmdd_ray.evaluation.sets import distilled_set
from mmdd_ray.evaluation.tasks.students import train_student
from mmdd_ray.methods.evaluate.presets import local
from mmdd_ray.methods.student_export import SETS, RunStudent, export_student, find_student
from mmdd_ray.protocols.equal_budget import pairs_of_settings
from mmdd_ray.storage.store import Store

STUDENTS = replace(local().students, steps=3)
FIGURES = {"edge": [9.0, 11.0], "random": [6.0, 7.0]}


def distilled(folder: Path, *, first: int = 0) -> str:
    samples = [
        Sample(key=f"{i:06d}", image=one["image"], captions=("a circle",), seed=i, source_key="")
        for i, one in enumerate(shapes.pairs(first, first + 6, seed=5))
    ]
    write_distilled(samples, Store(str(folder)), method="EDGE", settings={}, seed=0, inputs={})
    return str(folder)


def evaluated(folder: Path, given: str, losses: Sequence[float], **changes: Any) -> str:
    """A finished run of a given set and of another that is gone; its first student had these losses."""
    protocol = changes.pop("protocol", {"version": pairs_of_settings(STUDENTS).version})
    run = finish(folder, FIGURES, set=("gone", given), students=STUDENTS, protocol=protocol, **changes)
    store, file = Store(run), "evaluate/students/edge-draw0-seed1.json"
    own = store.read_json(file)
    own["inputs"][0] = distilled_set(Store(given), STUDENTS.image_px).fingerprint()
    curve = loss_curve(np.array(losses))
    store.write_json(file, own | {"loss_curve": curve, "steps": len(losses), "seconds": 65.0})
    store.write_json(SETS, {"gone": {"kind": "pairs"}, "edge": {"kind": "distilled"}})
    return run


def test_it_has_the_losses_of_the_runs_own_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = distilled(tmp_path / "given")
    pairs, seed = distilled_set(Store(given), STUDENTS.image_px), derive_seed(local().run.seed, 1)
    with one_thread():
        losses = train_student(pairs, STUDENTS, learning_rate=RATE, seed=seed, device="cpu").losses
    told = []
    torch.set_num_threads(2)
    for apart in (0.0, 0.05, 0.5):
        run = evaluated(tmp_path / f"run-{apart}", given, losses + apart)
        capsys.readouterr()
        status = student([run, "--out", str(tmp_path / f"student-{apart}")])
        told.append((status, capsys.readouterr().out))
    assert [status for status, _ in told] == [0, 0, 1]
    assert told[0][1].splitlines() == [
        "student 1 of edge: mean recall 9.0 in the run; trains it again, 3 steps at the learning rate 0.1, "
        "which took 1 min there",
        f"for open_clip and clip_benchmark: local-dir:{tmp_path / 'student-0.0'}",
        "its losses are those of the run",
    ]
    assert "differ by up to 0.05 from those of the run\ndevices and versions" in told[1][1]
    assert "take it for another student than that of the report" in told[2][1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    open_clip.create_model(f"local-dir:{tmp_path / 'student-0.0'}")


def test_a_student_that_a_run_has_not_is_refused(tmp_path: Path) -> None:
    def refused(run: str, **asked: Any) -> str:
        with pytest.raises(UserError) as refusal:
            find_student(run, **asked)
        return str(refusal.value)

    given = distilled(tmp_path / "given")
    run = evaluated(tmp_path / "a", given, [1.0, 0.5, 0.2])
    assert find_student(run).recorded["metrics"]["mean_recall"] == 9
    with pytest.raises(UserError, match="--out s3://bucket/student is no local folder"):
        student([run, "--out", "s3://bucket/student"])
    assert "random is a baseline, which a run does not keep as a set; choose one of edge" in refused(
        run, name="random"
    )
    assert "unknown set edgy; did you mean edge" in refused(run, name="edgy")
    told = "has no student --seed 3 --draw 0 of edge; its seeds are 1 to 2, its draws 0 to 0"
    assert told in refused(run, seed=3)
    assert "diverged, so it finds nothing" in refused(evaluated(tmp_path / "b", given, [1.0, np.nan]))
    distilled(tmp_path / "given", first=6)
    assert "has changed since its students were trained; restore it" in refused(run)

    labelled = finish(tmp_path / "c", {"vlcp": [30.0, 34.0]}, task="classification")
    assert "has classifiers, of which open_clip knows nothing" in refused(labelled)
    published = {"name": "covmatch-both-encoders", "published": True}
    other = evaluated(tmp_path / "d", given, [1.0], protocol=published)
    assert "no students under equal-budget, and open_clip no model" in refused(other)
    older = evaluated(tmp_path / "e", given, [1.0], protocol={"version": 1})
    assert "has students of equal-budget, version 1, and this is version 2" in refused(older)


@pytest.mark.parametrize(
    ("image_model", "folder", "message"),
    [
        ("tiny-nf", ".", "is there already; name a new folder"),
        ("vit", "student", "open_clip cannot hold this student"),
    ],
)
def test_what_open_clip_cannot_have_is_refused_before_it_is_trained(
    image_model: str, folder: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmdd_ray.evaluation.tasks.students.train_student", None)
    image_folder(tmp_path / "vit", img_size=STUDENTS.image_px)
    settings = replace(local(), students=replace(STUDENTS, image_model=image_model))
    found = RunStudent(settings, "edge", 1, None, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        export_student(found, Path(folder))
