"""`equal-budget`: our protocol, to compare sets with each other.

A schedule of epochs gives a larger set more steps, so it measures budget and set together. Here every set gets the same
optimiser steps, batches and augmentation, whatever its size, and its own learning rate from one grid, chosen on
validation data, because sets differ most in the rate that suits them. The test data are looked at after the last step;
looks before that are for the learning curve alone, and choose nothing.
"""

from collections.abc import Sequence
from functools import partial

from mmdd_ray.config import Classifiers, Students
from mmdd_ray.protocols.protocol import LabelProtocol, PairProtocol, Training

EQUAL_BUDGET = "equal-budget"
ENCODERS_TO_HEADS = 0.1  # where both encoders are trained, as in CovMatch (arXiv 2510.18583)
SOURCE = "mmdd-ray"


def pairs_of_settings(students: Students) -> PairProtocol:
    """The protocol with the steps, batches and rates of `students`."""
    return PairProtocol(
        name=EQUAL_BUDGET,
        version=2,  # which 1 differs from for sets with learnt similarities alone
        source=SOURCE,
        summary=f"{students.steps:,} steps of SGD on {students.batch_pairs} pairs, whatever the size of the set; "
        f"{_rates(students.learning_rates)}; images are shifted",
        learning_rates=students.learning_rates,
        momentum=students.momentum,
        weight_decay=students.weight_decay,
        trained=students.trained,
        encoder_share=ENCODERS_TO_HEADS if students.trained == "both-encoders" else 1.0,
        temperature=students.temperature,
        shifts=True,
        by_caption=False,
        training=partial(_pairs_training, students.steps, students.batch_pairs, students.looks),
    )


def _rates(learning_rates: Sequence[float]) -> str:
    if len(learning_rates) > 1:
        return "its learning rate from one grid on validation data"
    return "one learning rate for all sets"


def _pairs_training(steps: int, batch: int, looks: int, images: int) -> Training:
    return Training(
        batch=min(batch, images),
        steps=steps,
        decay=0.1,
        decays_at=((steps + 1) // 2,),
        looks_at=_evenly(steps, looks),
    )


def labels_of_settings(classifiers: Classifiers) -> LabelProtocol:
    """The protocol with the steps, batches and rates of `classifiers`."""
    changes = "shifted and mirrored" if classifiers.flip else "shifted"
    if classifiers.cutmix:
        changes += f", {100 * classifiers.cutmix:.0f} % of the batches mixed by CutMix"
    return LabelProtocol(
        name=EQUAL_BUDGET,
        source=SOURCE,
        summary=f"{classifiers.steps:,} steps of SGD on {classifiers.batch_images} images with hard labels, whatever "
        f"the size of the set; {_rates(classifiers.learning_rates)}; images are {changes}",
        learning_rates=classifiers.learning_rates,
        momentum=classifiers.momentum,
        weight_decay=classifiers.weight_decay,
        norm="instance",
        statistics="unit",
        augmentation="shift",
        mirrors=classifiers.flip,
        cutmix=classifiers.cutmix,
        training=partial(_labels_training, classifiers.steps, classifiers.batch_images, classifiers.looks),
    )


def _labels_training(steps: int, batch: int, looks: int, images: int, classes: int) -> Training:
    return Training(
        batch=min(batch, images),
        steps=steps,
        decay=0.2,
        decays_at=(round(2 / 3 * steps), round(5 / 6 * steps)),
        looks_at=_evenly(steps, looks),
    )


def _evenly(steps: int, looks: int) -> tuple[int, ...]:
    """As many steps at equal distances, the last left out."""
    return tuple(sorted({round(steps * number / (looks + 1)) for number in range(1, looks + 1)} - {0, steps}))
