"""Asks a trained dual encoder everything beyond retrieval."""

# N images, V and D widths of image features and embeddings

import numpy as np
import torch
from torch import Tensor

from mmdd_ray.evaluation.metrics import LINEAR_PROBE
from mmdd_ray.evaluation.probes.compositional import compositional_accuracy
from mmdd_ray.evaluation.probes.linear import linear_probe
from mmdd_ray.evaluation.probes.sets import ClassSet, ContrastSet, Probes
from mmdd_ray.evaluation.probes.zero_shot import class_embeddings, zero_shot_accuracy
from mmdd_ray.models.students import ENCODE_ROWS, DualEncoder


@torch.inference_mode()
def probe_student(student: DualEncoder, probes: Probes) -> dict[str, float]:
    """Metrics of the student in percent, by name, as ``Probes.chance`` has them.

    A student whose training diverged (an embedding is not finite) scores 0 in all of them.
    """
    student.eval()
    try:
        found = {} if probes.classes is None else _recognise(student, probes.classes)
        return found if probes.contrasts is None else found | _tell_apart(student, probes.contrasts)
    except _Diverged:
        return dict.fromkeys(probes.chance(), 0.0)


class _Diverged(Exception):
    """An embedding is not finite."""


def _recognise(student: DualEncoder, classes: ClassSet) -> dict[str, float]:
    feature_NV = _image_features(student, classes.images.images)
    class_CD = class_embeddings(lambda texts: _embed_texts(student, texts), classes.prompts)
    label_N = torch.tensor(classes.images.labels, device=feature_NV.device)  # read-only in the object store
    found = zero_shot_accuracy(student.embed_image(feature_NV), class_CD, label_N)
    if classes.linear:
        features = feature_NV.float().cpu().numpy()
        found[LINEAR_PROBE] = linear_probe(features, classes.images.labels, classes.trains_N)
    return found


def _tell_apart(student: DualEncoder, contrasts: ContrastSet) -> dict[str, float]:
    image_KD = student.embed_image(_image_features(student, contrasts.images))
    caption_MD, negative_MD = (
        _embed_texts(student, list(texts)) for texts in (contrasts.captions, contrasts.negatives)
    )
    return compositional_accuracy(image_KD, caption_MD, negative_MD, contrasts.owner_M, contrasts.kinds)


def _image_features(student: DualEncoder, images_NHWC: np.ndarray) -> Tensor:
    device = student.device
    starts = range(0, len(images_NHWC), ENCODE_ROWS)
    chunks = (torch.tensor(images_NHWC[start : start + ENCODE_ROWS], device=device) for start in starts)
    return _finite(torch.cat([student.image(chunk) for chunk in chunks]))


def _embed_texts(student: DualEncoder, texts: list[str]) -> Tensor:
    return _finite(student.embed_text(student.text.encode_captions(texts)))


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise _Diverged
    return values
