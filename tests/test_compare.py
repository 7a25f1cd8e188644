import json
from dataclasses import replace
from statistics import mean, stdev

import pytest
import timm
from safetensors.torch import save_file

from mmdd_ray.config import Evaluation, Run, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import Row
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.bench import Bench, _prepare, _train_and_test
from mmdd_ray.evaluation.by_pairs import by_pairs
from mmdd_ray.evaluation.compare import compare, has_all
from mmdd_ray.evaluation.metrics import chance
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.tasks.retrieval import Retrieval
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.protocols import PUBLISHED_FOR_PAIRS, Training, pair_protocol
from mmdd_ray.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SHORT = Students(embed_dim=32, steps=3, batch_pairs=8, learning_rates=(0.01, 0.03))
EVALUATION = Evaluation(val="val", test="test", seeds=3)
SHORT_TASK = Retrieval(SHORT, pair_protocol("equal-budget", SHORT))


def pair_set(start: int, stop: int) -> PairSet:
    rows = [
        Row("shapes", i, pair["key"], pair["image"], pair["captions"][:2], None, None)
        for i, pair in enumerate(shapes.pairs(start, stop, seed=5))
    ]
    return PairSet.from_rows(rows, image_px=32, max_pixels=10**6)[0]


def stage_in(folder) -> StageDir:
    return StageDir("evaluate", Store(str(folder)), "evaluate")


def without_seconds(report):
    """The report but for its clock times, which are those of the attempt that trained the student."""
    sets = {name: {k: v for k, v in one.items() if k != "seconds"} for name, one in report["sets"].items()}
    return report | {"sets": sets}


def test_a_comparison_reports_its_students_and_goes_on_where_it_was_interrupted(tmp_path):
    import ray

    sets = {"few": pair_set(0, 4), "many": ray.put(pair_set(0, 16))}
    val, test = pair_set(100, 110), pair_set(200, 220)
    first = compare(sets, val, test, SHORT, EVALUATION, 7, stage_in(tmp_path))
    assert first == json.loads(json.dumps(first, allow_nan=False))
    assert first["chance"] == chance(20, 2)
    few = first["sets"]["few"]
    assert (few["pairs"], few["images"], len(few["loss_curve"])) == (8, 4, 3)

    files = {path.name: path for path in (tmp_path / "students").iterdir()}
    assert len(files) == 2 * (2 + 3)
    rate = few["learning_rate"]
    on_test = [json.loads(files[f"few-lr{rate}-seed{seed}.json"].read_text()) for seed in (1, 2, 3)]
    for name, found in few["metrics"].items():
        runs = [student["metrics"][name] for student in on_test]
        assert found == {
            "runs": runs,
            "mean": pytest.approx(mean(runs)),
            "std": pytest.approx(stdev(runs)),
        }
    assert few["metrics"]["mean_recall"]["std"] > 0  # other seeds, other students

    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    lost = f"few-lr{rate}-seed2.json"
    files[lost].unlink()
    again = compare(sets, val, test, SHORT, EVALUATION, 7, stage_in(tmp_path))
    assert without_seconds(again) == without_seconds(first)
    after = {name: path.stat().st_mtime_ns for name, path in files.items()}
    assert {name for name in files if after[name] != before[name]} == {lost}

    # a student of other pairs is no result of these
    changed = compare(sets | {"few": pair_set(4, 8)}, val, test, SHORT, EVALUATION, 7, stage_in(tmp_path))
    assert changed["sets"]["few"]["metrics"] != few["metrics"]
    assert changed["sets"]["many"] == again["sets"]["many"]


def test_more_draws_of_a_set_keep_its_students_and_choose_one_rate_for_all(tmp_path):
    first, second, other = pair_set(0, 4), pair_set(4, 8), pair_set(8, 12)
    val, test = pair_set(100, 110), pair_set(200, 220)
    settings, two = replace(SHORT, learning_rates=(0.01, 0.03)), replace(EVALUATION, seeds=2)
    once = compare({"few": first, "other": other}, val, test, settings, two, 7, stage_in(tmp_path))
    assert "std_between_draws" not in once["sets"]["few"]["metrics"]["ir@1"]
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "students").iterdir()}

    again = compare(
        {"few": [first, second], "other": [other]}, val, test, settings, two, 7, stage_in(tmp_path)
    )
    found = again["sets"]["few"]
    assert (found["draws"], again["sets"]["other"]["draws"]) == (2, 1)
    assert without_seconds(again)["sets"]["other"] == without_seconds(once)["sets"]["other"]
    students = {path.name: json.loads(path.read_text()) for path in (tmp_path / "students").iterdir()}
    assert all((tmp_path / "students" / name).stat().st_mtime_ns == at for name, at in before.items())
    for rate in settings.learning_rates:
        on_val = [students[f"few{draw}-lr{rate}-seed0.json"]["metrics"] for draw in ("", "-draw1")]
        assert found["on_val"][str(rate)] == pytest.approx(mean(one["mean_recall"] for one in on_val))
    rate = found["learning_rate"]
    assert rate == float(max(found["on_val"], key=found["on_val"].get))
    runs = [
        students[f"few{draw}-lr{rate}-seed{seed}.json"]["metrics"]["mean_recall"]
        for draw in ("", "-draw1")
        for seed in (1, 2)
    ]
    assert found["metrics"]["mean_recall"]["runs"] == runs
    assert found["metrics"]["mean_recall"]["draw_means"] == pytest.approx([mean(runs[:2]), mean(runs[2:])])


def test_the_learning_rate_is_chosen_on_validation_pairs_only(tmp_path):
    pairs = pair_set(0, 24)
    wrong = PairSet(pairs.images, pairs.captions[1:] + pairs.captions[:1])  # where learning can only harm
    settings = replace(SHORT, steps=40, batch_pairs=24, learning_rates=(0.0, 0.03))
    one_seed = replace(EVALUATION, seeds=1)
    chosen = {}
    for name, val, test in (("right", pairs, wrong), ("wrong", wrong, pairs)):
        report = compare({"all": pairs}, val, test, settings, one_seed, 0, stage_in(tmp_path / name))
        chosen[name] = report["sets"]["all"]["learning_rate"]
        val_recall = report["sets"]["all"]["on_val"]
        assert chosen[name] == float(max(val_recall, key=val_recall.get))
        assert report["sets"]["all"]["metrics"]["ir@1"]["std"] == 0.0
    assert chosen == {"right": 0.03, "wrong": 0.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"image_px": 48}, r"^the pairs have images of 32 px, but students\.image_px=48$"),
        ({"text_model": "tiny-none"}, r"^there is no model 'tiny-none' in the zoo"),  # of the task before
    ],
)
def test_an_error_of_a_worker_arrives_as_what_it_is(tmp_path, setting, message):
    pairs = pair_set(0, 2)
    with pytest.raises(ValueError, match=message):
        compare({"few": pairs}, pairs, pairs, replace(SHORT, **setting), EVALUATION, 0, stage_in(tmp_path))


@pytest.mark.parametrize("gpus", [0, 0.25])
def test_only_workers_without_a_gpu_are_used_again(tmp_path, monkeypatch, gpus):
    monkeypatch.setattr(
        "mmdd_ray.engine.cluster.actor_resources", lambda _: {"num_cpus": 0.5, "num_gpus": gpus}
    )
    bench = Bench({}, {}, SHORT_TASK, gpus, 0, Store(str(tmp_path)))
    for task in (bench._train, bench._prepare):
        assert task._default_options["num_gpus"] == gpus
        assert task._default_options.get("max_calls", 0) == (1 if gpus else 0)  # 0: without end


def test_a_full_gpu_names_the_setting_to_lower(monkeypatch):
    import torch

    def full(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("mmdd_ray.evaluation.tasks.students.train_student", full)
    monkeypatch.setattr("mmdd_ray.evaluation.tasks.students.frozen_text_features", full)
    pairs = pair_set(0, 2)
    with pytest.raises(UserError, match=r"lower students\.batch_pairs"):
        _train_and_test(pairs, None, pairs, None, SHORT_TASK, 0.01, 0, "cpu")
    with pytest.raises(UserError, match=r"lower students\.batch_pairs"):
        _prepare(SHORT_TASK, pairs, "cpu")


def test_settings_that_leave_no_student_are_refused(tmp_path):
    pairs = pair_set(0, 2)
    with pytest.raises(ValueError, match=r"evaluation\.seeds=0"):
        compare({"few": pairs}, pairs, pairs, SHORT, replace(EVALUATION, seeds=0), 0, stage_in(tmp_path))


def save_image_encoder(folder) -> str:
    """A folder with a small ResNet of timm's, of random weights."""
    model = timm.create_model("test_resnet", num_classes=0)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": {"num_classes": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_protocols_and_other_students_are_panels_of_their_own(tmp_path, monkeypatch):
    lors = PUBLISHED_FOR_PAIRS["lors-frozen-text"]

    def training(pairs: int) -> Training:
        return Training.in_epochs(pairs, batch=8, epochs=3, looks_after=(1, 2))

    monkeypatch.setitem(PUBLISHED_FOR_PAIRS, lors.name, replace(lors, training=training, students=2))
    other = save_image_encoder(tmp_path / "other")
    evaluation = replace(
        EVALUATION, seeds=1, protocols=("equal-budget", lors.name), students=(f"{other}+tiny-bert",)
    )
    sets = {"few": pair_set(0, 4), "full": pair_set(0, 16)}
    val, test = pair_set(100, 110), pair_set(200, 220)
    stage = stage_in(tmp_path / "run")
    students = replace(SHORT, learning_rates=(0.01,))
    found = compare(sets, val, test, students, evaluation, 7, stage)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    panels = [found, *found["others"]]
    assert [(panel["protocol"]["name"], panel["models"].split(" + ")[0]) for panel in panels] == [
        ("equal-budget", "tiny-nf"),
        ("equal-budget", other),
        ("lors-frozen-text-small", "tiny-nf"),
        ("lors-frozen-text-small", other),
    ]
    assert [list(panel["sets"]) for panel in panels] == [["few", "full"]] * 2 + [["few"]] * 2
    few = panels[2]["sets"]["few"]
    assert (few["learning_rate"], len(few["metrics"]["mean_recall"]["runs"]), few["draws"]) == (0.1, 2, 1)
    assert [look["steps"] for look in few["looks"]] == [1, 2, 3]
    # each student's best look is at least its last one, and the last look is the figure that is reported
    pairs = zip(few["best_look"]["mean_recall"]["runs"], few["metrics"]["mean_recall"]["runs"], strict=True)
    assert all(best >= last for best, last in pairs)
    assert few["looks"][-1]["mean_recall"] == pytest.approx(few["metrics"]["mean_recall"]["mean"])
    assert found["sets"]["few"]["best_look"] is None

    stage.store.write_json("evaluation.json", found)
    assert has_all(stage.store, students, evaluation)
    assert not has_all(stage.store, students, replace(evaluation, protocols=("equal-budget",)))
    assert not has_all(stage.store, students, replace(evaluation, seeds=evaluation.seeds + 1))
    folders = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert len(folders) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*-seed*.json")}
    again = compare(sets, val, test, students, replace(evaluation, students=()), 7, stage)
    assert again["others"] == [panels[2]]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_curve_by_pairs_is_of_parts_that_hold_each_other(tmp_path, capfd):
    import ray

    settings = replace(edge_local(), students=replace(SHORT, learning_rates=(0.01,)), run=Run(seed=3))
    settings = replace(settings, evaluation=replace(EVALUATION, seeds=1, curve_pairs=(8, 2, 4)))
    whole = pair_set(0, 6)
    sets = {"few": [ray.put(whole)]}
    val, test = pair_set(100, 110), pair_set(200, 220)
    stage = stage_in(tmp_path)
    compared = compare(sets, val, test, settings.students, settings.evaluation, 3, stage)
    curve = by_pairs(sets, val, test, settings, compared, stage)["few"]
    assert [(one["images"], one["pairs"]) for one in curve] == [(2, 4), (4, 8), (6, 12)]
    assert curve[-1]["mean"] == compared["sets"]["few"]["metrics"]["mean_recall"]["mean"]
    assert "few has 6 images, so parts of 8 are left out" in capfd.readouterr().out
    stage.store.write_json("evaluation.json", compared | {"curve_pairs": [8, 2, 4]})
    assert has_all(stage.store, settings.students, settings.evaluation)
    assert not has_all(stage.store, settings.students, replace(settings.evaluation, curve_pairs=(2,)))
