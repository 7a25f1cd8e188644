"""The functions of `import mmdd_ray`: settings by name, sets as datasets, and runs that are opened and finished."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mmdd_ray
from mmdd_ray.data import shapes
from mmdd_ray.data.images import encode_png
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.run_dir import LAYOUT, RunDir, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS, execute
from mmdd_ray.methods.method import Run
from mmdd_ray.storage.store import Store


def write_set(folder: Path, *, labelled: bool = False) -> list[Sample]:
    """Writes four scenes with two captions each."""
    scenes = [shapes.scene(index, seed=4) for index in range(4)]
    samples = [
        Sample(
            key=f"{index:06d}",
            image=encode_png(np.asarray(scene.render(32))),
            captions=(scene.captions()[0], f"scene {index}"),
            seed=index,
            source_key=f"real/{index}",
            label=index % 2 if labelled else None,
        )
        for index, scene in enumerate(scenes)
    ]
    write_distilled(samples, Store(str(folder)), method="scenes", settings={}, seed=0, inputs={})
    return samples


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_settings_are_those_of_the_presets(method):
    assert mmdd_ray.settings(method.name) == next(iter(method.presets.values()))()
    for preset, make in method.presets.items():
        assert mmdd_ray.settings(method.name, preset) == make()


def test_settings_change_by_name_nested_or_with_dots():
    nested = mmdd_ray.settings("covmatch", changes={"match": {"pairs": 20, "init": "herding"}})
    assert nested == mmdd_ray.settings("covmatch", "local", {"match.pairs": 20, "match.init": "herding"})
    plain = mmdd_ray.settings("covmatch")
    assert nested == replace(plain, match=replace(plain.match, pairs=20, init="herding"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("egde",), "unknown command egde; did you mean edge?"),
        (("edge", "lokal"), "unknown preset lokal; did you mean local?"),
        (("edge", "local", {"match.pairs": 3}), "has match.pairs, which is no setting of this job"),
        (("edge", "local", {"run.seed.x": 3}), "run.seed is a setting and no section"),
        (("edge", "local", {"run": 3}), "run is a section"),
        (("edge", "local", {"synthesis.pairs": 0}), "greater than or equal to 1"),
    ],
)
def test_what_is_no_setting_is_refused(arguments, says):
    with pytest.raises(UserError) as refused:
        mmdd_ray.settings(*arguments)
    assert says in str(refused.value)


def test_a_set_is_a_dataset_of_its_pairs(tmp_path):
    samples = write_set(tmp_path / "set")
    pairs = mmdd_ray.load_set(str(tmp_path / "set"))
    assert len(pairs) == 8
    image, caption = pairs[3]
    assert caption == samples[1].captions[1]
    assert np.array_equal(np.array(image), np.array(shapes.scene(1, seed=4).render(32)))
    assert pairs.manifest["method"] == "scenes"
    batches = list(DataLoader(pairs.with_transform(pixels), batch_size=3))
    assert [len(captions) for _, captions in batches] == [3, 3, 2]
    assert batches[0][0].shape == (3, 3, 32, 32)


def test_a_labelled_set_is_a_dataset_of_its_images(tmp_path):
    write_set(tmp_path / "set", labelled=True)
    images = mmdd_ray.load_set(str(tmp_path / "set"))
    assert [label for _, label in images] == [0, 1, 0, 1]


def test_a_set_goes_to_hugging_face_with_all_that_it_knows(tmp_path):
    samples = write_set(tmp_path / "set")
    table = mmdd_ray.load_set(str(tmp_path / "set")).to_datasets()
    assert table.num_rows == 4
    row = table[2]
    assert (row["captions"], row["seed"], row["source_key"], row["label"]) == (
        list(samples[2].captions),
        2,
        "real/2",
        None,
    )
    assert np.array_equal(np.array(row["image"]), np.array(shapes.scene(2, seed=4).render(32)))


def test_a_folder_that_is_no_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no distilled set"):
        mmdd_ray.load_set(str(tmp_path))


def test_an_interrupted_run_is_opened_as_far_as_it_came(tmp_path):
    settings = mmdd_ray.settings("edge", "cc3m", {"run.dir": str(tmp_path / "run"), "data.uri": ["a", "b"]})

    def features(stage):
        stage.store.write_bytes("part-0", b"x")
        return StageResult(rows_in=1, rows_out=1)

    with RunDir.open(settings.run.dir, "edge_cc3m", "cc3m", settings) as run:
        run.stage("features", features)
    opened = mmdd_ray.load_run(str(tmp_path / "run"))
    assert (opened.settings, opened.preset, set(opened.stages)) == (settings, "cc3m", {"features"})
    with pytest.raises(UserError, match=r"no report yet; resume\(\) finishes the run"):
        opened.show()
    with pytest.raises(UserError, match="holds no distilled set"):
        len(opened.pairs)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run directory, as it has no settings\.json"):
        mmdd_ray.load_run(str(tmp_path))
    saved = {"job": "edge_cc3m", "preset": "local", "settings": {}}
    for content, says in (
        ("{", "is damaged"),
        (json.dumps(saved | {"layout": LAYOUT - 1}), "of another version"),
        (
            json.dumps(saved | {"layout": LAYOUT, "job": "old"}),
            "the job old, which this version of mmdd-ray has not",
        ),
    ):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(UserError, match=says):
            mmdd_ray.load_run(str(tmp_path))


def test_a_run_whose_data_had_credentials_is_looked_at_and_resumed_with_others(tmp_path):
    settings = mmdd_ray.settings(
        "edge", "local", {"run.dir": str(tmp_path), "data.uri": "s3://me:pw@b/x.tar"}
    )
    RunDir.open(settings.run.dir, "edge_cc3m", "local", settings).close()
    opened = mmdd_ray.load_run(str(tmp_path))
    assert opened.settings.data.uri == "s3://[redacted]@b/x.tar"
    with pytest.raises(UserError, match="had credentials, which are never saved"):
        opened.resume()


def test_evaluate_needs_a_set_and_takes_several_of_either_kind(monkeypatch):
    with pytest.raises(UserError, match=r"evaluate\(\) needs a set"):
        mmdd_ray.evaluate()
    monkeypatch.setattr(mmdd_ray.api, "distill", lambda settings: settings)
    labelled = mmdd_ray.settings("evaluate-labelled")
    assert mmdd_ray.evaluate("a", "b", settings=labelled).set == ("a", "b")
    assert mmdd_ray.evaluate("abc", settings=labelled).set == ("abc",)
    assert mmdd_ray.evaluate("a", "b").set == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "local"), ({"synthesis.pairs": 50}, "custom"), ({"run.seed": 0}, "local")]
)
def test_settings_of_a_preset_have_its_name_and_its_run_directory(monkeypatch, changes, name):
    named = []
    monkeypatch.setattr(execute, "execute", lambda settings, preset: named.append(preset))
    mmdd_ray.distill(mmdd_ray.settings("edge", "local", changes))
    mmdd_ray.distill(mmdd_ray.settings("edge", "local", changes), preset="mine")
    assert named == [name, "mine"]


def test_what_is_no_settings_is_one_sentence():
    with pytest.raises(UserError, match=r"^str holds no settings of a job; mmdd_ray\.settings"):
        mmdd_ray.distill("edge")
    with pytest.raises(UserError, match="has the changes 'runs/x'; give them by setting"):
        mmdd_ray.settings("edge", "local", "runs/x")
    with pytest.raises(
        UserError, match=r"which takes several values; give them as a list, \['equal-budget'\]"
    ):
        mmdd_ray.settings("edge", "local", {"evaluation.protocols": "equal-budget"})


def test_what_a_notebook_shows_of_a_set_and_a_run_is_a_line(tmp_path):
    write_set(tmp_path / "distilled")
    pairs = mmdd_ray.load_set(str(tmp_path / "distilled"))
    assert repr(pairs) == "<DistilledSet by scenes: 4 images, 8 pairs>"
    with pytest.raises(UserError, match=r"is a run directory; name its set, .*/distilled$"):
        mmdd_ray.load_set(str(tmp_path))
    store = Store(str(tmp_path))
    stage = StageDir("features", store, "features", {"outputs": ["x" * 999]})
    run = Run(store, {}, {"features": stage}, mmdd_ray.settings("edge"))
    assert repr(run) == f"<Run {tmp_path}: 1 stages done, without a report>"
    assert "xx" not in repr(run.stages)


def test_distill_looks_for_mistakes_before_ray_starts(tmp_path):
    settings = mmdd_ray.settings(
        "edge", "local", {"data.uri": str(tmp_path / "none.tar"), "run.dir": str(tmp_path)}
    )
    with pytest.raises(UserError, match=r"none\.tar"):
        mmdd_ray.distill(settings)
    wrong = replace(settings, finetune=replace(settings.finetune, steps="many"))
    with pytest.raises(UserError, match=r"finetune\.steps"):
        mmdd_ray.distill(wrong)
    assert not list(tmp_path.iterdir())


def test_importing_the_package_imports_neither_torch_nor_ray():
    script = "import mmdd_ray, sys; mmdd_ray.settings('edge'); print({'torch', 'ray'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_examples_in_docstrings_give_what_they_show():
    examples = 0
    for module in pkgutil.walk_packages(mmdd_ray.__path__, "mmdd_ray."):
        path = Path(mmdd_ray.__path__[0]).parent / (module.name.replace(".", "/") + ".py")
        if path.exists() and ">>> " in path.read_text():
            done = doctest.testmod(importlib.import_module(module.name))
            assert done.failed == 0, module.name
            examples += done.attempted
    assert examples >= 10
