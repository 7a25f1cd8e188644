"""Differences of two methods over the same worlds, and whether they show a claim. Imports neither Ray nor torch."""

# S worlds, each with a seed of its own

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
LEAST = 3
"""Students or draws that a report asks for an interval: the spread of two of quantised figures is often 0."""
TOO_FEW, ALL_ZERO, ALL_EQUAL = "too few", "all zero", "all equal"
ROUNDING = 1e-9  # of the figures: differences that are no further apart are equal
SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"
Bar = Literal["above", "not below"]
"""A claim asks that the interval of a difference lies above 0, or above minus a margin."""
MARGIN = 0.1
"""How far below the other set's mean, as a share of it, a set may be that is called not below."""


@dataclass(frozen=True)
class Paired:
    """The mean of differences, paired but for ``welch``, and its 95 % confidence interval."""

    mean: float
    low: float
    """-inf, and ``high`` inf, where one difference says nothing of the spread."""
    high: float
    margin: float
    """A difference above minus this counts as level: `MARGIN` times the mean of theirs."""

    @classmethod
    def of(cls, ours_S: Sequence[float], theirs_S: Sequence[float]) -> "Paired":
        """Confidence interval of ours − theirs, world by world, by Student's t with S − 1 degrees of freedom.

        Worlds differ in how hard they are, which moves both methods alike; pairing takes that out.

        Examples:
            >>> difference = Paired.of([7.0, 9.0, 6.0], [5.0, 8.0, 4.0])
            >>> round(difference.mean, 2), round(difference.low, 2), difference.verdict()
            (1.67, 0.23, 'shown')

        Raises:
            ValueError: The numbers of worlds differ, or there is none.
        """
        if len(ours_S) != len(theirs_S) or not len(ours_S):
            raise ValueError(
                f"{len(ours_S)} and {len(theirs_S)} figures cannot be paired; each world needs one of both"
            )
        difference_S = np.array(ours_S, np.float64) - np.array(theirs_S, np.float64)
        mean, count = float(difference_S.mean()), len(difference_S)
        level = MARGIN * abs(float(np.mean(theirs_S)))
        if count == 1:
            return cls(mean, -inf, inf, level)
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * difference_S.std(ddof=1) / sqrt(count))
        return cls(mean, mean - half, mean + half, level)

    @classmethod
    def welch(cls, ours_S: Sequence[float], theirs_R: Sequence[float]) -> "Paired":
        """As ``of``, of figures that are not paired (Welch, Biometrika 34, 1947): the combined standard error times a
        quantile of Student's t, with the degrees of freedom of Welch and Satterthwaite.

        Raises:
            ValueError: There are fewer than two figures of one of them.
        """
        both = [np.array(own, np.float64) for own in (ours_S, theirs_R)]
        if min(map(len, both)) < 2:
            raise ValueError(f"{len(ours_S)} and {len(theirs_R)} figures; two of each are needed")
        mean = float(both[0].mean() - both[1].mean())
        level = MARGIN * abs(float(both[1].mean()))
        variances = [float(own.var(ddof=1)) / len(own) for own in both]  # of the means
        combined = sum(variances)
        if combined == 0:
            return cls(mean, mean, mean, level)
        # divided before it is squared, which would underflow
        shares = [variance / combined for variance in variances]
        freedom = 1 / sum(share**2 / (len(own) - 1) for share, own in zip(shares, both, strict=True))
        half = sqrt(combined) * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
        return cls(mean, mean - half, mean + half, level)

    def verdict(self, bar: Bar = "above") -> str:
        """Whether the difference shows a claim that ours is ``bar`` theirs.

        An interval wholly below 0 contradicts both kinds. One that holds 0 does not show that ours is above; that ours
        is not below, it shows only where all of it lies above minus the margin, so that too few or too noisy worlds
        show nothing.
        """
        if self.high < 0:
            return CONTRADICTED
        return SHOWN if self.low > (0 if bar == "above" else -self.margin) else NOT_SHOWN


def lack_of(ours_S: Sequence[float], theirs_S: Sequence[float]) -> str:
    """Why a report gives no interval of these differences: `TOO_FEW`, `ALL_ZERO` or `ALL_EQUAL`; empty where it does.

    Figures of few test data move in steps, so equal differences do not mean that there is no spread.
    """
    difference_S = np.array(ours_S, np.float64) - np.array(theirs_S, np.float64)
    rounding = ROUNDING * np.abs([ours_S, theirs_S]).max()
    if len(difference_S) > 1 and np.abs(difference_S).max() <= rounding:
        return ALL_ZERO
    if len(difference_S) < LEAST:
        return TOO_FEW
    return ALL_EQUAL if np.ptp(difference_S) <= rounding else ""


def first_above(differences: Sequence[Paired]) -> tuple[int | None, int | None]:
    """From which of several ordered conditions on, the last included, ours is above theirs.

    Returns:
        The place from which on all means are above 0, and that from which on all intervals are; None where the last
        one is not.
    """

    def since(holds: Sequence[bool]) -> int | None:
        place = len(holds)
        while place and holds[place - 1]:
            place -= 1
        return place if place < len(holds) else None

    return since([one.mean > 0 for one in differences]), since([one.low > 0 for one in differences])
