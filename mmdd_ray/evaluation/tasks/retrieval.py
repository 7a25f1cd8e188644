"""Image and text retrieval by dual encoders. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmdd_ray.config import Students
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.evaluation.metrics import chance
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.probes.sets import ProbedPairs
from mmdd_ray.evaluation.tasks.task import Look, Trained
from mmdd_ray.protocols import PairProtocol


@dataclass(frozen=True)
class Retrieval:
    """A `Task`: dual encoders find the image of a caption, and the captions of an image."""

    settings: Students
    protocol: PairProtocol
    name = "retrieval"
    main_metric = "mean_recall"
    section = "students"
    memory_setting = "students.batch_pairs"

    @property
    def image_px(self) -> int:
        return self.settings.image_px

    @property
    def models(self) -> str:
        return f"{self.settings.image_model} + {self.settings.text_model} at {self.image_px} px"

    @property
    def made_by(self) -> list[str]:
        return [f"{self.protocol.name} {self.protocol.version}"]

    def learning_rates(self, held_out: PairSet) -> tuple[float, ...]:
        return self.protocol.learning_rates

    @property
    def prepare(self) -> Callable[[PairSet | LearntPairs, str], np.ndarray] | None:
        return self._encode_texts if self.protocol.trained == "frozen-text" else None

    def _encode_texts(self, given: PairSet | LearntPairs, device: str) -> np.ndarray:
        """Features of all texts, by the text encoder that students leave alone."""
        from mmdd_ray.evaluation.tasks.students import frozen_text_features

        return frozen_text_features(given, self.settings, device, self.protocol)

    def train(
        self,
        given: PairSet | LearntPairs,
        prepared: np.ndarray | None,
        *,
        learning_rate: float,
        seed: int,
        device: str,
        look: Look | None = None,
    ) -> Trained:
        from mmdd_ray.evaluation.tasks.students import train_student

        return train_student(
            given,
            self.settings,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            text_PT=prepared,
            protocol=self.protocol,
            look=look,
        )

    def test(self, student: object, held_out: PairSet, prepared: np.ndarray | None) -> dict[str, float]:
        from mmdd_ray.evaluation.tasks.students import evaluate_student
        from mmdd_ray.models.students import DualEncoder

        assert isinstance(student, DualEncoder)
        found = evaluate_student(student, held_out, text_PT=prepared)
        if isinstance(held_out, ProbedPairs):
            from mmdd_ray.evaluation.probes.score import probe_student

            found |= probe_student(student, held_out.probes)
        return found

    def chance(self, held_out: PairSet) -> dict[str, float]:
        """Takes all images to have their mean number of captions."""
        found = chance(held_out.n_images, round(held_out.n_pairs / held_out.n_images))
        return found | held_out.probes.chance() if isinstance(held_out, ProbedPairs) else found
