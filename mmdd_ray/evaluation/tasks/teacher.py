"""The teacher whose answers are the targets of soft labels. No Ray."""

import io
from collections.abc import Callable
from dataclasses import replace

import safetensors.torch
import torch
from torch import Tensor, nn

from mmdd_ray.config import Classifiers
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.tasks.classifiers import evaluate_classifier, train_classifier
from mmdd_ray.models.classifiers import build_classifier
from mmdd_ray.protocols import label_protocol
from mmdd_ray.protocols.soft_label import SOFT_LABEL
from mmdd_ray.storage.store import folder_and_name

RATE = 0.05
LOOKS = 100  # on the way, for whoever waits
PREFIX = "module."  # of weights that were saved from DataParallel
NESTED = ("state_dict", "model")  # where checkpoints of trainings keep the weights


def train_teacher(
    images: LabelledSet,
    settings: Classifiers,
    *,
    seed: int,
    device: str,
    on_steps: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Tensor], float]:
    """Weights of `classifiers.model` with batch norm, trained on real images as its students are, on hard labels and
    without CutMix; and its accuracy on these images, in percent.

    Args:
        on_steps: Called now and then with how many steps are done.
    """
    own = replace(settings, steps=settings.teacher_steps, learning_rates=(RATE,), cutmix=0.0, looks=LOOKS)
    protocol = replace(
        label_protocol("equal-budget", own),
        norm="batch",
        statistics="imagenet",
        augmentation="crop",
        mirrors=True,
    )
    network, _ = train_classifier(
        images,
        own,
        learning_rate=RATE,
        seed=seed,
        device=device,
        protocol=protocol,
        look=lambda _, done: on_steps(done),
    )
    top_1 = evaluate_classifier(network, images, protocol)["top-1"]
    return {name: value.cpu().contiguous() for name, value in network.state_dict().items()}, top_1


def teacher_accuracy(teacher: nn.Module, test: LabelledSet) -> float:
    """Top-1 accuracy of the teacher on these images, in percent."""
    return evaluate_classifier(teacher, test, SOFT_LABEL)["top-1"]


def load_teacher(uri: str, settings: Classifiers, n_classes: int, device: str) -> nn.Module:
    """The teacher with these weights, ready to answer.

    Args:
        uri: A file of safetensors, or a state dict as torch saves it (.pt, .pth, .tar), read without its code.

    Raises:
        FileNotFoundError, StorageError: There is no such file, or it cannot be read.
        UserError: It holds other weights.
    """
    store, name = folder_and_name(uri)
    content, network = store.read_bytes(name), build_classifier(settings, n_classes, "batch")
    try:
        network.load_state_dict(_state(content, name))
    except Exception as error:  # torch and safetensors raise what they like for foreign files
        # torch's first line is only that there are errors
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise UserError(
            f"classifiers.teacher does not hold the weights of {settings.model} with batch norm for {n_classes} "
            f"classes at {settings.image_px} px ({reason[:200]}); name another file, or say --classifiers.teacher "
            "None to have one trained on the real images"
        ) from error
    return network.to(device).eval().requires_grad_(False)


def _state(content: bytes, name: str) -> dict[str, Tensor]:
    if name.endswith(".safetensors"):
        return safetensors.torch.load(content)
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    return {key.removeprefix(PREFIX): value for key, value in found.items()}
