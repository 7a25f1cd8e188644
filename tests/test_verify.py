"""Verification of distilled sets: whole files, and images that can be made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmdd_ray.diffusion import synthesize as diffusion
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.actor_pool import BatchActor
from mmdd_ray.engine.run_dir import LAYOUT, versions
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.errors import UserError
from mmdd_ray.features.vectors import vector_column
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.verify import verify
from mmdd_ray.methods.vlcp.presets import local as vlcp_local
from mmdd_ray.methods.vlcp.synthesize import guided
from mmdd_ray.models import zoo
from mmdd_ray.storage.store import Store

PROMPTS = ("a red circle", "a blue square", "a green star", "a black ring", "a white cross")
DRAWN_TOGETHER = 2


def draw_run(folder: Path, job: str, settings: object, sampler: BatchActor) -> Store:
    """What a run of `job` leaves, as far as it drew: a generator, batches of drawings, and the set."""
    shutil.copytree(zoo.FOLDER / "tiny-sd", folder / "finetune" / "generator")
    saved = {"layout": LAYOUT, "job": job, "preset": "local", "settings": resolved(settings)}
    (folder / "settings.json").write_text(json.dumps(saved))
    rows = [
        {"index": i, "prompt": prompt, "seed": 7 + i, "source_key": f"k{i}", "label": i % 2, "slot": i // 2}
        for i, prompt in enumerate(PROMPTS)
    ]
    store = Store(str(folder))
    drawn = []
    for number, start in enumerate(range(0, len(rows), DRAWN_TOGETHER)):
        batch = rows[start : start + DRAWN_TOGETHER]
        sampler(pa.table({"number": [number], "rows": [batch]}))
        drawn += store.read_parquet(f"synthesize/batches/{number:06d}.parquet").to_pylist()
    samples = [
        Sample(key=f"{i:06d}", image=row["image"], captions=(row["prompt"],), seed=row["seed"], source_key="")
        for i, row in enumerate(drawn)
    ]
    write_distilled(
        samples,
        store.child("distilled"),
        method="any",
        settings={},
        seed=0,
        inputs={},
        versions=versions() | {"torch": "1.0"},
    )
    return store.child("distilled")


@pytest.fixture(scope="module")
def edge_set(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("edge")
    preset = edge_local()
    settings = replace(preset, synthesis=replace(preset.synthesis, inference_steps=2))
    sampler = diffusion.ImageSampler(
        Store(str(folder / "synthesize")),
        Store(str(zoo.FOLDER / "tiny-sd")),
        settings.synthesis,
        32,
        "tiny-clip",
    )
    return draw_run(folder, "edge_cc3m", settings, sampler)


def test_images_are_drawn_again_alike(edge_set: Store) -> None:
    found = verify(edge_set.uri, regenerate=3)
    assert found.images == len(PROMPTS)
    assert list(found.differences.values()) == [0, 0, 0]
    assert found.checksum == edge_set.read_json("manifest.json")["checksum"]
    assert found.changed == {"torch": ("1.0", versions()["torch"])}
    assert len(verify(edge_set.uri, regenerate=99).differences) == len(PROMPTS)
    chosen = {tuple(verify(edge_set.uri, regenerate=1, seed=seed).differences) for seed in range(20)}
    assert len(chosen) > 1
    assert verify(edge_set.uri, regenerate=0).differences == {}


def test_images_of_a_further_draw_are_made_with_what_lies_beside_them(
    edge_set: Store, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(Path(edge_set.uri).parent, run / "draws" / "1")
    (run / "draws" / "1" / "settings.json").rename(run / "settings.json")
    assert list(verify(str(run / "draws" / "1" / "distilled"), regenerate=1).differences.values()) == [0]
    (run / "draws" / "1").rename(run / "draws" / "one")
    with pytest.raises(UserError, match="is no run directory"):
        verify(str(run / "draws" / "one" / "distilled"), regenerate=1)


def test_images_of_prototypes_are_drawn_again_alike(tmp_path: Path) -> None:
    preset = vlcp_local()
    settings = replace(preset, synthesis=replace(preset.synthesis, inference_steps=2))
    store = Store(str(tmp_path))
    for label in (0, 1):
        centres = pa.table({"latent": vector_column(np.full((3, 256), label, np.float32))})
        store.write_parquet(f"prototypes/centres/{label}.parquet", centres)
    sampler = diffusion.ImageSampler(
        store.child("synthesize"),
        str(zoo.FOLDER / "tiny-sd"),
        settings.synthesis,
        32,
        guided=guided(settings.synthesis, store.child("prototypes")),
    )
    made = draw_run(tmp_path, "vlcp_imagenette", settings, sampler)
    assert list(verify(made.uri, regenerate=2).differences.values()) == [0, 0]


def test_fewer_images_than_none_cannot_be_made_again(edge_set: Store) -> None:
    with pytest.raises(UserError, match=r"^--regenerate -3 is no number of images"):
        verify(edge_set.uri, regenerate=-3)


def test_what_is_drawn_otherwise_is_told(edge_set: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(edge_set.uri).parent, tmp_path / "run")
    held = json.loads((tmp_path / "run" / "settings.json").read_text())
    held["settings"]["synthesis"]["guidance"] = 1.0
    (tmp_path / "run" / "settings.json").write_text(json.dumps(held))
    found = verify(str(tmp_path / "run" / "distilled"), regenerate=2)
    assert all(0 < levels <= 255 for levels in found.differences.values())


def test_a_set_that_cannot_be_made_again_is_one_sentence(edge_set: Store, tmp_path: Path) -> None:
    run = Path(edge_set.uri).parent
    held = json.loads((run / "settings.json").read_text())
    shutil.copytree(edge_set.uri, tmp_path / "alone")
    assert verify(str(tmp_path / "alone"), regenerate=0).images == len(PROMPTS)
    with pytest.raises(
        UserError, match="is no run directory: the tuned generator that drew the set is there"
    ):
        verify(str(tmp_path / "alone"), regenerate=1)

    shutil.copytree(run, tmp_path / "run")
    strange = tmp_path / "run" / "synthesize" / "batches"
    for file in strange.iterdir():
        file.unlink()
    Store(str(strange)).write_parquet("000000.parquet", pa.table({"seed": [1], "prompt": ["another"]}))
    with pytest.raises(UserError, match=r"has not drawn 1 of the 1 images, e\.g\. 00000"):
        verify(str(tmp_path / "run" / "distilled"), regenerate=1)
    (tmp_path / "run" / "settings.json").write_text(json.dumps(held | {"job": "precompute"}))
    with pytest.raises(UserError, match="a run of the job precompute, which draws no images"):
        verify(str(tmp_path / "run" / "distilled"), regenerate=1)

    shard = tmp_path / "alone" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        verify(str(tmp_path / "alone"), regenerate=0)
