"""Evaluation tasks, one a file; `tasks_of` gives those of a comparison.

A task trains a student on a set by a protocol, tests it on held-out data, and says what chance scores. Its file here
imports no torch, which the driver need not load; the training itself is beside it (`students.py` with `texts.py`,
`classifiers.py`), by the one loop of `trainer.py`. To add a task, write both, its settings in `config/students.py`, and
name it below.
"""

from mmdd_ray.config import Classifiers, Evaluation, Students
from mmdd_ray.evaluation.tasks.classification import Classification, Teacher
from mmdd_ray.evaluation.tasks.retrieval import Retrieval
from mmdd_ray.evaluation.tasks.task import Task
from mmdd_ray.protocols import PairProtocol
from mmdd_ray.protocols.trainings import trainings
from mmdd_ray.storage.store import folder_and_name


def tasks_of(
    judged: Students | Classifiers, evaluation: Evaluation, teacher: str | None = None
) -> list[Task]:
    """Every protocol with every kind of student, each of which is trained on all sets; the main one first.

    Args:
        teacher: File with the weights of the teacher, for protocols that need one.

    Raises:
        UserError: `evaluation.students` names no encoders or no classifier.
    """
    taught_by = None
    if teacher and isinstance(judged, Classifiers):
        store, name = folder_and_name(teacher)
        taught_by = Teacher(teacher, judged, store.checksum(name))
    return [
        Retrieval(kind, protocol)
        if isinstance(protocol, PairProtocol)
        else Classification(kind, protocol, taught_by)
        for protocol, kind in trainings(judged, evaluation)
    ]
