"""CovMatch's loop on Ray Train: two workers, one of them killed; the pairs that they share; their mistakes."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from mmdd_ray.config import Data, Features, Run
from mmdd_ray.data import shapes
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.ray_train import Placement, Worker, train
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.methods.covmatch.presets import local as covmatch_local
from mmdd_ray.methods.covmatch.settings import Covmatch, Match
from mmdd_ray.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SETTINGS = replace(
    covmatch_local(),
    run=Run(seed=4),
    data=Data(uri="shapes:24?seed=1&world=clean", rows_per_shard=6),
    features=Features(),
    match=Match(
        pairs=6,
        iterations=6,
        real_batch=8,
        restart_iterations=4,
        checkpoint_iterations=2,
        embed_dim=16,
        workers=2,
    ),
)


@pytest.fixture
def half_a_cpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two workers beside the readers on two CPUs."""
    half = {"num_cpus": 0.5, "num_gpus": 0}
    monkeypatch.setattr("mmdd_ray.engine.ray_train.pool_size", lambda actors, gpus: 2)
    monkeypatch.setattr("mmdd_ray.engine.ray_train.actor_resources", lambda gpus: half)


def learnt_in(folder: Path, settings: Covmatch = SETTINGS) -> StageResult:
    from mmdd_ray.matching.learn import learn

    features: Any = SimpleNamespace(duplicates=list, addresses=[("shapes", i) for i in range(24)])
    drawn = [shapes.scene(index, seed=9) for index in range(6)]
    images = np.stack([np.asarray(scene.render(32)) for scene in drawn])
    start = PairSet(images, [scene.captions()[:1] for scene in drawn])
    stage = StageDir("match", Store(str(folder)), "match")
    stage.store.write_json("start.json", {})
    return learn(stage, features, start, None, settings)


def pairs_in(folder: Path) -> LearntPairs:
    return LearntPairs.from_bytes((folder / "learnt_pairs.safetensors").read_bytes())


def is_ours(process: Path) -> bool:
    """Whether this process is its ancestor: another Ray on the machine has workers, too."""
    pid = int(process.name)
    while pid > 1:
        if pid == os.getpid():
            return True
        stat = Path(f"/proc/{pid}/stat")
        pid = int(stat.read_text().rpartition(")")[2].split()[1]) if stat.exists() else 0
    return False


def kill_a_worker_after(checkpoint: Path, killed: list[int]) -> None:
    """SIGKILL to one of the training's workers, once there is a checkpoint."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not killed:
        if list(checkpoint.parent.glob(checkpoint.name)):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    title = (process / "cmdline").read_bytes()
                except OSError:  # ended meanwhile
                    continue
                if title.startswith(b"ray::RayTrainWorker") and not killed and is_ours(process):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(int(process.name))
        time.sleep(0.01)


@pytest.mark.long
def test_two_workers_learn_from_cached_pairs(ray_cluster, half_a_cpu_each, tmp_path):
    whole = learnt_in(tmp_path / "whole")
    assert sorted(whole.outputs or []) == ["learnt_pairs.safetensors", "losses.parquet", "start.json"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == sorted(whole.outputs or [])
    losses = Store(str(tmp_path / "whole")).read_parquet("losses.parquet").to_pydict()
    assert losses["step"] == [1, 2, 3, 4, 5, 6]
    assert np.isfinite([losses[name] for name in ("covariance", "mean", "contrastive", "total")]).all()
    assert np.abs(pairs_in(tmp_path / "whole").offsets).max() > 0


@pytest.mark.chaos
def test_a_killed_worker_changes_nothing(ray_cluster, half_a_cpu_each, tmp_path):
    learnt_in(tmp_path / "whole")
    killed: list[int] = []
    slow = replace(
        SETTINGS, match=replace(SETTINGS.match, checkpoint_iterations=1)
    )  # so that the kill is in time
    checkpoints = tmp_path / "killed" / "checkpoints" / "checkpoint_*"
    watch = threading.Thread(target=kill_a_worker_after, args=(checkpoints, killed))
    watch.start()
    learnt_in(tmp_path / "killed", slow)
    watch.join()
    assert killed
    assert pairs_in(tmp_path / "killed").fingerprint() == pairs_in(tmp_path / "whole").fingerprint()


def test_cached_pairs_are_those_of_the_data_in_their_order(ray_cluster):
    from mmdd_ray.matching.learn import _cached

    cached = ray.get(_cached.remote(training_pairs(SETTINGS.data, image_px=32, seed=4), 24, 32))
    drawn = [shapes.scene(index, seed=1) for index in range(24)]
    assert np.array_equal(cached.images, np.stack([np.asarray(scene.render(32)) for scene in drawn]))
    assert cached.captions == [list(scene.captions()) for scene in drawn]


@pytest.mark.chaos
def test_a_mistake_that_one_worker_sees_ends_all_with_one_sentence(ray_cluster, half_a_cpu_each, tmp_path):
    def work(worker: Worker, job: str) -> dict[str, Any]:
        with worker.raise_on_all():
            if worker.rank == 1:
                raise UserError(f"{job} is too long")
        raise AssertionError("the other one went on")

    placement = Placement(
        section="match",
        training=SETTINGS.match,
        memory_setting="match.micro_batch",
        steps=6,
        checkpoint_steps=2,
    )
    with pytest.raises(UserError, match=r"^a caption is too long$"):
        train(work, "a caption", placement, store=Store(str(tmp_path)))
