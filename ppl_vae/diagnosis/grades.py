"""Grades: when a figure of a diagnosis is good, when it is worth a look, and when it is bad.

A figure is known up to an error. Therefore the interval of two standard errors around it is graded. The two thresholds
of each figure are in ``THRESHOLDS``, which the page prints.
"""

import math
from typing import NamedTuple

from ..estimate import Number
from ..evaluation.kl_terms import ACTIVE

__all__ = [
    "THRESHOLDS",
    "Thresholds",
    "Verdict",
    "grade",
    "grade_of_difference",
    "interval",
    "interval_reach",
    "wilson",
]


class Thresholds(NamedTuple):
    """The thresholds of a figure. A smaller figure is better.

    Attributes:
        figure: The quantity that is graded.
        look: The grade is no longer good if the whole interval of the figure is above this threshold.
        bad: The grade is bad if the whole interval of the figure is above this threshold.
        why: What these thresholds mean.
    """

    figure: str
    look: float
    bad: float
    why: str


THRESHOLDS = {
    "weights": Thresholds(
        "share of data whose k-hat is above its threshold",
        look=0.01,
        bad=0.1,
        why="A single datum moves the mean over data in proportion to its share. A share of 1 % is accepted.",
    ),
    "codes": Thresholds(
        "share of units that are not active",
        look=0.0,
        bad=0.99,
        why=f"A unit is active if its posterior mean has a variance over data above {ACTIVE}. The grade is bad if no "
        "unit is active.",
    ),
    "guide": Thresholds(
        "largest distance between a curve of ranks and its expectation",
        look=0.0,
        bad=0.12,
        why="The chi-square test decides whether there is a difference at all. A mean that is off by 0.3 posterior "
        "standard deviations gives a distance of 0.12. A standard deviation that is off by a factor of 2 gives 0.16.",
    ),
    "made": Thresholds(
        "largest difference in a statistic that is off, in standard deviations of the data",
        look=0.0,
        bad=0.5,
        why="The replicates decide whether there is a difference at all. Differences of energies are divided by the "
        "mean energy.",
    ),
    "noise": Thresholds(
        "largest relative distance of residual / sigma from 1, and of a coverage from the mass of its interval",
        look=0.05,
        bad=0.2,
        why="A ratio that is off by 0.05 costs about 0.0025 nats per coordinate of x. A ratio that is off by 0.2 costs "
        "about 0.04 nats.",
    ),
    "prior": Thresholds(
        "KL(q(z) || p(z)), nats",
        look=0.5,
        bad=2.0,
        why="If the codes of one unit have a mean that is one standard deviation off, the KL is 0.5 nats. At two "
        "standard deviations it is 2 nats.",
    ),
}


class Verdict(NamedTuple):
    """The answer to one question.

    Attributes:
        title: The question.
        grade: ``"good"``, ``"look"`` (a small fault is shown, or there are too few data to decide), ``"bad"``, or
            ``"left out"`` if the question cannot be asked.
        scale: The name of the thresholds in ``THRESHOLDS``.
        figure: What was graded, with its standard error.
        found: What was found, in words.
        remedy: What to do, in words. It is empty if there is nothing to do.
    """

    title: str
    grade: str
    scale: str
    figure: Number
    found: str
    remedy: str = ""

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that the figure was compared with."""
        return THRESHOLDS[self.scale]

    @property
    def good(self) -> bool | None:
        """Whether the grade is good, or None if the question cannot be asked."""
        return None if self.grade == "left out" else self.grade == "good"

    @property
    def answer(self) -> str:
        """The grade as an answer to the question."""
        return {"good": "yes", "bad": "no"}.get(self.grade, self.grade)

    @property
    def text(self) -> str:
        """What was found and what to do."""
        return f"{self.found} {self.remedy}".strip()


def grade(low: float, high: float, scale: Thresholds) -> str:
    """Grade a figure that lies between ``low`` and ``high``. A smaller figure is better.

    The grade is ``"bad"`` if even ``low`` is above ``scale.bad``. It is ``"good"`` if ``low`` is at most
    ``scale.look``, so that no fault is shown, and ``high`` is at most ``scale.bad``, so that the error cannot hide a
    bad figure. Otherwise it is ``"look"``.

    Example:
        >>> scale = Thresholds("a share", look=0.01, bad=0.1, why="")
        >>> grade(0.0, 0.02, scale), grade(0.03, 0.05, scale), grade(0.0, 0.5, scale), grade(0.2, 0.5, scale)
        ('good', 'look', 'look', 'bad')
    """
    if low > scale.bad:
        return "bad"
    no_fault_is_shown = low <= scale.look
    nothing_bad_is_hidden = high <= scale.bad
    return "good" if no_fault_is_shown and nothing_bad_is_hidden else "look"


def grade_of_difference(low: float, scale: Thresholds) -> str:
    """Grade a difference that a test has shown, and that is at least ``low``. The grade is never good."""
    return "bad" if low > scale.bad else "look"


def interval(number: Number, reach: float) -> tuple[float, float]:
    """The interval of ``reach`` standard errors on each side of a number."""
    value, error = number.value or 0.0, number.error or 0.0
    return value - reach * error, value + reach * error


def interval_reach(rows: int) -> float:
    """The number of standard errors on each side of a 95 % interval, for a mean over ``rows`` data.

    It is a quantile of Student's t, and at least 2. It is 2 for many data, and 13 for two data.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]

    return max(2.0, float(stdtrit(rows - 1, 0.975)))


def wilson(count: int, rows: int) -> tuple[float, float]:
    """The interval of two standard errors for a share that is estimated by ``count`` of ``rows`` data (Wilson, 1927).

    It has a positive width even if the count is 0 or ``rows``: a true share of 6 % can give 0 of 60.
    """
    share, weight = count / rows, 4 / rows
    middle = (share + weight / 2) / (1 + weight)
    half = 2 * math.sqrt(share * (1 - share) / rows + weight / (4 * rows)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
