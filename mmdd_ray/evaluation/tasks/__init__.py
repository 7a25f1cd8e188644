"""Evaluation tasks, one a file; `task_of` chooses by the settings.

A task trains a student on a set, tests it on held-out data, and says what chance scores. Its file here imports no
torch, which the driver need not load; the training itself is beside it (`students.py`, `classifiers.py`), by the one
loop of `trainer.py`. To add a task, write both, its settings in `config/students.py`, and name it below.
"""

from mmdd_ray.config import Classifiers, Students
from mmdd_ray.evaluation.tasks.classification import Classification
from mmdd_ray.evaluation.tasks.retrieval import Retrieval
from mmdd_ray.evaluation.tasks.task import Task


def task_of(settings: Students | Classifiers) -> Task:
    """The task that these are the settings of."""
    return Retrieval(settings) if isinstance(settings, Students) else Classification(settings)
