"""Moments of all real pairs under the encoders that CovMatch starts from, in one pass by the features stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdd_ray.config import MatchingSettings, PairLearning
from mmdd_ray.engine.run_dir import StageDir, StageResult
from mmdd_ray.features.moments import Moments
from mmdd_ray.features.precompute import precompute
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.storage.store import Store

if TYPE_CHECKING:  # torch: 2 s that the driver need not pay
    from torch import Tensor

    from mmdd_ray.matching.objective import PairMoments


@dataclass(frozen=True)
class InitialEncoders:
    """The encoders of ``match`` or ``refine`` as an ``EncoderSource`` of the features stage."""

    settings: PairLearning

    @property
    def name(self) -> str:
        return f"{self.settings.image_model}+{self.settings.text_model}"

    def load(self, device: Any) -> "_Encoders":
        from mmdd_ray.models.students import load_student

        return _Encoders(load_student(self.settings, 0, device).eval(), self.settings)


class _Encoders:
    """Features before the heads, of images that are not shifted; the feature store rounds them to float16."""

    def __init__(self, encoders: Any, settings: PairLearning) -> None:
        self._encoders, self._settings = encoders, settings
        self._device = encoders.device

    def encode_images(self, images_BHWC: np.ndarray) -> "Tensor":
        import torch

        from mmdd_ray.engine.precision import autocast

        with torch.no_grad(), autocast(self._device, self._settings.precision):
            return self._encoders.image(torch.from_numpy(images_BHWC).to(self._device)).float()

    def encode_texts(self, captions: Sequence[str]) -> "Tensor":
        import torch

        from mmdd_ray.engine.precision import autocast

        with torch.no_grad(), autocast(self._device, self._settings.precision):
            return self._encoders.text.encode_captions(captions)


def whole_stage(
    stage: StageDir, run_store: Store | None, settings: MatchingSettings, scored: Store | None = None
) -> StageResult:
    """Encodes every pair of the data with the initial encoders, into a feature store with its moments.

    Args:
        run_store: The run directory, whose rejects.parquet takes what is refused; None where the features stage has
            listed and counted it.
        scored: The store of the features stage, whose scores by CLIP say which pairs count where
            features.clip_score_fraction is below 1.

    Raises:
        UserError: as ``features.precompute.precompute``.
    """
    assert scored is not None or settings.features.clip_score_fraction == 1
    source = InitialEncoders(settings.matching)
    features = replace(settings.features, image_px=settings.matching.image_px)
    found = precompute(stage, run_store, settings.data, features, source, scored)
    return found if run_store else replace(found, rejects={})


def read_whole(store: Store, settings: MatchingSettings) -> Moments:
    """The moments that ``whole_stage`` has found."""
    return FeatureStore(store).moments(InitialEncoders(settings.matching).name)


def whole_moments(moments: Moments, device: Any) -> "PairMoments":
    """As the objective takes them."""
    import torch

    from mmdd_ray.matching.objective import PairMoments

    def tensor(values: np.ndarray) -> "Tensor":
        return torch.tensor(values, dtype=torch.float32, device=device)

    cross = moments.covariance("vl", ddof=1)
    return PairMoments(round(moments.count), tensor(moments.mean_v), tensor(moments.mean_l), tensor(cross))
