"""Synthesis and captioning pools: the same bytes whatever the number of actors, and nothing done twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose

from mmdd_ray.config import Synthesis
from mmdd_ray.data.images import decode_image
from mmdd_ray.diffusion.synthesize import ImageSampler, SampleRequest, draw, read_drawn, sample_seeds
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.methods.edge.recaption import Recaptioner, read_captions, recaption
from mmdd_ray.methods.edge.settings import Captions
from mmdd_ray.models import zoo
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.generator import load_generator
from mmdd_ray.storage.store import Store

PROMPTS = (
    "a large red circle in the centre on a white background",
    "a small blue square at the left over black",
    "a big green triangle at the top against grey",
    "a little yellow star at the bottom right on beige",
    "a large purple ring at the top left on a white background",
)
SYNTHESIS = Synthesis(batch_images=2, inference_steps=3)


def drawings() -> list[SampleRequest]:
    seeds = sample_seeds(0, len(PROMPTS))
    return [
        SampleRequest(i, prompt, seed, f"key-{i}")
        for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True))
    ]


def generator() -> Store:
    return Store(str(zoo.FOLDER / "tiny-sd"))


def files(stage: StageDir) -> dict[str, bytes]:
    return {name: stage.store.read_bytes(name) for name in stage.store.files("batches")}


def in_this_process(stage: StageDir, synthesis: Synthesis) -> None:
    """What the pool does, one batch after the other, the last one first."""
    todo = drawings()
    size = synthesis.batch_images
    batches = [todo[i : i + size] for i in range(0, len(todo), size)]
    sampler = ImageSampler(stage.store, generator(), synthesis, image_px=32, clip="tiny-clip")
    for number, batch in reversed(list(enumerate(batches))):
        sampler(pa.table({"number": [number], "rows": [[vars(drawing) for drawing in batch]]}))


@pytest.mark.parametrize("last", [2, 1])
def test_a_compiled_generator_draws_the_same(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, with a compiler that changes nothing; batches of another size are drawn uncompiled."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(1)
        return graph

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compile_module(part, backend=backend))
    plain, sampler = (
        ImageSampler(Store(str(tmp_path)), generator(), SYNTHESIS, image_px=32) for _ in range(2)
    )
    sampler.generator.compile_drawing()
    sampler._compiled = True
    rows = [vars(drawing) for drawing in drawings()]
    counts = []
    for number, batch in enumerate([rows[:2], rows[2:4], rows[-last:]]):
        drawn, known = (
            [
                decode_image(image, max_pixels=32**2).astype(int)
                for image in one.work(number, batch)["image"].to_pylist()
            ]
            for one in (sampler, plain)
        )
        assert_allclose(drawn, known, atol=1)
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_noise_is_drawn_in_float32_whatever_the_weights_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 draws other numbers in half precision."""
    drawn: list[torch.dtype | None] = []

    def randn(*size: int, dtype: torch.dtype | None = None, **settings: Any) -> torch.Tensor:
        drawn.append(dtype)
        return plain(*size, dtype=dtype, **settings)

    plain = torch.randn
    loaded = load_generator("tiny-sd", half_precision=True)
    monkeypatch.setattr(torch, "randn", randn)
    settings: dict[str, Any] = {"image_px": 32, "inference_steps": 2, "guidance": 3.0}
    loaded.sample(PROMPTS[:2], [0, 1], **settings)
    assert drawn == [None] * 2
    latent = torch.zeros(2, loaded.latent_channels, loaded.latent_side(32), loaded.latent_side(32))
    for begin in (latent, None):
        loaded.sample_from(begin, PROMPTS[:2], [0, 1], strength=0.5, negative_prompt="", **settings)
    assert {kind for kind in drawn if kind is not None} == {torch.float32}
    assert len(drawn) == 6


def test_seeds_depend_on_run_and_index_only() -> None:
    assert sample_seeds(3, 10)[:4] == sample_seeds(3, 4)
    assert len(set(sample_seeds(0, 1000)) | set(sample_seeds(1, 1000))) == 2000


@pytest.mark.ray
def test_actors_and_their_order_change_no_byte(ray_cluster: None, tmp_path: Path) -> None:
    alone = StageDir("synthesize", Store(str(tmp_path / "alone")), "synthesize")
    in_this_process(alone, SYNTHESIS)
    pool = StageDir("synthesize", Store(str(tmp_path / "pool")), "synthesize")
    first = sorted(files(alone))[0]
    pool.store.write_bytes(first, files(alone)[first])  # by an earlier run, which was killed
    kept = Path(pool.store.path(first))
    written_at = kept.stat().st_mtime_ns
    draw(pool, drawings(), generator(), SYNTHESIS, image_px=32, clip="tiny-clip")
    assert files(pool) == files(alone)
    assert kept.stat().st_mtime_ns == written_at
    rows = read_drawn(pool.store).to_pylist()
    assert [row["prompt"] for row in rows] == list(PROMPTS)
    assert len({row["image"] for row in rows}) == len(PROMPTS)
    clip = load_clip("tiny-clip")
    for column, expected_BD in (
        (
            "image_feature",
            clip.encode_images(np.stack([decode_image(row["image"], max_pixels=32**2) for row in rows])),
        ),
        ("text_feature", clip.encode_texts(PROMPTS)),
    ):
        assert_allclose([row[column] for row in rows], expected_BD.numpy(), atol=1e-5)

    # Captions, from the images just drawn.
    images = {row["index"]: row["image"] for row in rows}
    settings = Captions(batch_images=2, per_image=3)
    captioned = StageDir("recaption", Store(str(tmp_path / "captions")), "recaption")
    recaption(captioned, images, settings, seed=5)
    written = read_captions(captioned.store)
    assert sorted(written) == sorted(images)
    assert all(len(own) == 2 for own in written.values())
    again = StageDir("recaption", Store(str(tmp_path / "again")), "recaption")
    captioner = Recaptioner(again.store, settings, 5)
    captioner(pa.table({"number": [2], "rows": [[{"index": 4, "image": images[4]}]]}))
    assert read_captions(again.store) == {4: written[4]}


@pytest.mark.ray
def test_images_that_were_drawn_again_are_counted(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = StageDir("synthesize", Store(str(tmp_path)), "synthesize")
    in_this_process(stage, SYNTHESIS)
    assert draw(stage, drawings(), generator(), SYNTHESIS, image_px=32, clip="tiny-clip").extra == {
        "redrawn": 0
    }
    assert "drawn again" not in capsys.readouterr().out
    first = sorted(files(stage))[0]
    table = stage.store.read_parquet(first)
    again = pa.array([True] * len(table))
    stage.store.write_parquet(first, table.set_column(table.column_names.index("redrawn"), "redrawn", again))
    found = draw(stage, drawings(), generator(), SYNTHESIS, image_px=32, clip="tiny-clip")
    assert found.extra == {"redrawn": len(table)}
    assert f"{len(table)} of {len(PROMPTS)} images were not finite" in capsys.readouterr().out


def test_guidance_and_seed_change_the_image(tmp_path: Path) -> None:
    stages = []
    for name, synthesis in (
        ("a", SYNTHESIS),
        ("b", Synthesis(batch_images=2, inference_steps=3, guidance=1.0)),
    ):
        stage = StageDir("synthesize", Store(str(tmp_path / name)), "synthesize")
        in_this_process(stage, synthesis)
        stages.append(read_drawn(stage.store).column("image").to_pylist())
    assert all(one != other for one, other in zip(*stages, strict=True))
