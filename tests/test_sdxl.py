"""Stable Diffusion XL of random weights: what the U-Net is told, against diffusers, and what can be trained of it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from tiny_sdxl import write_sdxl

from mmdd_ray.config import Finetune
from mmdd_ray.data import shapes
from mmdd_ray.diffusion.objective import NoiseObjective
from mmdd_ray.diffusion.training import Training
from mmdd_ray.errors import UserError
from mmdd_ray.methods.edge.objective import EdgeObjective
from mmdd_ray.methods.edge.settings import EdgeFinetune
from mmdd_ray.models import zoo
from mmdd_ray.models.encoding_cache import EncodingCache
from mmdd_ray.models.generators.generator import load_generator
from mmdd_ray.models.generators.stable_diffusion import StableDiffusionXL, encode_prompts

PROMPTS = ["a red disc on white", "two blue rings"]
DRAW: dict[str, Any] = {"image_px": 32, "inference_steps": 4, "guidance": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    write_sdxl(folder)
    return folder


@pytest.fixture
def generator(folder: Path) -> StableDiffusionXL:
    found = load_generator(str(folder))
    assert isinstance(found, StableDiffusionXL)
    return found


def images(count: int) -> tuple[np.ndarray, list[str]]:
    scenes = [shapes.scene(index, seed=5) for index in range(count)]
    drawn = np.stack([np.asarray(scene.render(32)) for scene in scenes])
    return drawn, [scene.captions()[0] for scene in scenes]


def test_it_is_found_and_what_it_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    found = zoo.check({"finetune.generator": str(folder)})
    assert found["finetune.generator"].endswith("a StableDiffusionXLPipeline of diffusers")
    for part in ("text_encoder_2", "tokenizer_2"):
        lacking = shutil.copytree(folder, tmp_path / part)
        shutil.rmtree(lacking / part)
        with pytest.raises(UserError, match=f"no {part}"):
            zoo.check({"finetune.generator": str(lacking)})


def test_prompts_are_encoded_as_diffusers_does(generator: StableDiffusionXL) -> None:
    pipeline = generator.pipeline
    expected, negative, pooled, _ = pipeline.encode_prompt(
        PROMPTS,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=["blur"] * 2,
    )
    text, unwanted = encode_prompts(pipeline, PROMPTS, "blur")
    torch.testing.assert_close(text, expected)
    torch.testing.assert_close(unwanted.expand_as(text), negative)
    states, own = generator._encode_texts(PROMPTS)
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(own, pooled)


def test_it_draws_as_diffusers_does(generator: StableDiffusionXL) -> None:
    drawn = generator.sample(PROMPTS, [1, 2], **DRAW)
    pipeline = generator.pipeline
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", use_karras_sigmas=True
    )
    noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    expected = pipeline(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=noise,
        output_type="np",
    ).images
    np.testing.assert_array_equal(drawn.images_BHW3, (expected * 255).round().astype(np.uint8))
    assert not drawn.redrawn_B.any()


def test_each_image_drawn_from_latents_depends_on_its_own_row_and_seed_alone(
    generator: StableDiffusionXL,
) -> None:
    drawn, captions = images(2)
    latents = generator.encode(drawn)
    settings: dict[str, Any] = {**DRAW, "strength": 0.7, "negative_prompt": ""}
    both = generator.sample_from(latents, captions, [1, 2], **settings).images_BHW3
    second = generator.sample_from(latents[1:], captions[1:], [2], **settings).images_BHW3
    assert np.abs(both[1].astype(int) - second[0]).max() <= 1  # rounding
    mixed = generator.sample_from(latents, [captions[0] * 9, captions[1]], [1, 2], **settings).images_BHW3
    assert np.abs(mixed[1].astype(int) - second[0]).max() <= 1
    close = generator.sample_from(latents, captions, [1, 2], **settings | {"strength": 0.01}).images_BHW3
    restored = (generator.decode(latents).permute(0, 2, 3, 1) * 255).numpy()
    assert np.abs(close - restored).mean() < np.abs(both - restored).mean()


def test_the_clean_estimate_is_that_of_its_scheduler(generator: StableDiffusionXL) -> None:
    drawn, captions = images(3)
    level = torch.tensor([50, 400, 900])
    found = generator.denoise(drawn, captions, level, torch.Generator().manual_seed(0), EncodingCache(0))
    scheduler = DDPMScheduler.from_config(generator.pipeline.scheduler.config, clip_sample=False)
    for row, step in enumerate(level.tolist()):
        rows = slice(row, row + 1)
        expected = scheduler.step(
            found.prediction_BCHW[rows], step, found.noisy_BCHW[rows]
        ).pred_original_sample
        torch.testing.assert_close(found.clean_BCHW[rows], expected, atol=1e-4, rtol=1e-4)


def test_the_answer_depends_on_the_size_and_on_both_text_encoders(generator: StableDiffusionXL) -> None:
    noisy, level = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    states, pooled = generator._encode_texts(PROMPTS[:1])
    with torch.no_grad():
        answer = generator._predict(noisy, level, states, pooled)
        size = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
        expected = generator.unet(
            noisy, level, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}
        ).sample
        torch.testing.assert_close(answer, expected)
        assert (generator._predict(noisy, level, states, pooled + 1) - answer).abs().max() > 1e-5
        other = states.clone()
        other[..., 32:] += 1
        assert (generator._predict(noisy, level, other, pooled) - answer).abs().max() > 1e-5


@pytest.mark.parametrize("kind", ["difffit", "lora", "full"])
@pytest.mark.parametrize("losses", ["edge in CLIP's space", "edge in latents", "noise"])
def test_it_is_fine_tuned_saved_and_loaded(
    kind: Any, losses: str, generator: StableDiffusionXL, folder: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "steps": 2,
        "batch_pairs": 4,
        "parameters": kind,
        "learning_rate": 0.1,
        "ema_decay": 0.0,
    }
    settings: Finetune = Finetune(**shared)
    objective: Any = NoiseObjective(settings)
    if losses != "noise":
        edge = EdgeFinetune(**shared, space="clip" if losses.endswith("CLIP's space") else "latent")
        settings, objective = edge, EdgeObjective(replace(edge, noise_weight=1.0), "tiny-clip")
    torch.manual_seed(0)
    generator.prepare_training(kind, rank=settings.lora_rank)
    training = Training(objective.build(generator), settings, seed=0)
    records = list(training.run(lambda epoch: iter([images(4)])))
    assert len(records) == 2
    assert all(np.isfinite(record["total"]) and record["gradient_norm"] > 0 for record in records)
    generator.eval()
    tuned = generator.sample(PROMPTS, [1, 2], **DRAW).images_BHW3
    generator.save(tmp_path / "tuned")
    again = load_generator(str(tmp_path / "tuned")).sample(PROMPTS, [1, 2], **DRAW).images_BHW3
    assert np.abs(tuned.astype(int) - again).max() <= 1
    untuned = load_generator(str(folder)).sample(PROMPTS, [1, 2], **DRAW).images_BHW3
    assert (tuned != untuned).any()


def test_half_precision_decodes_in_float32_where_the_vae_asks_for_it(folder: Path) -> None:
    half = load_generator(str(folder), half_precision=True)
    seen: list[torch.dtype] = []
    watched = half.vae.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    drawn = half.sample(PROMPTS, [1, 2], **DRAW)
    watched.remove()
    assert seen == [torch.float32]
    assert not drawn.redrawn_B.any()
    assert {p.dtype for p in half.vae.parameters()} == {torch.float16}
    exact = load_generator(str(folder)).sample(PROMPTS, [1, 2], **DRAW).images_BHW3
    assert np.abs(drawn.images_BHW3.astype(int) - exact).mean() < 4
