"""A student that is written for open_clip is the same model there."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from clip_benchmark.metrics import zeroshot_retrieval
from clip_benchmark.models import load_clip
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

from mmdd_ray.config import Students
from mmdd_ray.data import shapes
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.probes.zero_shot import class_embeddings, zero_shot_accuracy
from mmdd_ray.evaluation.retrieval import retrieval_metrics
from mmdd_ray.models.open_clip_export import export_open_clip
from mmdd_ray.models.students import DualEncoder, ImageEncoder, TextEncoder, load_student

PX = 32
N = 12
SCENES = [shapes.scene(index, seed=3) for index in range(N)]
IMAGES = [scene.render(PX) for scene in SCENES]
CAPTIONS = [*(scene.captions()[0] for scene in SCENES), "a", " ".join(["red circle"] * 60)]  # some are cut
TEMPLATES = ["a photo of a {}.", "a picture with a {}"]


def centred(student: DualEncoder, images: Sequence[Image.Image] = IMAGES) -> DualEncoder:
    """With means that are not 0, as training leaves them."""
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images]))
    with torch.no_grad():
        student.centre(student.image(pixels), student.text.encode_captions(CAPTIONS))
    return student.eval()


@pytest.fixture(scope="module")
def student() -> DualEncoder:
    return centred(load_student(Students(image_px=PX, embed_dim=24), seed=1, device="cpu"))


@pytest.fixture(scope="module")
def folder(student: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "student"
    export_open_clip(student, folder, temperature=0.05)
    return folder


@torch.no_grad()
def embedded(
    student: DualEncoder, images: list[Image.Image], texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images]))
    return student.embed_image(student.image(pixels)), student.embed_text(student.text.encode_captions(texts))


@torch.no_grad()
def embedded_there(
    folder: Path, images: list[Image.Image], texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    pixels = torch.stack([preprocess(image) for image in images])
    return model.encode_image(pixels, normalize=True), model.encode_text(tokenizer(texts), normalize=True)


def test_embeddings_are_the_same(student: DualEncoder, folder: Path) -> None:
    assert student.image_mean.abs().max() > 0.1
    assert student.text_mean.abs().max() > 0.1
    for own, other in zip(
        embedded(student, IMAGES, CAPTIONS), embedded_there(folder, IMAGES, CAPTIONS), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


def test_the_folder_holds_all_of_it(student: DualEncoder, folder: Path) -> None:
    assert {path.name for path in folder.parent.iterdir()} == {"student"}  # nothing unfinished beside it
    weights = load_file(folder / "open_clip_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert weights["logit_scale"].item() == pytest.approx(math.log(20))
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == pytest.approx([0.5, 0.5, 0.5])
    assert config["preprocess_cfg"]["std"] == pytest.approx([0.3, 0.3, 0.3])
    with pytest.raises(UserError, match="is there already"):
        export_open_clip(student, folder)


def test_open_clips_zero_shot_and_retrieval_are_ours(student: DualEncoder, folder: Path) -> None:
    names = list(shapes.CLASS_NAMES)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    theirs_DC = open_clip.build_zero_shot_classifier(model, tokenizer, names, TEMPLATES)
    prompts = [[template.format(name) for template in TEMPLATES] for name in names]
    with torch.no_grad():
        ours_CD = class_embeddings(
            lambda said: student.embed_text(student.text.encode_captions(said)), prompts
        )
    torch.testing.assert_close(theirs_DC.T, ours_CD, atol=1e-4, rtol=0)
    own_ND, text_ND = embedded(student, IMAGES, CAPTIONS[:N])
    there_ND, text_there_ND = embedded_there(folder, IMAGES, CAPTIONS[:N])
    label = torch.tensor([scene.label for scene in SCENES])
    top_5 = (
        100 * (there_ND @ theirs_DC).topk(5).indices.eq(label[:, None]).any(dim=1).double().mean()
    ).item()
    assert zero_shot_accuracy(own_ND, ours_CD, label)["zero-shot/top-5"] == pytest.approx(top_5)
    ours = retrieval_metrics(own_ND.numpy(), text_ND.numpy(), np.arange(N))
    assert ours == retrieval_metrics(there_ND.numpy(), text_there_ND.numpy(), np.arange(N))


def test_clip_benchmark_reads_it(student: DualEncoder, folder: Path) -> None:
    """By retrieval: its zero-shot accuracy fails with the NumPy of today, whatever the model."""
    model, transform, tokenizer = load_clip(
        model_type="open_clip", model_name=f"local-dir:{folder}", pretrained="", cache_dir=None, device="cpu"
    )
    model.eval()  # as its command line does
    captions = [scene.captions()[:2] for scene in SCENES]
    pixels = torch.stack([transform(image) for image in IMAGES])
    batches = [(pixels[start : start + 4], captions[start : start + 4]) for start in range(0, N, 4)]
    theirs = zeroshot_retrieval.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=[1, 5])
    texts = [caption for own in captions for caption in own]
    image_ND, text_PD = (part.numpy() for part in embedded(student, IMAGES, texts))
    ours = retrieval_metrics(image_ND, text_PD, np.repeat(np.arange(N), 2))
    for k in (1, 5):
        assert 100 * theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"ir@{k}"], abs=1e-3)
        assert 100 * theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"tr@{k}"], abs=1e-3)


def text_folder(folder: Path, config: transformers.PretrainedConfig) -> str:
    """A text encoder with random weights, and the vocabulary of the zoo's."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer = TextEncoder("tiny-bert", 48).tokenizer
    tokenizer.save_pretrained(folder)
    return str(folder)


SMALL = {"vocab_size": 2133, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}


def image_folder(folder: Path, **options: int) -> str:
    """A vision transformer with random weights."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit", **options), folder, model_args=options, safe_serialization=True)
    return str(folder)


def test_roberta_and_a_vision_transformer_are_the_same_there(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        **SMALL, hidden_size=24, intermediate_size=32, max_position_embeddings=60
    )
    text = TextEncoder(text_folder(tmp_path / "roberta", config), 40)
    image = ImageEncoder(image_folder(tmp_path / "vit"), 160)
    images = [scene.render(160) for scene in SCENES[:3]]
    student = centred(DualEncoder(image, text, 24, seed=0), images)
    export_open_clip(student, tmp_path / "out")
    own, there = embedded(student, images, CAPTIONS), embedded_there(tmp_path / "out", images, CAPTIONS)
    for one, other in zip(own, there, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_text_encoders_that_open_clip_has_not_are_refused(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(
        vocab_size=2133, n_layers=1, n_heads=2, dim=24, hidden_dim=32, pad_token_id=0
    )
    text = TextEncoder(text_folder(tmp_path / "distilbert", config), 40)
    student = DualEncoder(ImageEncoder("tiny-nf", PX), text, 24, seed=0)
    with pytest.raises(UserError, match="no text tower for an encoder of the type distilbert"):
        export_open_clip(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    student.text.backbone.config.model_type = "bert"
    student.text.tokenizer.pad_token = "[UNK]"
    with pytest.raises(UserError, match="takes the token 0 for padding"):
        export_open_clip(student, tmp_path / "out")


def test_image_encoders_that_open_clip_has_not_are_refused(student: DualEncoder, tmp_path: Path) -> None:
    # the name of the architecture does not say that it is for 32 px
    image = ImageEncoder(image_folder(tmp_path / "vit", img_size=PX), PX)
    with pytest.raises(UserError, match="open_clip cannot hold this student"):
        export_open_clip(DualEncoder(image, student.text, 24, seed=0), tmp_path / "out" / "student")
    other = centred(load_student(Students(image_px=PX, embed_dim=24), seed=1, device="cpu"))
    other.image.backbone.final_conv.register_forward_hook(lambda *given: 2 * given[2] + 1)
    with pytest.raises(UserError, match="image tower gives other embeddings"):
        export_open_clip(other, tmp_path / "out" / "student")
    assert list((tmp_path / "out").iterdir()) == []
