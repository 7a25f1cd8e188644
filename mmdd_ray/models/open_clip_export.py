"""A student as a model of open_clip, for whatever reads those: clip_benchmark, open_clip's own evaluations, and others.

    export_open_clip(student, Path("student"))
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:student")
    tokenizer = open_clip.get_tokenizer("local-dir:student")

Both heads subtract a mean feature m before they multiply, ``G (h − m)``. The image tower's projection may have a bias,
which is −G·m. The text tower's may not; there m is taken from the bias of the encoder's last layer norm, after which
only the mean over the tokens follows: mean(x − m) = mean(x) − m.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdd_ray.config import Students
from mmdd_ray.errors import UserError
from mmdd_ray.models.students import AS_IS, DualEncoder, load_student

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TEXT_TYPES = ("bert", "roberta", "xlm-roberta")
"""Text encoders that open_clip knows and that end in a layer norm: by transformers' ``model_type``."""
TOLERANCE = 1e-4  # of an entry of a unit-norm embedding
SAMPLE_CAPTIONS = ("a photo of a dog", "two small red squares on the left, and a ring", "a")


@torch.no_grad()
def export_open_clip(student: DualEncoder, folder: Path, temperature: float = Students.temperature) -> None:
    """Writes the student into a new folder that open_clip loads as ``local-dir:FOLDER``.

    Embeddings are the same to ``TOLERANCE``, for images of the student's size and for texts that open_clip leaves as
    they are: it first mends HTML entities and broken Unicode. The folder is loaded and compared before this returns.
    Larger images are resized and cropped by open_clip, whose rounding differs a little from that of mmdd-ray. open_clip
    finds the text encoder's config by the folder's absolute path: export again where the folder is to lie elsewhere.

    Args:
        temperature: That of the student's training, of which logits are made.

    Raises:
        UserError: open_clip has no model that is the same as this student, or the folder is there already.
    """
    folder = _new(folder)
    was_training = student.training
    student.eval()
    try:
        _check_form(student)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as unfinished:
            written = Path(unfinished, "student")
            _write(student, written, written, temperature)
            _compare(student, written)
            # only now is the path known under which open_clip will look for the text encoder
            _write_config(student, written, folder, temperature)
            written.rename(folder)
    finally:
        student.train(was_training)


def check_open_clip(students: Students, folder: Path) -> None:
    """Looks, before such students are trained, whether ``export_open_clip`` could write one, by writing an untrained
    one elsewhere.

    Raises:
        UserError: It could not.
    """
    _new(folder)
    with tempfile.TemporaryDirectory() as elsewhere:
        export_open_clip(load_student(students, 0, "cpu"), Path(elsewhere, "student"), students.temperature)


def _new(folder: Path) -> Path:
    """The folder's absolute path."""
    folder = folder.expanduser().absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder for the exported student")
    return folder


def _check_form(student: DualEncoder) -> None:
    encoder = student.text
    if student.form != AS_IS:
        raise UserError(
            "open_clip has no model of the form that a published protocol gives its students; export one that was "
            "trained under equal-budget"
        )
    config, tokenizer = encoder.backbone.config, encoder.tokenizer
    if config.model_type not in TEXT_TYPES:
        raise UserError(
            f"open_clip has no text tower for an encoder of the type {config.model_type}; it takes "
            f"{', '.join(TEXT_TYPES)}: train students with one of these as students.text_model"
        )
    if tokenizer.pad_token_id != config.pad_token_id or tokenizer.padding_side != "right":
        raise UserError(
            f"open_clip takes the token {config.pad_token_id} for padding, which this student's tokenizer pads with "
            f"{tokenizer.pad_token_id} on the {tokenizer.padding_side}; choose another students.text_model"
        )


def _write(student: DualEncoder, folder: Path, text_config: Path, temperature: float) -> None:
    folder.mkdir()
    # contiguous copies, as safetensors stores neither shared memory nor channels-last order
    weights = {
        name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in _weights(student)
    }
    weights["logit_scale"] = torch.tensor(math.log(1 / temperature))
    save_file(weights, folder / WEIGHTS)
    student.text.backbone.config.save_pretrained(folder)
    student.text.tokenizer.save_pretrained(folder)
    _write_config(student, folder, text_config, temperature)


def _weights(student: DualEncoder) -> list[tuple[str, Tensor]]:
    """Weights by the names that they have in open_clip, but for the scale of logits."""
    image_head, text_head = student.image_head.weight, student.text_head.weight
    image = {f"visual.trunk.{name}": value for name, value in student.image.backbone.state_dict().items()}
    text = {f"text.transformer.{name}": value for name, value in student.text.backbone.state_dict().items()}
    last_bias = _last_bias(student)
    text[last_bias] = text[last_bias] - student.text_mean
    heads = {
        "visual.head.proj.weight": image_head,
        "visual.head.proj.bias": -(image_head @ student.image_mean),
        "text.proj.weight": text_head,
    }
    return [*image.items(), *text.items(), *heads.items()]


def _last_bias(student: DualEncoder) -> str:
    """Name of the bias of the last layer norm of the text encoder."""
    layers = student.text.backbone.config.num_hidden_layers
    return f"text.transformer.encoder.layer.{layers - 1}.output.LayerNorm.bias"


def _write_config(student: DualEncoder, folder: Path, text_config: Path, temperature: float) -> None:
    backbone: Any = student.image.backbone
    mean, std = ((values / 255).flatten().tolist() for values in (student.image.mean, student.image.std))
    config = {
        "model_cfg": {
            "embed_dim": student.image_head.out_features,
            "init_logit_scale": math.log(1 / temperature),
            "vision_cfg": {
                "timm_model_name": backbone.pretrained_cfg["architecture"],
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": student.image.image_px,
            },
            "text_cfg": {
                "hf_model_name": str(text_config),
                "hf_model_pretrained": False,
                "hf_tokenizer_name": str(text_config),
                "hf_proj_type": "linear",
                "hf_pooler_type": "mean_pooler",
                "context_length": student.text.max_tokens,
            },
        },
        "preprocess_cfg": {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _compare(student: DualEncoder, folder: Path) -> None:
    """Loads the folder and compares embeddings of some images and captions.

    Raises:
        UserError: It cannot be loaded, or an embedding is another one.
    """
    import open_clip

    name = f"local-dir:{folder}"
    try:
        with torch.random.fork_rng([]):
            model = open_clip.create_model(name).eval()
    except (RuntimeError, TypeError, KeyError, AttributeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"open_clip cannot hold this student ({reason[:200]}); choose another students.image_model or "
            "students.text_model"
        ) from error
    device, px = student.device, student.image.image_px
    pixels_BCHW = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    pixels_BCHW = student.image.normalise(255 * pixels_BCHW.permute(0, 2, 3, 1).to(device))
    captions = list(SAMPLE_CAPTIONS)
    ids_BL = open_clip.get_tokenizer(name)(captions)
    pairs = {
        "image": (
            student.embed_image(student.image.encode(pixels_BCHW)),
            model.encode_image(pixels_BCHW.cpu(), normalize=True),
        ),
        "text": (
            student.embed_text(student.text.encode_captions(captions)),
            model.encode_text(ids_BL, normalize=True),
        ),
    }
    for what, (own_BD, other_BD) in pairs.items():
        apart = (own_BD.cpu() - other_BD).abs().max().item()
        if not apart <= TOLERANCE:
            raise UserError(
                f"open_clip's {what} tower gives other embeddings than this student (by up to {apart:.2g}); choose "
                f"another students.{what}_model"
            )
