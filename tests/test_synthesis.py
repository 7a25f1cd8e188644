"""Synthesis and captioning pools: the same bytes whatever the number of actors, and nothing done twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose
from tiny_sdxl import write_sdxl

from mmdd_ray.config import Synthesis
from mmdd_ray.data.images import decode_image
from mmdd_ray.diffusion.synthesize import Guided, ImageSampler, SampleRequest, draw, read_drawn, sample_seeds
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.methods.edge.recaption import Recaptioner, read_captions, recaption
from mmdd_ray.methods.edge.settings import Captions
from mmdd_ray.models import zoo
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators import parts
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


def test_a_compiled_generator_draws_the_same_whatever_it_drew_before(
    tmp_path: Path, compiled: list[int]
) -> None:
    """Whole batches of short prompts are compiled for, once, and nothing else."""
    guided = Guided(negative_prompt="", strength=1.0)
    plain, sampler = (
        ImageSampler(
            Store(str(tmp_path)), generator(), replace(SYNTHESIS, compile=wanted), image_px=32, guided=guided
        )
        for wanted in (False, True)
    )
    rows = [vars(drawing) for drawing in drawings()]
    longer = {**rows[1], "prompt": " and ".join(PROMPTS * 4)}
    counts = []
    for number, batch in enumerate([rows[:1], [rows[0], longer], rows[:2], rows[2:4], [longer, rows[0]]]):
        drawn, known = (
            [
                decode_image(png, max_pixels=32**2).astype(int)
                for png in one.work(number, batch)["image"].to_pylist()
            ]
            for one in (sampler, plain)
        )
        assert_allclose(drawn, known, atol=1)
        counts.append(len(compiled))
    assert counts[:2] == [0, 0]
    assert counts[2] > 0
    assert counts[3:] == [counts[2]] * 2


@pytest.mark.parametrize("kind", ["tiny-sd", "xl"])
def test_noise_is_drawn_in_float32_whatever_the_weights_are_in(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 draws other numbers in half precision."""
    drawn: list[torch.dtype | None] = []

    def randn(*size: int, dtype: torch.dtype | None = None, **settings: Any) -> torch.Tensor:
        drawn.append(dtype)
        return plain(*size, dtype=dtype, **settings)

    plain = torch.randn
    if kind == "xl":
        write_sdxl(tmp_path)
        kind = str(tmp_path)
    loaded = load_generator(kind, half_precision=True)
    monkeypatch.setattr(torch, "randn", randn)
    settings: dict[str, Any] = {"image_px": 32, "inference_steps": 2, "guidance": 3.0}
    loaded.sample(PROMPTS[:2], [0, 1], **settings)
    latent = torch.zeros(2, loaded.latent_channels, loaded.latent_side(32), loaded.latent_side(32))
    for begin in (latent, None):
        loaded.sample_from(begin, PROMPTS[:2], [0, 1], strength=0.5, negative_prompt="", **settings)
    assert drawn == [torch.float32] * 6


@pytest.mark.parametrize("rows", [2, 7])
def test_what_is_looked_at_in_parts_has_the_same_values_and_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the autocast of a training, and with a part of it off, as in decoding."""
    monkeypatch.setattr(parts, "PIXELS_AT_ONCE", 3 * 32**2)
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3).bfloat16()
    looked: list[int] = []

    def look(values: torch.Tensor) -> torch.Tensor:
        looked.append(len(values))
        hidden = first(values).relu()
        with torch.autocast("cpu", enabled=False):
            return second(hidden.bfloat16()).float()

    def gradients(whole: bool) -> list[torch.Tensor]:
        values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = look(values) if whole else parts.in_parts(look, values, 32)
        (found.square().sum() + found[0].prod()).backward()
        weights = [weight.grad for weight in (*first.parameters(), *second.parameters())]
        first.zero_grad()
        second.zero_grad()
        return [found.detach(), values.grad, *weights]  # type: ignore[list-item]

    known = gradients(whole=True)
    looked.clear()
    for ours, theirs in zip(gradients(whole=False), known, strict=True):
        assert_allclose(ours.float(), theirs.float(), rtol=0.02, atol=0.02)
    assert looked[: len(looked) // 2 + 1] == ([2] if rows == 2 else [3, 3, 1, 1])


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
