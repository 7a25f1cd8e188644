"""The settings that parts of the engine need, whatever the method."""

from typing import Protocol, runtime_checkable

from mmdd_ray.config.data import Data
from mmdd_ray.config.evaluation import Evaluation
from mmdd_ray.config.pair_learning import PairLearning
from mmdd_ray.config.pools import Features
from mmdd_ray.config.run import Plan, Rehearse, Run
from mmdd_ray.config.students import Classifiers, Students


class EncoderSettings(Protocol):
    """A section that names the encoders of a student."""

    @property
    def section(self) -> str: ...
    @property
    def image_model(self) -> str: ...
    @property
    def text_model(self) -> str: ...
    @property
    def image_px(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...


class RunSettings(Protocol):
    """Settings of any job that has a run directory."""

    @property
    def run(self) -> Run: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def rehearse(self) -> Rehearse: ...
    @property
    def data(self) -> Data: ...
    @property
    def features(self) -> Features: ...


@runtime_checkable
class PairSettings(RunSettings, Protocol):
    """Settings of a job whose sets of pairs are judged by students."""

    @property
    def students(self) -> Students: ...
    @property
    def evaluation(self) -> Evaluation: ...


@runtime_checkable
class LabelledSettings(RunSettings, Protocol):
    """Settings of a job whose labelled sets are judged by classifiers."""

    @property
    def classifiers(self) -> Classifiers: ...
    @property
    def evaluation(self) -> Evaluation: ...


class MatchingSettings(PairSettings, Protocol):
    """Settings of a job that learns pairs by matching moments."""

    @property
    def matching(self) -> PairLearning: ...


def judged_by(settings: RunSettings) -> Students | Classifiers:
    """Settings of the models that are trained on the sets of a run to measure them."""
    if isinstance(settings, LabelledSettings):
        return settings.classifiers
    assert isinstance(settings, PairSettings)
    return settings.students
