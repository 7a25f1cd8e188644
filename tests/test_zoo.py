"""The tiny zoo: it loads through the calls that load published models, and it is as good as its card says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch

from mmdd_ray.data import shapes
from mmdd_ray.data.web_scenes import WebScene, scene
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.retrieval import retrieval_metrics
from mmdd_ray.models import zoo
from mmdd_ray.pretrain import QUALITY
from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, IMAGE_PX, WEB

MB = 10**6
SCENES = 500


@pytest.fixture(scope="module")
def scenes() -> list[WebScene]:
    return [scene(index, seed=HELD_OUT_SEED, world=WEB) for index in range(SCENES)]


@pytest.fixture(scope="module")
def captions(scenes: list[WebScene]) -> list[str]:
    return [scene.true_captions()[0] for scene in scenes]


def test_zoo_is_small_and_holds_no_pickle() -> None:
    files = [path for path in zoo.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15 * MB
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert {path.name for path in zoo.FOLDER.iterdir() if path.is_dir()} == set(zoo.NAMES)
    assert json.loads((zoo.FOLDER / QUALITY).read_text()).keys() == set(zoo.NAMES)


def test_tiny_clip_finds_held_out_scenes(scenes: list[WebScene], captions: list[str]) -> None:
    from mmdd_ray.models.clip import load_clip

    clip = load_clip("tiny-clip")
    images = np.stack([np.asarray(scene.render(IMAGE_PX)) for scene in scenes])
    metrics = retrieval_metrics(
        clip.encode_images(images).numpy(), clip.encode_texts(captions).numpy(), np.arange(SCENES)
    )
    assert metrics["ir@1"] >= 75


def test_tiny_clip_knows_shapes_as_well_as_colours() -> None:
    from mmdd_ray.models.clip import load_clip

    clip = load_clip("tiny-clip")
    labelled = [scene(index, seed=HELD_OUT_SEED, labelled=True, world=WEB) for index in range(200)]
    images = clip.encode_images(np.stack([np.asarray(one.render(IMAGE_PX)) for one in labelled]))
    texts = clip.encode_texts([f"a picture of a {name}" for name in shapes.CLASS_NAMES])
    found = (images @ texts.T).argmax(dim=1)
    assert (found == torch.tensor([one.label for one in labelled])).float().mean() >= 0.9


def test_tiny_sd_draws_what_it_is_told(captions: list[str]) -> None:
    from mmdd_ray.models.clip import load_clip
    from mmdd_ray.models.generators.stable_diffusion import draw_images, load_pipeline

    pipeline, clip = load_pipeline("tiny-sd"), load_clip("tiny-clip")
    drawn = [  # 100 of the 500; the whole measurement stands in the zoo's card
        draw_images(
            pipeline, captions[i : i + 50], range(i, i + 50), image_px=32, inference_steps=20, guidance=4.0
        ).images_BHW3
        for i in (0, 50)
    ]
    cosine_TI = clip.encode_texts(captions).numpy() @ clip.encode_images(np.concatenate(drawn)).numpy().T
    # Among all 500 captions, is the one that an image was drawn from within its ten nearest?
    rank = (cosine_TI > np.diag(cosine_TI[:100])).sum(axis=0)
    assert (rank < 10).mean() >= 0.8


def test_tiny_sd_is_good_and_not_at_its_ceiling() -> None:
    quality = json.loads((zoo.FOLDER / QUALITY).read_text())["tiny-sd"]
    assert 60 <= quality["ir@1"] <= 95  # there must be something that fine-tuning can gain


def test_tiny_sd_draws_what_the_name_of_a_class_says() -> None:
    from mmdd_ray.models.generators.stable_diffusion import draw_images, load_pipeline
    from mmdd_ray.models.zoo import resolve
    from mmdd_ray.pretrain.naming import normalise

    prompts = [f"a picture of a {name}" for name in shapes.CLASS_NAMES]
    drawn = draw_images(
        load_pipeline("tiny-sd"), prompts, range(len(prompts)), image_px=32, inference_steps=20, guidance=4.0
    ).images_BHW3
    judge = timm.create_model(f"local-dir:{resolve('tiny-nf')}", pretrained=True).eval()  # has seen real ones
    with torch.inference_mode():
        found = judge(normalise(torch.from_numpy(drawn).permute(0, 3, 1, 2))).argmax(dim=1)
    assert (found == torch.arange(len(prompts))).float().mean() >= 0.75  # 1 of 48 by chance


def test_tiny_captioner_sees_the_colour_of_the_main_object_and_often_its_shape(
    scenes: list[WebScene],
) -> None:
    from mmdd_ray.models.captioners.captioner import load_captioner

    captioner = load_captioner("tiny-captioner", torch.device("cpu"))
    colours, named = 0, 0
    for start in (0, 50):
        images = [drawn.render(IMAGE_PX) for drawn in scenes[start : start + 50]]
        written = captioner.write(images, 1, instructions=("",), max_new_tokens=46, seed=0)
        for drawn, (text,) in zip(scenes[start : start + 50], written, strict=True):
            main = drawn.named.objects[0]
            names = shapes.SYNONYMS.get(main.shape, (main.shape,))
            colours += main.colour in text
            named += any(f"{main.colour} {name}" in text for name in names)
    assert colours >= 80
    assert named >= 30  # a sixth of the colours would be right by chance


def test_captions_after_the_first_are_drawn_by_seed(scenes: list[WebScene]) -> None:
    from mmdd_ray.models.captioners.captioner import load_captioner

    captioner = load_captioner("tiny-captioner", torch.device("cpu"))
    images = [scene.render(IMAGE_PX) for scene in scenes[:8]]

    def write(seed: int) -> list[list[str]]:
        return captioner.write(images, 3, instructions=("",), max_new_tokens=46, seed=seed)

    one, same, other = write(1), write(1), write(2)
    assert one == same
    assert [own[0] for own in one] == [own[0] for own in other]  # the likeliest does not depend on it
    assert [own[1:] for own in one] != [own[1:] for own in other]
    assert all(len(own) == 3 and all(own) for own in one)


@pytest.mark.parametrize("name", ["tiny-clop", "./no/such/folder", "/no/such/folder"])
def test_a_name_that_is_neither_model_nor_folder_is_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"no model 'tiny-clop'|does not exist"):
        zoo.resolve(name)


def test_an_unreachable_model_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdd_ray.models.captioners.captioner import load_captioner

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fail at once
    with pytest.raises(ValueError, match=r"'nobody/nothing'.*--captions\.model to its local folder"):
        load_captioner("nobody/nothing", torch.device("cpu"))


def hub_that(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], object]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda api, name, timeout: answer(name))


def test_models_are_looked_for_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(name: str) -> object:
        raise ConnectionError("no route")

    hub_that(monkeypatch, unreachable)
    shutil.copytree(zoo.FOLDER / "tiny-captioner", tmp_path / "captioner")
    zoo.check(
        {"finetune.generator": "tiny-sd", "captions.model": str(tmp_path / "captioner")}
    )  # without a hub
    with pytest.raises(ValueError, match=r"--captions\.model names the model 'a/b'.*no route.*local folder"):
        zoo.check({"finetune.generator": "tiny-sd", "captions.model": "a/b"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the cache may have it
    zoo.check({"captions.model": "a/b"})


def test_a_model_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def missing(name: str) -> object:
        raise RepositoryNotFoundError("404", response=Mock())

    hub_that(monkeypatch, missing)
    zoo.check({"students.image_model": "nfnet_l0", "features.clip": "ViT-B-32/openai"})  # no names of the hub
    with pytest.raises(ValueError, match=r"no model 'a/typo'.*correct --finetune\.generator"):
        zoo.check({"finetune.generator": "a/typo"})


def test_versions_tell_weights_of_one_name_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of_zoo = zoo.version("tiny-sd")
    shutil.copytree(zoo.FOLDER / "tiny-sd", tmp_path / "copy")
    assert zoo.version(str(tmp_path / "copy")) == of_zoo
    weights = next((tmp_path / "copy").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1")
    assert zoo.version(str(tmp_path / "copy")) != of_zoo

    asked: list[str] = []
    hub_that(monkeypatch, lambda name: asked.append(name) or Mock(sha="1a2b"))  # type: ignore[func-returns-value]
    names = ("a/b", "hf-hub:c/d", "ViT-B-32/laion2b_s34b_b79k", "nfnet_l0")
    assert [zoo.version(name) for name in names] == ["commit:1a2b"] * 4
    assert asked == ["a/b", "c/d", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "timm/nfnet_l0.ra2_in1k"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert zoo.version("a/b") is None


@pytest.mark.parametrize("name", zoo.NAMES)
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    """Under the names that the libraries would read them by."""
    from safetensors.torch import load_file

    from mmdd_ray.config import Students
    from mmdd_ray.models.captioners.captioner import load_captioner
    from mmdd_ray.models.clip import load_clip
    from mmdd_ray.models.generators.stable_diffusion import load_pipeline
    from mmdd_ray.models.students import load_student

    folder = str(tmp_path / name)
    shutil.copytree(zoo.FOLDER / name, folder)
    for file in Path(folder).rglob("*.safetensors"):
        stem = {"open_clip_model": "open_clip_pytorch_model", "model": "pytorch_model"}.get(
            file.stem, file.stem
        )
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    load: dict[str, Callable[[], object]] = {
        "tiny-clip": lambda: load_clip(folder),
        "tiny-sd": lambda: load_pipeline(folder),
        "tiny-captioner": lambda: load_captioner(folder, torch.device("cpu")),
        "tiny-nf": lambda: load_student(Students(image_model=folder), seed=0, device="cpu"),
        "tiny-bert": lambda: load_student(Students(text_model=folder), seed=0, device="cpu"),
    }
    with pytest.raises(UserError, match=r"holds no \*\.safetensors, and pickled weights are not read"):
        load[name]()
