"""Plans: the work of each stage, and times scaled from an earlier run."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mmdd_ray.config import Data, Plan
from mmdd_ray.data.inventory import look_at
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.engine.cluster import Devices
from mmdd_ray.engine.memory import peak_bytes
from mmdd_ray.engine.progress import duration
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.edge.presets import cc3m as edge_cc3m
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.execute import method_of
from mmdd_ray.methods.precompute.presets import local as precompute_local
from mmdd_ray.methods.vlcp.presets import imagenet1k as vlcp_imagenet1k
from mmdd_ray.methods.vlcp.presets import local as vlcp_local
from mmdd_ray.planning.costs import StageCost, planned_as
from mmdd_ray.planning.fit import check_fit
from mmdd_ray.planning.plan import plan_run, planned_stages
from mmdd_ray.planning.reference import reference_run, reference_times
from mmdd_ray.planning.run_plan import RunPlan
from mmdd_ray.planning.show import render
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
LAPTOP = Devices(cpus=2.0, gpus=0.0, gpu_types=())
ONE_GPU = Devices(cpus=2.0, gpus=1.0, gpu_types=("H100",))
CLUSTER = Devices(cpus=512.0, gpus=64.0, gpu_types=("H100",))

look_once = cache(look_at)  # of scenes it draws five hundred


@pytest.fixture(autouse=True)
def looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("method", "vlcp"):
        monkeypatch.setattr(f"mmdd_ray.methods.{method}.look_at", look_once)


def costs(settings: Any) -> list[StageCost]:
    return list(method_of(settings).costs(settings, look_once(settings.data)))


def planned(settings: Any, devices: Devices) -> RunPlan:
    return plan_run(settings, method_of(settings), devices, METHODS)


def units(settings: Any) -> dict[str, float]:
    return {cost.stage: cost.units for cost in costs(settings)}


def write_run(
    folder: Path,
    settings: Any,
    job: str,
    seconds: dict[str, tuple[float, float | None]],
    devices: Devices = LAPTOP,
) -> str:
    """A finished run, as far as plans look at it: seconds and start-up of each stage."""
    store, rows = Store(str(folder)), look_once(settings.data).rows
    store.write_json("settings.json", {"job": job, "preset": "local", "settings": resolved(settings)})
    for stage, (took, startup) in seconds.items():
        manifest = {
            "stage": stage,
            "rows_in": rows,
            "rows_out": rows,
            "seconds": took,
            "startup_seconds": startup,
            "peak_bytes": 900_000_000,
            "resumed": False,
            "devices": devices.as_json(),
            "extra": {"pairs": 5 * rows, "classes": 48},
        }
        store.write_json(f"{stage}/manifest.json", manifest)
    return store.uri


def test_the_work_of_each_stage_is_counted_from_the_settings() -> None:
    assert units(edge_local()) == {
        "features": 2000,
        "finetune": 60 * 32,
        "synthesize": 400 * 20 * 2,  # candidates, steps, with and without the prompt
        "coresets": 2000
        * (100 * 2 + 1),  # a pass for each pick of herding and of k-center, one for clip-score
        "evaluate": 6 * (3 + 2) * 80 * 64,  # sets, seeds and rates
    }
    covmatch = covmatch_local()
    counted = {
        "features": 2000,
        "moments": 2000,
        "match": 60 * 100,  # real pairs are encoded once, for their moments
        "coresets": 2000 * (100 * 2 + 1),
        "evaluate": 6 * (3 + 2) * 40 * 64,
    }
    assert units(covmatch) == counted
    published = replace(covmatch.match, real_moments="batches", encoder_updates=True)
    del counted["moments"]
    assert units(replace(covmatch, match=published)) == counted | {"match": 60 * (100 + 128)}
    edge = edge_local()
    audited = units(replace(edge, evaluation=replace(edge.evaluation, audit=True)))
    # the set and at most so many test images beside all real ones
    assert audited == units(edge) | {"audit": 2000 * (100 + 1000)}
    refined = replace(edge, refine=replace(edge.refine, iterations=60))
    assert units(refined) == units(edge) | {"moments": 2000, "refine": 60 * 100}
    assert list(units(refined)).index("refine") < list(units(refined)).index("coresets")
    vlcp = vlcp_local()
    found = units(vlcp)
    steps = vlcp.synthesis.inference_steps * 2
    assert found["prompts"] == 48 * 2 * steps
    assert found["synthesize"] == pytest.approx(found["prompts"] * vlcp.synthesis.strength)
    assert found["latents"] == found["prototypes"] == 2000
    assert found["evaluate"] == 7 * 3 * 100 * 64
    assert "describe" not in found  # the data's own captions
    assert units(precompute_local()) == {"features": 2000}


def test_the_coresets_are_planned_by_runs_that_had_no_clip_score() -> None:
    settings = edge_local()
    for baselines, expected in (
        (("herding", "k-center", "clip-score"), 2000 * 201),
        (("clip-score",), 2000),
        (("random", "full"), None),
    ):
        asked = replace(settings, evaluation=replace(settings.evaluation, baselines=baselines))
        assert units(asked).get("coresets") == expected
    before = replace(settings.evaluation, baselines=("random", "herding", "k-center", "full"))
    uses = [
        [cost.uses for cost in costs(one) if cost.stage == "coresets"]
        for one in (settings, replace(settings, evaluation=before))
    ]
    assert uses[0] == uses[1]


@pytest.mark.parametrize(
    "job", ["edge_cc3m", "covmatch_flickr30k", "vlcp_imagenette", "trajectory_flickr30k"]
)
def test_times_that_come_with_the_package_tell_of_every_stage(job: str) -> None:
    assert planned(METHODS[job].presets["local"](), LAPTOP).seconds is not None


def drawn(settings: Any, draws: int) -> Any:
    return replace(settings, evaluation=replace(settings.evaluation, draws=draws))


def test_draws_multiply_what_depends_on_the_seed(tmp_path: Path) -> None:
    edge, once = drawn(edge_local(), 3), units(edge_local())
    again = {f"draws/*/{stage}": once[stage] for stage in ("finetune", "synthesize")} | {
        "draws/*/coresets": 2000 * 101
    }  # k-center and clip-score
    evaluated = (6 + 2 * 4) * (3 + 2) * 80 * 64  # further draws of EDGE and of three baselines
    assert units(edge) == once | again | {"evaluate": evaluated}
    assert {cost.times for cost in costs(edge) if cost.stage in again} == {2}
    covmatch = covmatch_local()
    assert set(units(drawn(covmatch, 2))) - set(units(covmatch)) == {"draws/*/match", "draws/*/coresets"}
    repeated = set(units(drawn(vlcp_local(), 2))) - set(units(vlcp_local()))
    assert repeated == {f"draws/*/{stage}" for stage in ("finetune", "prototypes", "synthesize", "prompts")}

    done = write_run(
        tmp_path, edge_local(), "edge_cc3m", {"features": (30.0, 10.0), "finetune": (50.0, 20.0)}
    )
    plan = planned(replace(edge, plan=Plan(like=done)), LAPTOP)
    seconds = {one.cost.stage: one.seconds for one in plan.stages}
    assert seconds["draws/*/finetune"] == pytest.approx(2 * 50)
    assert "2 × 1,920 pairs" in render(plan)
    assert plan.driver_bytes["synthesis.pairs"] == (5 + 2 * 4) * 100 * 3 * 32**2
    kept = Store(str(tmp_path / "kept"))
    kept.write_json("plan.json", plan.as_json())
    assert planned_stages(kept)[planned_as("draws/2/finetune")]["seconds"] == pytest.approx(50)
    assert planned_stages(kept)[planned_as("finetune")]["seconds"] == pytest.approx(50)
    # a run of several draws tells as much as one of its first
    like = write_run(
        tmp_path / "like", edge, "edge_cc3m", {"features": (30.0, 10.0), "finetune": (50.0, 20.0)}
    )
    assert (
        planned(replace(edge, plan=Plan(like=like)), LAPTOP).as_json()["stages"] == (plan.as_json()["stages"])
    )


def test_time_is_that_of_an_earlier_run_scaled_to_the_work(tmp_path: Path) -> None:
    done = write_run(
        tmp_path, edge_local(), "edge_cc3m", {"features": (30.0, 10.0), "finetune": (50.0, None)}
    )
    like = Plan(like=done)
    larger = replace(
        edge_local(), data=Data(uri="shapes:10000?seed=1"), plan=replace(like, gpu_hour_price=2.5)
    )
    plan = planned(larger, LAPTOP)
    seconds = {one.cost.stage: one.seconds for one in plan.stages}
    assert seconds["features"] == pytest.approx(10 + 5 * 20)  # five times the pairs, one start
    assert seconds["finetune"] == pytest.approx(50)
    assert seconds["synthesize"] is None
    assert plan.seconds is None
    shown = render(plan)
    assert "not known: nothing like it was measured on devices of this kind, or not for long enough" in shown
    (line,) = [
        line for line in shown.splitlines() if line.startswith("             synthesize: tiny-sd at 32 px")
    ]
    assert line.endswith("; takes 20 s of work and 2 passes of the U-Net to know")

    # six steady seconds tell of three times the work, not of five times; two are not told from the start
    short = write_run(tmp_path / "short", edge_local(), "edge_cc3m", {"features": (30.0, 24.0)})
    burst = write_run(tmp_path / "burst", edge_local(), "edge_cc3m", {"features": (30.0, 28.0)})
    for done, rows, expected in ((short, 6000, 24 + 3 * 6), (short, 10_000, None), (burst, 6000, 3 * 30)):
        data = Data(uri=f"shapes:{rows}?seed=1")
        asked = replace(precompute_local(), data=data, plan=Plan(like=done))
        assert planned(asked, LAPTOP).seconds == (expected and pytest.approx(expected))

    # the features of another job are the same work
    precompute = replace(precompute_local(), data=larger.data, plan=larger.plan)
    wide = replace(precompute, features=replace(precompute.features, max_actors=4))
    on_gpu = write_run(tmp_path / "gpu", edge_local(), "edge_cc3m", {"features": (30.0, 10.0)}, ONE_GPU)
    wide = replace(wide, plan=replace(wide.plan, like=on_gpu))
    (line,) = (plan := planned(wide, CLUSTER)).stages
    assert (line.parallel, line.seconds) == (4, pytest.approx(10 + 25))
    assert line.gpu_hours == pytest.approx(35 * 4 / 3600)
    assert "0.0 GPU-hours, 0.10 at 2.5 an hour" in render(plan)
    wide = replace(wide, plan=larger.plan)
    assert planned(wide, LAPTOP).stages[0].gpu_hours == 0
    # where a start could not be told from the work, nothing is said of much more work
    longer = write_run(tmp_path / "longer", edge_local(), "edge_cc3m", {"features": (90.0, None)})
    assert planned(replace(precompute, plan=Plan(like=longer)), LAPTOP).seconds is None
    other = replace(precompute, features=replace(precompute.features, image_px=64))
    assert planned(other, LAPTOP).seconds is None


def test_times_of_other_devices_tell_nothing(tmp_path: Path) -> None:
    features = {"features": (130.0, 10.0)}
    cpu = write_run(tmp_path / "cpu", precompute_local(), "precompute", features)
    gpu = write_run(tmp_path / "gpu", precompute_local(), "precompute", features, ONE_GPU)
    other, unknown = replace(CLUSTER, gpu_types=("L4",)), replace(CLUSTER, gpu_types=())

    def seconds(like: str, devices: Devices) -> float | None:
        return planned(replace(precompute_local(), plan=Plan(like=like)), devices).seconds

    assert seconds(cpu, LAPTOP) == seconds(gpu, CLUSTER) == seconds(gpu, unknown) == pytest.approx(130)
    assert [seconds(cpu, CLUSTER), seconds(gpu, LAPTOP), seconds(gpu, other)] == [None] * 3
    plan = planned(replace(precompute_local(), plan=Plan(like=cpu)), CLUSTER)
    assert plan.stages[0].gpu_hours is None
    assert "not known" in render(plan)


def test_a_sample_tells_of_ten_thousand_times_its_work_and_no_more(tmp_path: Path) -> None:
    """Two steps that took minutes say little of a hundred thousand."""
    sampled = replace(edge_local(), finetune=replace(edge_local().finetune, steps=2))
    like = Plan(
        like=write_run(tmp_path, sampled, "edge_cc3m", {"features": (9.0, 5.0), "finetune": (130.0, 10.0)})
    )

    def finetuned(steps: int) -> RunPlan:
        return planned(
            replace(edge_local(), plan=like, finetune=replace(edge_local().finetune, steps=steps)), LAPTOP
        )

    def seconds(plan: RunPlan) -> float | None:
        return next(one.seconds for one in plan.stages if one.cost.stage == "finetune")

    assert seconds(finetuned(20_000)) == pytest.approx(10 + 60 * 20_000)
    assert "13 d 21 h" in render(finetuned(20_000))
    assert seconds(finetuned(20_001)) is None
    assert "takes 20 s of work and 576 pairs to know" in render(finetuned(180_000))


@pytest.mark.parametrize(
    ("hours", "says"), [(1, "1 h 00 min"), (48, "48 h 00 min"), (49, "2 d 01 h"), (45_424, "1892 d 16 h")]
)
def test_hours_above_48_are_days(hours: int, says: str) -> None:
    assert duration(3600 * hours) == says


def test_the_run_to_plan_by_may_be_of_another_job(tmp_path: Path) -> None:
    features = {"features": (30.0, 10.0)}
    precompute = write_run(tmp_path / "precompute", precompute_local(), "precompute", features)
    plan = planned(replace(edge_local(), plan=Plan(like=precompute)), LAPTOP)
    assert {one.cost.stage: one.seconds for one in plan.stages}["features"] == pytest.approx(30)

    # its fine-tuning has losses of its own, which tell nothing of one that has none
    edge = write_run(tmp_path / "edge", edge_local(), "edge_cc3m", {**features, "finetune": (50.0, None)})
    plan = planned(replace(vlcp_local(), plan=Plan(like=edge)), LAPTOP)
    assert {one.cost.stage: one.seconds for one in plan.stages}["finetune"] is None

    unknown = write_run(tmp_path / "unknown", precompute_local(), "distil_all", features)
    with pytest.raises(UserError, match="is of the job 'distil_all', which is not known here"):
        planned(replace(edge_local(), plan=Plan(like=unknown)), LAPTOP)


def test_memory_is_that_of_an_earlier_run_with_the_same_batches(tmp_path: Path) -> None:
    done = Store(write_run(tmp_path, edge_local(), "edge_cc3m", {"features": (30.0, 10.0)}))
    asked = replace(precompute_local(), plan=Plan(like=done.uri))
    (line,) = (plan := planned(asked, LAPTOP)).stages
    assert line.peak_bytes == 900_000_000
    assert "900.0 MB" in render(plan)
    larger = replace(asked, features=replace(asked.features, chunk_pairs=512))
    (line,) = (plan := planned(larger, LAPTOP)).stages
    assert line.peak_bytes is None
    assert " ? " in render(plan)
    (line,) = (plan := planned(asked, CLUSTER)).stages
    assert line.counted  # a process tells nothing of a GPU
    assert "about 554" in render(plan)
    manifest = done.read_json("features/manifest.json")
    del manifest["peak_bytes"]  # as older versions wrote it
    done.write_json("features/manifest.json", manifest)
    assert planned(asked, LAPTOP).stages[0].peak_bytes is None


def test_batches_of_the_pairs_that_agree_read_the_source_more_often() -> None:
    """Streamed, an epoch holds fewer of them; and fewer fit where all would not."""
    local = covmatch_local()
    covmatch = replace(local, match=replace(local.match, real_moments="batches", encoder_updates=True))
    source = look_at(covmatch.data)
    tight = 3 * 32**2 * 1000 // 2**20 + 1  # MiB for a thousand images

    def passes(cache_mib: int, images: float) -> float:
        fraction = images / source.captions_per_row  # if no image stays with two captions
        asked = replace(
            covmatch,
            match=replace(covmatch.match, cache_mib=cache_mib),
            features=replace(covmatch.features, clip_score_fraction=fraction),
        )
        return next(cost.passes for cost in method_of(asked).costs(asked, source) if cost.stage == "match")

    assert passes(0, 0.25) == pytest.approx(4 * passes(0, source.captions_per_row))
    assert passes(tight, source.captions_per_row) > 1
    assert passes(tight, 0.5) == 1


def test_a_process_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process().memory_info().rss
    assert own / 2 < peak_bytes() < 100 * own
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: True, max_memory_reserved=lambda: 5 * 2**30)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert peak_bytes() == 5 * 2**30


def test_a_run_that_says_nothing_of_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan\.like=.*nothing is no run that has finished its first stage"):
        reference_run(Store(str(tmp_path / "nothing")))
    done = Store(write_run(tmp_path, edge_local(), "edge_cc3m", {"features": (30.0, 10.0)}))
    manifest = done.read_json("features/manifest.json")
    done.write_json("features/manifest.json", manifest | {"resumed": True})
    settings = replace(edge_local(), plan=Plan(like=done.uri))
    times, where = reference_times(settings, "edge_cc3m", METHODS)
    assert "features" not in times
    assert f"the run {done.uri}, but for features, in which it was interrupted" in where
    done.write_json("features/manifest.json", manifest)
    held = done.read_json("settings.json")
    done.write_json("settings.json", held | {"settings": {"data": {}}})
    settings = replace(edge_local(), plan=Plan(like=done.uri))
    with pytest.raises(UserError, match="was made by another version of mmdd-ray"):
        planned(settings, LAPTOP)


def test_rows_that_were_not_counted_are_called_about(tmp_path: Path) -> None:
    write_shards(Store(str(tmp_path)), 1700, seed=1, layout="webdataset", rows_per_shard=850)
    assert "about 1," in render(planned(replace(precompute_local(), data=Data(uri=str(tmp_path))), LAPTOP))


def test_one_shard_and_one_pair_are_counted_as_one() -> None:
    plan = planned(precompute_local(), LAPTOP)
    few = replace(plan, source=replace(plan.source, rows=1, exact=False, shards=1))
    assert "\nsource       about 1 pair in 1 shard" in f"\n{render(few)}"
    assert "1 pairs" not in render(few)
    assert "1 shards" not in render(few)


def fits(settings: Any, devices: Devices) -> None:
    check_fit(settings, planned(settings, devices))


def test_what_cannot_fit_is_refused_with_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = replace(edge_cc3m(), data=edge_local().data)
    fits(settings, CLUSTER)
    with pytest.raises(UserError, match=r"finetune\.workers=8, but the cluster has room for 4"):
        fits(settings, replace(CLUSTER, gpus=4.0))
    many = replace(settings, captions=replace(settings.captions, min_actors=65))
    refined = replace(
        edge_local(), refine=replace(edge_local().refine, iterations=1, workers=8, gpus_per_worker=1.0)
    )
    with pytest.raises(UserError, match=r"refine\.workers=8, but the cluster has room for 1; lower it"):
        fits(refined, LAPTOP)
    with pytest.raises(UserError, match=r"the stage recaption needs 65 GPUs, but the cluster has at most 64"):
        fits(many, CLUSTER)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(UserError, match=r"take 0\.0 GiB in .*; set TMPDIR to another folder"):
            fits(edge_local(), LAPTOP)
    memory = SimpleNamespace(available=2**20, total=3 * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(UserError, match=r"holds 0\.0 GiB in memory, most of it for evaluation\.max_pairs"):
        fits(edge_local(), LAPTOP)
    done = write_run(tmp_path, edge_local(), "edge_cc3m", {"features": (30.0, 10.0)})
    four = replace(precompute_local(), plan=Plan(like=done))
    four = replace(four, features=replace(four.features, max_actors=4))
    machine = replace(LAPTOP, cpus=8.0)
    with pytest.raises(
        UserError, match=r"features would hold 0\.8 GiB in each of 4 .* has 3\.0 GiB; lower run\.num"
    ):
        check_fit(four, planned(four, machine))
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # then actors are on other machines, the driver is still here
    check_fit(four, planned(four, machine))
    with pytest.raises(UserError, match=r"holds 0\.0 GiB in memory, most of it for evaluation\.max_pairs"):
        fits(edge_local(), LAPTOP)
    memory.available, memory.total = 2**30, 4 * 2**30
    fits(edge_local(), LAPTOP)
    monkeypatch.delenv("RAY_ADDRESS")
    check_fit(four, planned(four, machine))


def test_plans_of_cluster_presets_need_no_model() -> None:
    labelled = Data(uri="shapes:2000?seed=1&labelled=1")
    vlcp = vlcp_imagenet1k()
    vlcp = replace(vlcp, data=labelled, describe=replace(vlcp.describe, class_names=None))
    stages = {one.cost.stage: one for one in planned(vlcp, CLUSTER).stages}
    assert stages["describe"].parallel == 64
    assert stages["prototypes"].parallel == 511  # a CPU for the readers
    assert stages["latents"].cost.writes_bytes == 2000 * 4 * 64 * 64 * 2
    assert stages["finetune"].cost.writes_bytes is None  # of a generator on a hub
    plan = planned(vlcp, CLUSTER)
    assert "in the run directory, beside what finetune writes" in render(plan)


def test_fine_tuning_leaves_its_generator_in_float32(tmp_path: Path) -> None:
    from mmdd_ray.models.generators.stable_diffusion import load_pipeline, save_pipeline

    save_pipeline(load_pipeline("tiny-sd"), tmp_path)
    stages = {one.cost.stage: one.cost for one in planned(edge_local(), LAPTOP).stages}
    saved = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert stages["finetune"].writes_bytes == pytest.approx(saved, rel=0.01)


def test_planned_stages_are_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert planned_stages(store) == {}
    done = write_run(tmp_path / "like", edge_local(), "edge_cc3m", {"features": (30.0, 10.0)})
    plan = planned(replace(edge_local(), plan=Plan(like=done)), LAPTOP)
    store.write_json("plan.json", plan.as_json())
    found = planned_stages(store)
    assert found["features"] == {
        "seconds": pytest.approx(30.0),
        "gpus": 0.0,
        "gpu_hours": 0.0,
        "peak_bytes": found["features"]["peak_bytes"],
    }
    assert (found["finetune"]["seconds"], found["finetune"]["gpu_hours"]) == (None, None)


def test_asking_for_the_plan_starts_no_run(tmp_path: Path) -> None:
    job = [sys.executable, "jobs/edge_cc3m.py", "local", "--plan", "--run.dir", str(tmp_path / "run")]
    shown = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.startswith("data            2,000 procedural scenes\n")
    assert "\nsource       2,000 pairs in 2 shards\n" in shown.stdout
    assert not (tmp_path / "run").exists()
