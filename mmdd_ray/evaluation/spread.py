"""Mean and spread of the scores of a set that was drawn several times. Imports neither torch nor Ray."""

# K draws of a set, S students of each

from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(runs_KS: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean and spread of one metric of one set, for the report.

    Args:
        runs_KS: Scores of the students of each draw; the same number of students for each.

    Returns:
        ``mean`` over all students; ``std``, the sample standard deviation of the students of a draw (n − 1), pooled
        over the draws: √(mean of the draws' variances), 0 for one student each; and ``runs``, all scores, draw by
        draw. Of several draws also ``draw_means``, and ``std_between_draws``, the sample standard deviation (n − 1) of
        these means. That holds what is left of the students' own noise in a mean over S of them, so between draws that
        do not differ it is about std / √S.
    """
    scores_KS = np.array(runs_KS, dtype=np.float64)
    several = scores_KS.shape[1] > 1
    found = {
        "mean": float(np.mean(scores_KS)),
        "std": float(np.sqrt(np.mean(np.var(scores_KS, axis=1, ddof=1)))) if several else 0.0,
        "runs": [score for runs in runs_KS for score in runs],
    }
    if len(runs_KS) > 1:
        means_K = scores_KS.mean(axis=1)
        found["draw_means"] = means_K.tolist()
        found["std_between_draws"] = float(np.std(means_K, ddof=1))
    return found
