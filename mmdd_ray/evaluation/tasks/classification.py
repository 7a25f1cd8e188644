"""Classification by networks that are trained from scratch. Imports no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdd_ray.config import Classifiers
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import accuracy_chance
from mmdd_ray.evaluation.tasks.task import Look, Trained
from mmdd_ray.protocols import LabelProtocol


@dataclass(frozen=True)
class Teacher:
    """Weights of a classifier that was trained on the real images."""

    uri: str
    """Their file."""
    settings: Classifiers
    """What it is."""
    checksum: str
    """Of the file."""


@dataclass(frozen=True)
class Classification:
    """A `Task`: classifiers name the class of an image."""

    settings: Classifiers
    protocol: LabelProtocol
    teacher: Teacher | None = None
    """Whose answers are the targets, if the protocol needs one."""
    name = "classification"
    main_metric = "top-1"
    section = "classifiers"
    memory_setting = "classifiers.batch_images"
    prepare = None

    @property
    def image_px(self) -> int:
        return self.settings.image_px

    @property
    def models(self) -> str:
        settings = self.settings
        channels = f" of {settings.width} channels" if settings.model.startswith("convnet") else ""
        return f"{settings.model}{channels} at {self.image_px} px"

    @property
    def made_by(self) -> list[str]:
        teacher = [self.teacher.checksum] if self.teacher and self.protocol.needs_teacher else []
        return [f"{self.protocol.name} {self.protocol.version}", *teacher]

    def learning_rates(self, held_out: LabelledSet) -> tuple[float, ...]:
        rates = self.protocol.learning_rates
        return tuple(self.protocol.rate_of(rate, len(held_out.classes)) for rate in rates)

    def train(
        self,
        given: LabelledSet,
        prepared: np.ndarray | None,
        *,
        learning_rate: float,
        seed: int,
        device: str,
        look: Look | None = None,
    ) -> Trained:
        from mmdd_ray.evaluation.tasks.classifiers import train_classifier
        from mmdd_ray.evaluation.tasks.teacher import load_teacher

        teacher = None
        if self.protocol.needs_teacher:
            assert self.teacher is not None
            teacher = load_teacher(self.teacher.uri, self.teacher.settings, len(given.classes), device)
        network, losses = train_classifier(
            given,
            self.settings,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            protocol=self.protocol,
            teacher=teacher,
            look=look,
        )
        training = self.protocol.training(given.n_images, len(given.classes))
        loss = "cross-entropy" if teacher is None else "divergence from the teacher's answers"
        return Trained(network, losses, training.items_seen(given.n_images), loss)

    def test(self, student: Any, held_out: LabelledSet, prepared: np.ndarray | None) -> dict[str, float]:
        from mmdd_ray.evaluation.tasks.classifiers import evaluate_classifier

        return evaluate_classifier(student, held_out, self.protocol)

    def chance(self, held_out: LabelledSet) -> dict[str, float]:
        return accuracy_chance(len(held_out.classes))
