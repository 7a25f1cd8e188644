"""Typed settings: frozen dataclasses with a docstring per field; no torch and no ray, so --help is instant.

Here are the sections that methods share; those of one method are in its own `settings.py`, and so is the whole of
what a run depends on. `job_settings.py` says which sections a job must have. Sizes carry their unit in their name.
Imports nothing but `errors`.
"""

from mmdd_ray.config.data import SOURCE_SETTINGS, Data
from mmdd_ray.config.evaluation import Evaluation, LabelledBaseline, LabelledEvaluation
from mmdd_ray.config.fields import (
    ESSENTIAL,
    Count,
    Essential,
    Positive,
    Precision,
    Rate,
    Weight,
    extending,
    operational,
    share,
)
from mmdd_ray.config.generation import Finetune, Synthesis
from mmdd_ray.config.job_settings import (
    EncoderSettings,
    LabelledSettings,
    MatchingSettings,
    PairSettings,
    RunSettings,
    judged_by,
)
from mmdd_ray.config.pair_learning import PairLearning
from mmdd_ray.config.pools import Features, Pool, Training
from mmdd_ray.config.run import Plan, Rehearse, Run, TrackerName
from mmdd_ray.config.students import Classifiers, StudentForm, Students

__all__ = [
    "ESSENTIAL",
    "SOURCE_SETTINGS",
    "Classifiers",
    "Count",
    "Data",
    "EncoderSettings",
    "Essential",
    "Evaluation",
    "Features",
    "Finetune",
    "LabelledBaseline",
    "LabelledEvaluation",
    "LabelledSettings",
    "MatchingSettings",
    "PairLearning",
    "PairSettings",
    "Plan",
    "Pool",
    "Positive",
    "Precision",
    "Rate",
    "Rehearse",
    "Run",
    "RunSettings",
    "StudentForm",
    "Students",
    "Synthesis",
    "TrackerName",
    "Training",
    "Weight",
    "extending",
    "judged_by",
    "operational",
    "share",
]
