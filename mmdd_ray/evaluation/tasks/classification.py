"""Classification by networks that are trained from scratch. Imports no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdd_ray.config import Classifiers
from mmdd_ray.evaluation.labelled import LabelledSet
from mmdd_ray.evaluation.metrics import accuracy_chance


@dataclass(frozen=True)
class Classification:
    """A `Task`: classifiers name the class of an image."""

    settings: Classifiers
    name = "classification"
    main_metric = "top-1"
    section = "classifiers"
    memory_setting = "classifiers.batch_images"
    prepare = None

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return self.settings.learning_rates

    def train(
        self,
        given: LabelledSet,
        prepared: np.ndarray | None,
        *,
        learning_rate: float,
        seed: int,
        device: str,
    ) -> tuple[Any, np.ndarray]:
        from mmdd_ray.evaluation.tasks.classifiers import train_classifier

        return train_classifier(given, self.settings, learning_rate=learning_rate, seed=seed, device=device)

    def test(self, student: Any, held_out: LabelledSet, prepared: np.ndarray | None) -> dict[str, float]:
        from mmdd_ray.evaluation.tasks.classifiers import evaluate_classifier

        return evaluate_classifier(student, held_out)

    def chance(self, held_out: LabelledSet) -> dict[str, float]:
        return accuracy_chance(len(held_out.classes))
