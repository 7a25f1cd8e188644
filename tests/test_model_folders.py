"""Models that cannot do what they are named for are found before the run, by their files and configs alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from mmdd_ray import settings
from mmdd_ray.errors import UserError
from mmdd_ray.methods.execute import check
from mmdd_ray.models import zoo
from mmdd_ray.models.contents import Folder, weight_files

SETTINGS = {
    "features.clip": "tiny-clip",
    "finetune.generator": "tiny-sd",
    "captions.model": "tiny-captioner",
    "students.image_model": "tiny-nf",
    "students.text_model": "tiny-bert",
}


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(zoo.FOLDER / name, folder / name))


def as_fp16(folder: Path) -> Path:
    """Renames all weights to the names of a half-precision copy."""
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    return folder


def split_in_two(folder: Path, stem: str) -> list[Path]:
    """Stores weights in two files beside an index, as large models are."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names, where = sorted(weights), {}
    parts = [folder / f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for part, own in zip(parts, (names[: len(names) // 2], names[len(names) // 2 :]), strict=True):
        save_file({name: weights[name] for name in own}, part, {"format": "pt"})
        where |= dict.fromkeys(own, part.name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return parts


def test_the_zoo_is_what_it_is_for() -> None:
    found = zoo.check(SETTINGS)
    assert found["finetune.generator"] == "tiny-sd: a StableDiffusionPipeline of diffusers"
    assert found["captions.model"] == "tiny-captioner: BlipForConditionalGeneration of transformers"
    assert found.keys() == SETTINGS.keys()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("other", zoo.NAMES)
def test_a_model_of_another_kind_is_named_as_what_it_is(setting: str, other: str) -> None:
    if SETTINGS[setting] == other:
        return
    with pytest.raises(UserError) as error:
        zoo.check({setting: other})
    assert str(error.value).startswith(f"--{setting} names '{other}', which is ")
    assert zoo.ROLES[setting.rpartition(".")[2]] in str(error.value)


def test_every_model_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    wrong = dict.fromkeys(SETTINGS, str(tmp_path)) | {"features.clip": "tiny-clip"}
    with pytest.raises(UserError) as error:
        zoo.check(wrong)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert all("is empty" in line for line in lines)


@pytest.mark.parametrize(
    ("setting", "lost", "says"),
    [
        (
            "finetune.generator",
            "unet/diffusion_pytorch_model.safetensors",
            "no unet/diffusion_pytorch_model.safetensors",
        ),
        ("finetune.generator", "tokenizer", "no tokenizer"),
        ("finetune.generator", "scheduler", "no scheduler"),
        ("finetune.generator", "vae/config.json", "no vae/config.json"),
        ("finetune.generator", "model_index.json", "has no config that tells what it is"),
        ("captions.model", "processor_config.json", "no processor"),
        ("captions.model", "tokenizer.json", "no tokenizer"),
        ("students.text_model", "model.safetensors", "no model.safetensors"),
        (
            "students.image_model",
            "config.json",
            "has no config that tells what it is, only model.safetensors",
        ),
        ("features.clip", "open_clip_model.safetensors", "no open_clip_model.safetensors"),
    ],
)
def test_what_is_missing_of_a_model_is_named(setting: str, lost: str, says: str, tmp_path: Path) -> None:
    folder = copy_of(SETTINGS[setting], tmp_path)
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    with pytest.raises(UserError, match=says):
        zoo.check({setting: str(folder)})


@pytest.mark.parametrize(("setting", "name"), SETTINGS.items())
def test_pickled_weights_alone_are_found_before_the_run(setting: str, name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"pickled weights are not read; convert them"):
        zoo.check({setting: str(folder)})


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_named(text: str, tmp_path: Path) -> None:
    folder = copy_of("tiny-bert", tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(
        UserError, match=r"--students.text_model names .*, which has a config.json that is no JSON"
    ):
        zoo.check({"students.text_model": str(folder)})


def test_models_that_neither_see_and_write_nor_encode_texts_have_no_role(tmp_path: Path) -> None:
    for kind, config in {
        "CLIPModel": {"model_type": "clip", "vision_config": {}, "text_config": {}},
        "CLIPTextModel": {"model_type": "clip_text_model"},
        "Blip2ForImageTextRetrieval": {"model_type": "blip-2", "vision_config": {}},
        "GPT2LMHeadModel": {"model_type": "gpt2"},
        "T5ForConditionalGeneration": {"model_type": "t5", "is_encoder_decoder": True},
    }.items():
        folder = copy_of("tiny-captioner", tmp_path / kind)
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [kind]}))
        for setting in ("captions.model", "students.text_model"):
            with pytest.raises(UserError, match=f"is {kind} of transformers"):
                zoo.check({setting: str(folder)})


@pytest.mark.parametrize(
    ("setting", "name"), [("captions.model", "tiny-captioner"), ("students.text_model", "tiny-bert")]
)
def test_weights_in_several_files_have_to_be_complete(setting: str, name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    parts = split_in_two(folder, "model")
    zoo.check({setting: str(folder)})
    assert weight_files(Folder(folder)) == tuple(part.name for part in parts)
    parts[1].unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        zoo.check({setting: str(folder)})


def test_an_image_encoder_of_one_size_is_found_before_the_run(tmp_path: Path) -> None:
    folder = copy_of("tiny-nf", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"fixed_input_size": True, "input_size": [3, 64, 64]}
    (folder / "config.json").write_text(json.dumps(config))
    own, further = {"students.image_model": str(folder)}, {"evaluation.students": (f"{folder}+tiny-bert",)}
    for changed in (own, further):
        with pytest.raises(
            UserError, match=r"students\.image_px=32, but .*tiny-nf' takes 64 px only; set students"
        ):
            check(settings("covmatch", "local", changed))
    with pytest.raises(UserError, match=r"match\.image_px=32, but match\.image_model=.* takes 64 px only"):
        check(settings("covmatch", "local", {"match.image_model": str(folder)}))
    check(settings("covmatch", "local", own | {"students.image_px": 64}))


def load_of(setting: str) -> Callable[[str], torch.nn.Module]:
    """A function that loads the model of a setting, as the module whose weights can be compared."""
    from mmdd_ray.config import Students
    from mmdd_ray.models.captioners.captioner import load_captioner
    from mmdd_ray.models.generators.stable_diffusion import load_pipeline
    from mmdd_ray.models.students import load_text_encoder

    return {
        "finetune.generator": lambda name: load_pipeline(name).unet,
        "captions.model": lambda name: load_captioner(name, torch.device("cpu")).model,
        "students.text_model": lambda name: load_text_encoder(Students(text_model=name), "cpu"),
    }[setting]


@pytest.mark.parametrize("setting", ["finetune.generator", "captions.model", "students.text_model"])
def test_a_folder_with_half_precision_weights_alone_is_found_and_loaded(setting: str, tmp_path: Path) -> None:
    name = SETTINGS[setting]
    folder = str(as_fp16(copy_of(name, tmp_path)))
    assert zoo.check({setting: folder})[setting].endswith(", fp16")
    own, other = (load_of(setting)(model).state_dict() for model in (name, folder))
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_other_copies_of_the_weights_are_neither_hashed_nor_counted(tmp_path: Path) -> None:
    from mmdd_ray.planning.costs import _weight_bytes

    folder = copy_of("tiny-sd", tmp_path)
    version, size = zoo.version(str(folder)), _weight_bytes(str(folder))
    as_fp16(copy_of("tiny-sd", tmp_path / "half"))
    shutil.copytree(tmp_path / "half" / "tiny-sd", folder, dirs_exist_ok=True)
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "v1-5-pruned.safetensors")
    assert (zoo.version(str(folder)), _weight_bytes(str(folder))) == (version, size)
    assert version == zoo.version("tiny-sd")


def hub_of(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has these folders; gives the names of the files that are downloaded."""
    taken: list[str] = []

    def model_info(api: object, name: str, timeout: float) -> SimpleNamespace:
        names = Folder(repositories[name]).names
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in names], sha="1a2b")

    def download(name: str, file: str) -> str:
        taken.append(file)
        return str(repositories[name] / file)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return taken


def test_models_of_the_hub_are_looked_at_without_their_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = hub_of(
        {"a/sd": as_fp16(copy_of("tiny-sd", tmp_path)), "a/bert": zoo.FOLDER / "tiny-bert"}, monkeypatch
    )
    found = zoo.check({"finetune.generator": "a/sd", "students.text_model": "a/bert"})
    assert found["finetune.generator"] == "a/sd: a StableDiffusionPipeline of diffusers, fp16"
    assert zoo.variant_of("generator", "a/sd", "finetune.generator") == "fp16"
    assert all(file.endswith(".json") for file in taken)
    with pytest.raises(
        UserError, match=r"--captions.model names 'a/bert', which is BertModel of transformers"
    ):
        zoo.check({"captions.model": "a/bert"})


def test_the_hub_may_have_pickled_weights_of_clip_which_open_clip_reads_as_tensors_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = copy_of("tiny-clip", tmp_path)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    hub_of({"a/clip": folder}, monkeypatch)
    assert zoo.check({"features.clip": "hf-hub:a/clip"}).keys() == {"features.clip"}


def offline(cached: Callable[[str, bool], str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, but a cache that gives snapshots as told, and has the files of a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(folder / file))


def test_without_a_hub_the_cache_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def cached(name: str, local_files_only: bool) -> str:
        if name == "a/bert":
            return str(zoo.FOLDER / "tiny-bert")
        raise LocalEntryNotFoundError("not there")

    offline(cached, zoo.FOLDER / "tiny-bert", monkeypatch)
    assert zoo.check({"students.text_model": "a/bert", "captions.model": "a/other"}).keys() == {
        "students.text_model"
    }
    with pytest.raises(UserError, match="is BertModel of transformers"):
        zoo.check({"captions.model": "a/bert"})


def test_parts_of_a_folder_may_be_links(tmp_path: Path) -> None:
    folder = copy_of("tiny-sd", tmp_path)
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    zoo.check({"finetune.generator": str(folder)})


def test_a_config_that_may_not_be_read_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    hub_of({"a/gated": zoo.FOLDER / "tiny-bert"}, monkeypatch)

    def refused(name: str, file: str) -> str:
        raise GatedRepoError("you are not among those who may", response=Mock())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    with pytest.raises(
        UserError, match=r"'a/gated', which has a config.json that cannot be read .*gated.*HF_TOKEN"
    ):
        zoo.check({"students.text_model": "a/gated"})
    assert zoo.variant_of("text encoder", "a/gated", "students.text_model") is None  # the library will say it


def test_pickled_weights_on_the_hub_may_have_been_converted_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = copy_of("tiny-bert", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub_of({"a/bert": folder}, monkeypatch)
    zoo.check({"students.text_model": "a/bert"})


def test_a_mistyped_folder_is_no_fault_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(
        UserError, match=r"models/llava/7b is neither a folder that exists nor a name of the hub"
    ):
        zoo.check({"captions.model": "models/llava/7b"})


def test_a_cache_with_configs_alone_refuses_nothing_but_another_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machines that load the model may have its weights."""
    from huggingface_hub.errors import IncompleteSnapshotError

    (tmp_path / "config.json").write_bytes((zoo.FOLDER / "tiny-bert" / "config.json").read_bytes())

    def cached(name: str, local_files_only: bool) -> str:
        raise IncompleteSnapshotError("parts are missing", str(tmp_path))

    offline(cached, tmp_path, monkeypatch)
    zoo.check({"students.text_model": "a/bert"})
    with pytest.raises(UserError, match="is BertModel of transformers"):
        zoo.check({"captions.model": "a/bert"})


def test_looking_at_models_imports_no_torch() -> None:
    code = (
        "import sys; from mmdd_ray.models import zoo; "
        f"zoo.check({SETTINGS!r}); assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
