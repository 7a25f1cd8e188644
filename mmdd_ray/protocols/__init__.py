"""Named protocols: how students are trained on a set and tested, one file each. Imports neither torch nor Ray.

`equal-budget` is ours and the default: every set gets the same number of steps, and its own learning rate from
validation data. The others follow a publication to the last number that is known, and their files say what is not.
Figures of different protocols cannot be compared, so each protocol has tables of its own.
"""

from mmdd_ray.config import Classifiers, Students
from mmdd_ray.protocols.covmatch_both_encoders import COVMATCH_BOTH_ENCODERS
from mmdd_ray.protocols.equal_budget import labels_of_settings, pairs_of_settings
from mmdd_ray.protocols.hard_label import HARD_LABEL
from mmdd_ray.protocols.lors_frozen_text import LORS_FROZEN_TEXT
from mmdd_ray.protocols.protocol import LabelProtocol, PairProtocol, Protocol, Training
from mmdd_ray.protocols.soft_label import SOFT_LABEL

__all__ = [
    "PUBLISHED_FOR_LABELS",
    "PUBLISHED_FOR_PAIRS",
    "LabelProtocol",
    "PairProtocol",
    "Protocol",
    "Training",
    "label_protocol",
    "pair_protocol",
]

PUBLISHED_FOR_PAIRS = {one.name: one for one in (LORS_FROZEN_TEXT, COVMATCH_BOTH_ENCODERS)}
PUBLISHED_FOR_LABELS = {one.name: one for one in (HARD_LABEL, SOFT_LABEL)}


def pair_protocol(name: str, students: Students) -> PairProtocol:
    """The protocol of that name for sets of pairs; `students` decide what `equal-budget` is."""
    return PUBLISHED_FOR_PAIRS.get(name) or pairs_of_settings(students)


def label_protocol(name: str, classifiers: Classifiers) -> LabelProtocol:
    """The protocol of that name for labelled sets; `classifiers` decide what `equal-budget` is."""
    return PUBLISHED_FOR_LABELS.get(name) or labels_of_settings(classifiers)
