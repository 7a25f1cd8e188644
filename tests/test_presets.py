"""Nothing that ships is stale: presets, jobs, the cluster file and the lock."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdd_ray.config.changes import changed
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.covmatch.settings import Covmatch
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.methods.execute import check
from mmdd_ray.methods.precompute.settings import Precompute
from mmdd_ray.planning.preflight import check_own_tests
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
ALL = [preset for method in METHODS.values() for preset in method.presets.values()]


@pytest.mark.parametrize("preset", ALL, ids=lambda preset: f"{preset.__module__}.{preset.__name__}")
def test_every_preset_says_what_it_is_and_builds(preset: Callable[[], Any]) -> None:
    assert preset.__doc__
    settings = preset()
    if isinstance(settings, Edge):
        assert settings.images * settings.captions.per_image == settings.synthesis.pairs
        assert settings.finetune.batch_pairs % settings.finetune.workers == 0
    if isinstance(settings, Covmatch):
        assert settings.match.real_pairs_per_worker * settings.match.workers == settings.match.real_batch


@pytest.mark.parametrize(
    "preset", [p for p in ALL if not isinstance(p(), Precompute)], ids=lambda p: p.__name__
)
def test_no_preset_tunes_on_what_it_tests_or_trains_on(preset: Callable[[], Any]) -> None:
    settings = preset()
    sources = [settings.data, *settings.evaluation.sources(settings.data).values()]
    assert len({(source.uri, source.split) for source in sources}) == len(sources)
    assert len(sources) == 3 or len(settings.classifiers.learning_rates) == 1


def test_what_a_preset_leaves_to_its_user_is_named_at_once_before_anything_is_looked_for() -> None:
    preset = METHODS["vlcp_imagenette"].presets["imagenette"]()
    with pytest.raises(UserError) as error:
        check(preset)
    told = str(error.value)
    assert told.startswith(
        "data.uri, describe.class_names, evaluation.test are not set; say where yours are, as in "
    )
    assert "--data.uri s3://YOUR-BUCKET/imagenette2/train/ --describe.class_names" in told
    with pytest.raises(UserError, match=r"^set is not set; say where yours is, as in --set s3://YOUR-BUCKET"):
        check(METHODS["evaluate"].presets["cc3m"]())


def test_students_of_other_data_are_not_tested_on_the_scenes_of_a_preset(tmp_path: Path) -> None:
    for name in ("train", "mine"):
        write_shards(Store(str(tmp_path / name)), 4, seed=7, layout="webdataset", rows_per_shard=4)
    data, mine = f"{tmp_path}/train/", f"{tmp_path}/mine/"
    presets = [METHODS["edge_cc3m"].presets["local"]()]
    both = "evaluation.val and evaluation.test are still the procedural scenes of the preset, but data.uri="
    for changes, says in (
        ({"data.uri": data}, both),
        ({"data.uri": f"{presets[0].data.uri}::{data}"}, both),
        (
            {"data.uri": data, "evaluation.test": mine},
            "evaluation.val is still .* as in --evaluation.val URI, or hold a share .* as in --evaluation.val 10%$",
        ),
    ):
        with pytest.raises(UserError, match=says):
            check_own_tests(changed(presets[0], changes, "test"), presets)
    own = {"data.uri": data, "evaluation.val": mine, "evaluation.test": "shapes:500?seed=77"}
    for changes in ({}, {"data.uri": "shapes:9?seed=8"}, own):
        check_own_tests(changed(presets[0], changes, "test"), presets)
    check_own_tests(changed(METHODS["precompute"].presets["local"](), {"data.uri": data}, "test"), presets)


@pytest.mark.parametrize(
    "preset", [method.presets["local"] for job, method in METHODS.items() if not job.startswith("evaluate")]
)
def test_a_local_preset_needs_no_network(preset: Callable[[], Any]) -> None:
    check(preset())


@pytest.mark.parametrize("job", METHODS)
def test_help_shows_every_setting_without_torch_or_ray(job: str) -> None:
    preset, settings = list(METHODS[job].presets.items())[-1]
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['jobs/{job}.py', '{preset}', '--help']\n"
        "try:\n"
        f"    runpy.run_path('jobs/{job}.py', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for setting in ("--run.dir", "--data.uri", "--features.clip"):
        assert setting in shown.stdout
    assert settings().features.clip in shown.stdout
