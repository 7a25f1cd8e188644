import shutil
from copy import deepcopy
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from mmdd_ray.config import Finetune
from mmdd_ray.data import shapes
from mmdd_ray.diffusion.objective import NoiseObjective
from mmdd_ray.errors import UserError
from mmdd_ray.models import zoo
from mmdd_ray.models.clip import Clip, load_clip
from mmdd_ray.models.encoding_cache import EncodingCache
from mmdd_ray.models.generators.generator import Trained
from mmdd_ray.models.generators.stable_diffusion import (
    Scale,
    StableDiffusion,
    draw_from_latents,
    draw_images,
    encode_prompts,
    load_pipeline,
    save_pipeline,
    trainable_parameters,
)

TINY_CLIP, TINY_SD = zoo.FOLDER / "tiny-clip", zoo.FOLDER / "tiny-sd"
KINDS: tuple[Trained, ...] = ("difffit", "lora", "full")


def scenes(count: int, px: int = 32) -> tuple[list[Image.Image], np.ndarray, list[str]]:
    drawn = [shapes.scene(index, seed=5) for index in range(count)]
    images = [scene.render(px) for scene in drawn]
    return images, np.stack([np.asarray(i) for i in images]), [scene.captions()[0] for scene in drawn]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny-clip")


@pytest.fixture
def pipeline() -> Any:
    return load_pipeline("tiny-sd")


def unet_answer(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latent, states = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 48, 128)))
    with torch.no_grad():
        return unet(latent, torch.tensor([10, 700]), states).sample


@pytest.mark.parametrize(("px", "tolerance"), [(32, 1e-5), (80, 0.02)])  # 80 px: Pillow rounds to uint8 again
def test_clip_features_are_those_of_open_clips_own_preprocessing(clip, px, tolerance):
    images, images_u8, captions = scenes(6, px)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY_CLIP}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY_CLIP}")
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(i) for i in images]), normalize=True)
        text = model.encode_text(tokenizer(captions), normalize=True)
    torch.testing.assert_close(clip.encode_images(images_u8), image, atol=tolerance, rtol=0)
    torch.testing.assert_close(clip.encode_texts(captions), text, atol=1e-5, rtol=0)


@pytest.mark.parametrize("custom_text", [False, True])
def test_padding_takes_no_part_in_the_features_of_captions(custom_text):
    folder = f"local-dir:{TINY_CLIP}"
    model = open_clip.create_model(folder, force_custom_text=custom_text)
    clip = Clip("clip", model, open_clip.get_tokenizer(folder), torch.device("cpu"))
    rng = np.random.default_rng(0)
    lengths = [
        0,
        1,
        2,
        70,
        *rng.integers(1, 30, size=600),
    ]  # more than are encoded at once, and one that is cut
    captions = [" ".join(rng.choice(["red", "circle", "left", "of", "a"], size=size)) for size in lengths]
    sizes: list[tuple[int, ...]] = []
    tower = model.text if custom_text else model
    tower.transformer.register_forward_pre_hook(lambda _, seen: sizes.append(tuple(seen[0].shape)))
    whole = clip.encode_texts(captions, whole=True)
    assert sizes == [(604, 48, 128)]
    torch.testing.assert_close(clip.encode_texts(captions), whole, atol=1e-6, rtol=0)
    assert [size[:2] for size in sizes[1:-1]] == [(256, sizes[1][1]), (256, sizes[2][1])]
    assert sizes[1][1] < sizes[2][1] < 48 == sizes[3][1]


def test_a_text_tower_that_sees_what_follows_is_given_all_of_the_context():
    folder = f"local-dir:{TINY_CLIP}"
    model = open_clip.create_model(folder)
    model.attn_mask = None
    clip = Clip("clip", model, open_clip.get_tokenizer(folder), torch.device("cpu"))
    captions = ["a red circle", "a blue box on the left of a green star"]
    torch.testing.assert_close(
        clip.encode_texts(captions), clip.encode_texts(captions, whole=True), atol=0, rtol=0
    )


def test_clip_gives_pixels_a_gradient_and_keeps_none(clip):
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = clip.embed_pixels(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    features[:, 0].sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert not clip.encode_texts(["a red circle"]).requires_grad


def encoded(clip: Clip) -> Tensor:
    _, images, captions = scenes(4)
    return torch.cat([clip.encode_images(images), clip.encode_texts(captions)])


def test_the_copy_in_half_precision_is_near_whatever_its_caller_computes_in(clip, monkeypatch):
    whole = encoded(clip)
    monkeypatch.setattr(clip, "_encoder", deepcopy(clip._model).half())
    half = encoded(clip)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoded(clip), half)
    assert not torch.equal(half, whole)
    assert (half * whole).sum(dim=1).min() > 0.9999


def test_features_that_overflow_in_half_precision_are_those_of_float32(clip, monkeypatch):
    whole, copy = encoded(clip), deepcopy(clip._model).half()
    for weight in copy.parameters():
        weight.mul_(1e4)
    monkeypatch.setattr(clip, "_encoder", copy)
    assert torch.equal(encoded(clip), whole)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", "features.clip=ViT-B-32 names no weights"),
        ("local-dir:/no/such/folder", "cannot load the CLIP model 'local-dir:/no/such/folder'"),
        ("/no/such/folder", "folder '/no/such/folder' does not exist"),
        ("tiny-klip", "no model 'tiny-klip' in the zoo"),
        ("NoSuchModel/laion2b", "cannot load the CLIP model 'NoSuchModel/laion2b'"),
    ],
)
def test_a_wrong_clip_name_is_one_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        load_clip(name)


def test_every_part_of_the_pipeline_is_float32_on_a_cpu(pipeline):
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert pipeline.safety_checker is None


@pytest.mark.parametrize("missing", ["unet", "text_encoder", "model_index.json"])
def test_an_incomplete_pipeline_is_one_sentence(tmp_path, missing):
    folder = tmp_path / "generator"
    shutil.copytree(TINY_SD, folder)
    gone = folder / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ValueError, match=r"^--finetune.generator names '.*/generator', which (is|has)"):
        load_pipeline(str(folder))


def test_difffit_trains_biases_norms_and_scales_only(pipeline):
    unet = pipeline.unet
    before, whole = unet_answer(unet), unet.num_parameters()
    parameters = trainable_parameters(unet, "difffit")
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert len(parameters) == len(trained)
    norms = {n for n, module in unet.named_modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)}
    biases = {n for n, _ in unet.named_parameters() if n.endswith(".bias")}
    scales = {n for n, _ in unet.named_parameters() if n.endswith(".gamma")}
    assert trained == biases | scales | {f"{norm}.weight" for norm in norms}
    assert len(scales) == 20  # 8 attention layers, 4 feed-forward blocks, 8 residual blocks
    assert sum(p.numel() for p in parameters) < 0.01 * whole
    assert torch.equal(unet_answer(unet), before)  # all scales start at 1


def test_a_scale_multiplies_the_branch():
    weight = torch.arange(6.0).view(2, 3)
    scale = Scale(weight)
    with torch.no_grad():
        scale.gamma.fill_(2)
    assert torch.equal(scale(weight), 2 * weight)


def test_lora_adapters_have_the_rank_and_start_without_effect(pipeline):
    before = unet_answer(pipeline.unet)
    parameters = trainable_parameters(pipeline.unet, "lora", rank=3)
    # two matrices for each of four projections of eight attention layers
    assert len(parameters) == 2 * 4 * 8
    assert {min(p.shape) for p in parameters} == {3}
    assert torch.equal(unet_answer(pipeline.unet), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_folder_is_plain_and_draws_the_same(pipeline, tmp_path, kind):
    unet = pipeline.unet
    untrained, names = unet_answer(unet), set(unet.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(unet, kind):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trained = unet_answer(unet)
    assert (trained - untrained).abs().max() > 1e-3
    save_pipeline(pipeline, tmp_path)
    found = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert set(found.state_dict()) == names
    torch.testing.assert_close(unet_answer(found), trained, atol=1e-5, rtol=1e-4)
    assert StableDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True).safety_checker is None
    assert {file.suffix for file in Path(tmp_path).rglob("*") if file.is_file()} == {".safetensors", ".json"}


def seen_by(module: nn.Module) -> list[Tensor]:
    """The first argument of each call of the module, as it comes."""
    arguments: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: arguments.append(inputs[0].detach().clone()))
    return arguments


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_unet_sees_the_noisy_latent_of_diffusers_own_schedule(pipeline, prediction_type):
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    generator, seen = StableDiffusion(pipeline), seen_by(pipeline.unet)
    _, images_u8, captions = scenes(3)
    steps = torch.tensor([0, 400, 999])
    found = generator.denoise(images_u8, captions, steps, torch.Generator().manual_seed(2), EncodingCache(0))
    reference = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction_type)
    clean = generator.encode(images_u8)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(seen[0], reference.add_noise(clean, noise, steps))
    torch.testing.assert_close(found.noisy_BCHW, seen[0])
    target = noise if prediction_type == "epsilon" else reference.get_velocity(clean, noise, steps)
    torch.testing.assert_close(found.target_BCHW, target)
    assert found.prediction_BCHW.requires_grad
    assert not any(
        p.requires_grad for part in (generator.vae, generator.text_encoder) for p in part.parameters()
    )


def test_an_unusual_prediction_type_is_one_sentence(pipeline):
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match=r"finetune.generator predicts 'sample'"):
        StableDiffusion(pipeline)


def test_images_enter_the_vae_between_minus_one_and_one(pipeline):
    seen = seen_by(pipeline.vae.encoder)
    StableDiffusion(pipeline).encode(
        np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)])
    )
    assert torch.equal(seen[0][0], torch.full((3, 32, 32), -1.0))
    assert torch.equal(seen[0][1], torch.ones(3, 32, 32))


def test_latents_are_scaled_after_encoding_and_before_decoding(pipeline):
    generator = StableDiffusion(pipeline)
    images, images_u8, _ = scenes(4)
    factor = pipeline.vae.config.scaling_factor
    assert factor != 1
    with torch.no_grad():
        latent = pipeline.vae.encode(pipeline.image_processor.preprocess(images)).latent_dist.mode()
        torch.testing.assert_close(generator.encode(images_u8), latent * factor, atol=1e-5, rtol=1e-4)
        drawn = pipeline.image_processor.postprocess(pipeline.vae.decode(latent).sample, output_type="pt")
        torch.testing.assert_close(generator.decode(latent * factor), drawn, atol=1e-5, rtol=0)


def test_texts_are_encoded_as_the_pipeline_does(pipeline):
    captions = ["a small red circle", "a blue square " * 40]
    reference, _ = pipeline.encode_prompt(captions, "cpu", 1, do_classifier_free_guidance=False)
    states, pooled = StableDiffusion(pipeline)._encode_texts(captions)
    torch.testing.assert_close(states, reference)
    assert pooled.shape == (2, 128)


# ---- drawing from latents, and long prompts

DRAW = {"image_px": 32, "inference_steps": 4, "guidance": 3.0, "negative_prompt": "a ring"}


def test_a_prompt_that_fits_is_encoded_as_the_pipeline_does(pipeline):
    prompts = ["a red circle on white", "a blue box"]
    text, negative = encode_prompts(pipeline, prompts, "a ring")
    wanted, unwanted = pipeline.encode_prompt(prompts, "cpu", 1, True, ["a ring"] * 2)
    torch.testing.assert_close(text, wanted)
    torch.testing.assert_close(negative.expand_as(text), unwanted)


def test_a_long_prompt_counts_to_its_end_and_short_ones_are_filled_up(pipeline):
    size = pipeline.tokenizer.model_max_length
    words = ["red circle, blue square, green star"] * 30
    longs = [" ".join([*words, end]) for end in ("white", "black")]
    text, negative = encode_prompts(pipeline, [*longs, "a red ring"], "")
    assert text.shape[1] > size
    assert text.shape[1] % size == 0
    assert negative.shape[1] == text.shape[1]
    assert not torch.equal(text[0, -size:], text[1, -size:])
    torch.testing.assert_close(text[0, :size], text[1, :size])
    torch.testing.assert_close(text[2, size:], negative[0, size:])  # empty chunks
    alone, _ = encode_prompts(pipeline, ["a red ring"], "")
    torch.testing.assert_close(text[2:, :size], alone)


def test_drawing_from_latents_keeps_more_of_them_the_less_noise_is_added(pipeline):
    _, images, captions = scenes(3)
    latents = StableDiffusion(pipeline).encode(images)
    distance = []
    for strength in (0.01, 0.5, 1.0):
        drawn = draw_from_latents(
            pipeline, captions, [1, 2, 3], latents, strength=strength, **DRAW
        ).images_BHW3
        assert (drawn.shape, drawn.dtype) == (images.shape, np.uint8)
        distance.append(np.abs(drawn.astype(float) - images).mean())
    assert distance == sorted(distance)
    assert distance[0] < 0.5 * distance[-1]


def test_each_image_drawn_from_latents_depends_on_its_own_row_and_seed_alone(pipeline):
    _, images, captions = scenes(2)
    latents = StableDiffusion(pipeline).encode(images)
    both = draw_from_latents(pipeline, captions, [1, 2], latents, strength=0.7, **DRAW).images_BHW3
    second = draw_from_latents(pipeline, captions[1:], [2], latents[1:], strength=0.7, **DRAW).images_BHW3
    other = draw_from_latents(pipeline, captions[1:], [3], latents[1:], strength=0.7, **DRAW).images_BHW3
    assert np.abs(both[1].astype(int) - second[0]).max() <= 1  # rounding
    assert np.abs(other[0].astype(int) - second[0]).max() > 1
    # beside a prompt that needs another chunk, too
    mixed = draw_from_latents(
        pipeline, [captions[0] * 9, captions[1]], [1, 2], latents, strength=0.7, **DRAW
    ).images_BHW3
    assert np.abs(mixed[1].astype(int) - second[0]).max() <= 1
    assert np.abs(mixed[0].astype(int) - both[0]).max() > 1
    from_noise = draw_from_latents(pipeline, captions, [1, 2], None, strength=0.7, **DRAW).images_BHW3
    assert (from_noise != both).any()


@pytest.mark.parametrize("steps", [3, 49])
def test_at_least_one_step_is_drawn_again(pipeline, steps):
    _, images, captions = scenes(1)
    latents = StableDiffusion(pipeline).encode(images)
    drawn = draw_from_latents(
        pipeline, captions, [1], latents, strength=0.001, **DRAW | {"inference_steps": steps}
    ).images_BHW3
    assert np.abs(drawn.astype(float) - images).mean() < 30


def breaking(module, row, dtype):
    """Makes a row of what a module gives in this precision not finite."""

    def hook(_module, _inputs, output):
        if output.dtype == dtype:
            output = output.clone()
            output[row] = torch.nan
        return output

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("part", ["vae.decoder", "unet.conv_out"])
@pytest.mark.parametrize("from_latents", [False, True])
def test_an_image_that_overflows_in_half_precision_is_drawn_in_float32(part, from_latents):
    """And no other one changes."""
    pipeline = load_pipeline("tiny-sd", half_precision=True)
    _, images, captions = scenes(3)

    def draw(pipeline):
        if not from_latents:
            settings = {name: value for name, value in DRAW.items() if name != "negative_prompt"}
            return draw_images(pipeline, captions, [1, 2, 3], **settings)
        latents = StableDiffusion(load_pipeline("tiny-sd")).encode(images)
        return draw_from_latents(pipeline, captions, [1, 2, 3], latents, strength=0.7, **DRAW)

    whole = draw(pipeline)
    assert not whole.redrawn_B.any()
    broken = breaking(attrgetter(part)(pipeline), 1, torch.float16)
    found = draw(pipeline)
    broken.remove()
    assert found.redrawn_B.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.images_BHW3[::2], whole.images_BHW3[::2])
    exact = draw(load_pipeline("tiny-sd")).images_BHW3[1].astype(int)
    assert np.abs(found.images_BHW3[1] - exact).mean() < 2
    np.testing.assert_array_equal(
        draw(pipeline).images_BHW3, whole.images_BHW3
    )  # the weights are as they were


def test_an_image_that_is_not_finite_in_float32_is_an_error(pipeline):
    broken = breaking(pipeline.vae.decoder, 0, torch.float32)
    with pytest.raises(UserError, match=r"not finite, in float32, too.*finetune\.learning_rate"):
        draw_from_latents(pipeline, ["a disc"], [1], None, strength=0.7, **DRAW)
    broken.remove()


def test_a_side_that_the_vae_cannot_halve_is_one_sentence(pipeline):
    with pytest.raises(UserError, match=r"finetune\.image_px=30 is no multiple of 4"):
        NoiseObjective(Finetune(image_px=30)).build(StableDiffusion(pipeline))


def test_the_noise_objective_is_the_error_of_the_prediction(pipeline):
    _, images, captions = scenes(4)
    loss = NoiseObjective(Finetune()).build(StableDiffusion(pipeline))
    found = loss(images, captions, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    steps = torch.randint(1000, (4,), generator=again)
    denoising = loss.generator.denoise(images, captions, steps, again, EncodingCache(0))
    error = (denoising.prediction_BCHW - denoising.target_BCHW).square().mean()
    torch.testing.assert_close(found["total"], error)
    found["total"].backward()
    assert all(p.grad is not None for p in pipeline.unet.parameters() if p.requires_grad)
    assert all(p.grad is None for p in pipeline.vae.parameters())
