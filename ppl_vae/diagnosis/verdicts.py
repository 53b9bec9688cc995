"""Verdicts of a diagnosis: a question, a graded figure with its error, what was found, and what to do about it.

Every verdict grades the interval of two standard errors around its figure, not the figure alone (see ``grade``). The
two thresholds of each figure stand in ``SCALES``, which the page prints.
"""

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from ..estimate import Number, mean_over_data
from ..evaluation.kl_terms import ACTIVE
from ..evaluation.pareto import k_threshold
from .calibration import FALSE_ALARMS, Departure, Ranks
from .code_usage import Collapse
from .predictive import CENTRAL, Check, NoiseCalibration

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["SCALES", "Scale", "Verdict", "grade", "verdicts"]

PROPOSED = "The guide is a point mass: this is of the Laplace proposal around its codes."
SHOWN = 6  # quantities that are listed by name


class Scale(NamedTuple):
    """The thresholds of a figure, of which less is better.

    Attributes:
        figure: What is graded.
        look: A verdict is no longer good where the figure is shown to be above it.
        bad: A verdict is bad where the figure is shown to be above it.
        why: What these thresholds mean.
    """

    figure: str
    look: float
    bad: float
    why: str


SCALES = {
    "weights": Scale(
        "share of data whose k-hat is above its threshold",
        0.01,
        0.1,
        "The mean over data is moved by single data in proportion to their share: one in a hundred is left in.",
    ),
    "codes": Scale(
        "share of units that are not active",
        0.0,
        0.99,
        f"A unit is active if its posterior mean has a variance above {ACTIVE} over data. Bad means that none is.",
    ),
    "guide": Scale(
        "largest distance of a curve of ranks from its expectation",
        0.0,
        0.12,
        "The chi-square test says whether there is a distance at all. A mean that is 0.3 posterior standard deviations "
        "off shows 0.12; a standard deviation off by a factor of 2 shows 0.16.",
    ),
    "made": Scale(
        "largest difference of a statistic that is off, in standard deviations of the data",
        0.0,
        0.5,
        "The replicates say whether there is a difference at all. Energies are divided by the mean energy.",
    ),
    "noise": Scale(
        "departure of residual / sigma from 1, and of each coverage from its mass, relative to that",
        0.05,
        0.2,
        "A ratio that is off by 0.05 costs about 0.0025 nats per number of x, one that is off by 0.2 about 0.04.",
    ),
    "prior": Scale(
        "KL(q(z) || p(z)), nats",
        0.5,
        2.0,
        "Codes whose mean is one standard deviation off in one unit are 0.5 nats away, two standard deviations 2 nats.",
    ),
}


class Verdict(NamedTuple):
    """The answer to one question.

    Attributes:
        title: The question.
        grade: ``"good"``, ``"look"`` (shown to be off, but not by much, or too few data to tell), ``"bad"``, or
            ``"left out"`` where the question cannot be asked.
        scale: The name in ``SCALES`` of the thresholds.
        figure: What was graded, with its standard error.
        found: What was found, in words.
        remedy: What to do, empty where nothing is to be done.
    """

    title: str
    grade: str
    scale: str
    figure: Number
    found: str
    remedy: str = ""

    @property
    def thresholds(self) -> Scale:
        """What the figure was held against."""
        return SCALES[self.scale]

    @property
    def good(self) -> bool | None:
        """Whether the grade is good; None where the question cannot be asked."""
        return None if self.grade == "left out" else self.grade == "good"

    @property
    def answer(self) -> str:
        """The grade as an answer to the question."""
        return {"good": "yes", "bad": "no"}.get(self.grade, self.grade)

    @property
    def text(self) -> str:
        """What was found and what to do."""
        return f"{self.found} {self.remedy}".strip()


def grade(low: float, high: float, scale: Scale) -> str:
    """Grade a figure that lies between ``low`` and ``high``, of which less is better.

    It is bad where even ``low`` is above ``scale.bad``. It is good where ``low`` is not above ``scale.look``, so that
    nothing is shown to be off, and ``high`` is not above ``scale.bad``, so that nothing bad can be hidden by the error.
    All else is to be looked at.

    Example:
        >>> scale = Scale("a share", look=0.01, bad=0.1, why="")
        >>> grade(0.0, 0.02, scale), grade(0.03, 0.05, scale), grade(0.0, 0.5, scale), grade(0.2, 0.5, scale)
        ('good', 'look', 'look', 'bad')
    """
    if low > scale.bad:
        return "bad"
    return "good" if low <= scale.look and high <= scale.bad else "look"


def errors(rows: int) -> float:
    """Standard errors on each side of a 95 % interval, by Student's law: 2 for many data, 13 for two."""
    from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]

    return max(2.0, float(stdtrit(rows - 1, 0.975)))


def wilson(count: int, rows: int) -> tuple[float, float]:
    """The interval of two standard errors for a share of which ``count`` of ``rows`` were seen (Wilson, 1927).

    It does not close where none or all were seen: 0 of 60 may be a share of 6 %.
    """
    share, weight = count / rows, 4 / rows
    middle = (share + weight / 2) / (1 + weight)
    half = 2 * math.sqrt(share * (1 - share) / rows + weight / (4 * rows)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def verdicts(found: "Diagnosis") -> list[Verdict]:
    """The verdicts, in the order of the page."""
    return [
        weights(found),
        codes(found.collapse, found.noise, found.rows, proposed=bool(found.proposal)),
        guide(found.ranks, proposed=bool(found.proposal)),
        *(made(prior, checks, found.rows) for prior, checks in found.checks.items()),
        noise(found.noise, found.rows),
        prior(found.collapse, found.rows),
    ]


def weights(found: "Diagnosis") -> Verdict:
    """Can the importance-weighted bound be trusted? The share of data with a high k-hat, in its Wilson interval."""
    threshold, rows = k_threshold(found.num_particles), found.rows
    above = int((found.bounds.k_hat > threshold).sum())
    low, high = wilson(above, rows)
    gain = found.bounds.importance_weighted - found.bounds.elbo
    finite = gain[gain.isfinite()]
    says = [
        f"k-hat is above {threshold:.2f} for {above} of {rows} data ({above / rows:.1%}), in a 95 % interval from "
        f"{low:.1%} to {high:.1%}; the median effective sample size is {float(found.bounds.ess.median()):.0f} of "
        f"{found.num_particles}."
    ]
    if found.proposal:
        says.append(PROPOSED)
    if len(finite) > 1:
        says.append(
            f"The importance-weighted bound is {mean_over_data(finite)} nats above the ELBO: q is at least so far from "
            "the posterior, in KL."
        )
    if len(finite) < rows:
        says.append(f"{rows - len(finite)} data have no finite bound, and are left out of this mean.")
    remedy = ""
    if above:
        remedy = "For these data, that bound and its error are not to be trusted: raise K"
        widen = ", and if k-hat stays, widen q (a full covariance, or training by an importance-weighted bound)"
        remedy += "." if found.proposal else f"{widen}."
    graded = grade(low, high, SCALES["weights"])
    figure = Number(above / rows, (high - low) / 4)
    return Verdict("Can the importance-weighted bound be trusted?", graded, "weights", figure, " ".join(says), remedy)


def codes(found: Collapse, noise: NoiseCalibration, rows: int, *, proposed: bool = False) -> Verdict:
    """Do the codes carry information? The share of units whose variance is, within its error, below the threshold."""
    count, reach = len(found.variance), errors(rows)
    pairs = list(zip(found.variance, found.variance_error, strict=True))
    surely = sum(variance + reach * error <= ACTIVE for variance, error in pairs)
    perhaps = sum(variance - reach * error <= ACTIVE for variance, error in pairs)
    says = (
        f"{found.active} of {count} units are active; the codes carry {found.mutual_information} of at most "
        f"{found.log_rows:.2f} nats that tell so many data apart."
    )
    unsure = perhaps - surely
    if unsure:
        says += f" For {unsure} of the units so few data cannot tell."
    graded = grade(surely / count, perhaps / count, SCALES["codes"])
    remedy = ""
    if found.active < count and noise.floor:
        remedy = f"What codes could carry may be hidden by the noise: {noise.floor}"
    elif found.active < count:
        ways = ["a smaller z_dim"] + ["a smaller sigma"] * (noise.learned is False)
        ways += [] if proposed else ["a slower rise of the KL"]
        remedy = f"Units that are not active carry nothing: {', or '.join(ways)}."
    figure = Number(1 - found.active / count, (perhaps - surely) / (2 * reach * count))
    return Verdict("Do the codes carry information?", graded, "codes", figure, says, remedy)


def guide(found: Ranks, *, proposed: bool) -> Verdict:
    """Is q the posterior? The distance of ranks from uniform, where the test says that there is one."""
    title, simulations = "Is q the posterior, on the model's own data?", len(found.ranks)
    distance, error = found.distance
    worst = int(distance.argmax())
    figure = Number(float(distance[worst]), float(error[worst]))
    visible = math.sqrt(math.log(2 * len(found.names) / FALSE_ALARMS) / (2 * simulations))
    if not found.departures:
        says = f"{simulations} simulations show no difference; a distance of {visible:.2f} they would show."
        graded = grade(0.0, visible, SCALES["guide"])
        return Verdict(title, graded, "guide", figure, says, "" if graded == "good" else "Raise simulations to tell.")
    off = [found.names.index(name) for name in found.departures]
    low = max(float(distance[index] - 2 * error[index]) for index in off)
    listed = [f"{name}: {_described(name, each)}" for name, each in found.departures.items()]
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    says = f"Ranks of {len(off)} of {len(found.names)} quantities are not uniform: {'; '.join(listed[:SHOWN])}{more}."
    remedy = "Train longer, or give q more freedom: full covariance, a larger encoder."
    if proposed:
        remedy = "The Laplace approximation is not the posterior here: convert(variant) gives a guide that is trained."
    return Verdict(title, _shown(low, SCALES["guide"]), "guide", figure, says, remedy)


def _described(name: str, found: Departure) -> str:
    """What is wrong; of a code also how much, as a normal guide of a normal posterior would show it."""
    sizes: list[str] = []
    if not name.startswith("z["):
        return found.how
    if "lie" in found.how and math.isfinite(found.shift):
        sizes.append(f"a shift of about {abs(found.shift):.2g} sd")
    if found.width != 1:
        sizes.append(f"about {found.width:.2g} times as wide as the posterior")
    return found.how + (f" ({', '.join(sizes)})" if sizes else "")


def made(prior: str, checks: list[Check], rows: int) -> Verdict:
    """Are data from the model like held-out data? The size of the differences that the replicates do not explain."""
    title, scale = f"Are data from {prior} like held-out data?", SCALES["made"]
    sizes = _sizes(checks)
    off = [check for check in checks if check.p_value < FALSE_ALARMS / len(checks)]
    if off:
        listed = [
            f"{row.statistic} {row.observed:.3g}, the model's {row.replicated:.3g} ± {row.spread:.2g}" for row in off
        ]
        figure = max(sizes[row.statistic] for row in off)
        low = max(_interval(sizes[row.statistic], 2.0)[0] for row in off)
        says, remedy = (
            f"They differ in: {'; '.join(listed)}.",
            "Try another p(z) (ex post or learned), or a larger decoder.",
        )
        if {check.statistic for check in off} <= {"minimum", "maximum", "sd over data of the energy"}:
            remedy = "Extremes alone differ: try a likelihood with other tails."
        return Verdict(title, _shown(low, scale), "made", figure, says, remedy)
    figure = max(sizes["mean"], sizes["standard deviation"])
    graded = grade(0.0, _interval(figure, errors(rows))[1], scale)
    says = f"In {len(checks)} statistics they are alike."
    if graded != "good":
        says += " The model's own data sets differ so much from each other that this says little."
    return Verdict(title, graded, "made", figure, says)


def _sizes(checks: list[Check]) -> dict[str, Number]:
    """The difference of each statistic in standard deviations of the data, energies in mean energies."""
    observed = {check.statistic: check.observed for check in checks}
    sd, energy = observed["standard deviation"], observed["standard deviation"] ** 2 + observed["mean"] ** 2
    found = {}
    for check in checks:
        unit = energy if "energy" in check.statistic else sd
        difference = abs(check.observed - check.replicated)
        far = Number(math.inf if difference > 0 else 0.0, 0.0)  # data without a spread have no unit
        found[check.statistic] = Number(difference / unit, check.spread / unit) if unit > 0 else far
    return found


def _shown(low: float, scale: Scale) -> str:
    """The grade of what a test has shown to be off, by no less than ``low``."""
    return "bad" if low > scale.bad else "look"


def noise(found: NoiseCalibration, rows: int) -> Verdict:
    """Is the noise as wide as the residuals? Departures of the ratio and of the coverages, each with its error."""
    title, scale = "Is the noise as wide as the residuals?", SCALES["noise"]
    if found.reason:
        return Verdict(title, "left out", "noise", Number(None, reason=found.reason), f"Left out: {found.reason}.")
    wanted = dict(zip([1.0, *CENTRAL], [found.ratio, *found.coverage], strict=True))
    distances = {mass: _distance(number, mass, errors(rows)) for mass, number in wanted.items() if number.error}
    kind = _kind(found, distances, errors(rows))
    worst = max(distances.values(), key=lambda distance: distance.low)
    high = max(distance.high for distance in distances.values())
    held = ", ".join(f"{mass:.0%} intervals hold {100 * (wanted[mass].value or 0):.1f} %" for mass in CENTRAL)
    says = f"{_ratio_in_words(found)}; {held}."
    if kind:
        says = f"{says} {KINDS[kind]}"
    elif high > scale.bad:
        says = f"{says} So few data cannot tell more."
    remedy = _remedy(found, kind) if kind else ""
    return Verdict(title, grade(worst.low, high, scale), "noise", worst.figure, says, remedy)


class Distance(NamedTuple):
    """How far a number is from what it should be, relative to that.

    Attributes:
        figure: The distance with its standard error.
        low, high: The interval of two standard errors.
        side: 1 where the number is shown to be too large, -1 where too small, 0 where neither.
    """

    figure: Number
    low: float
    high: float
    side: int


def _distance(number: Number, wanted: float, reach: float) -> Distance:
    difference = (number.value or 0.0) / wanted - 1
    figure = Number(abs(difference), (number.error or 0.0) / wanted)
    low, high = _interval(figure, reach)
    side = 0 if low <= SCALES["noise"].look else 1 if difference > 0 else -1
    return Distance(figure, low, high, side)


KINDS = {
    "narrow": "The noise is too narrow.",
    "wide": "The noise is too wide.",
    "heavy": "Most residuals are smaller, and a few are far larger, than the noise says: its tails are too light.",
    "light": "Residuals are more alike in size than the noise says: its tails are too heavy.",
}


def _kind(found: NoiseCalibration, distances: dict[float, Distance], reach: float) -> str:
    """A key of ``KINDS``, or nothing where no departure is shown.

    Both intervals hold too few numbers where the noise is too narrow, and too many where it is too wide. The shape is
    wrong where the outer one disagrees with the inner one, or where the mean square of the residuals does not fit those
    in the middle: a normal law that holds a share c in its central half has residuals ``0.674 / Phi^-1((1 + c) / 2)``
    times its width.
    """
    inner, outer = (distances[mass].side for mass in CENTRAL)
    if outer and outer != inner:
        return "light" if outer > 0 else "heavy"
    ratio, tolerance = distances.get(1.0), 1 + SCALES["noise"].look
    if ratio is not None and (inner or ratio.side):
        share = min(max(found.coverage[0].value or 0.0, 1e-9), 1 - 1e-9)
        middle = NormalDist().inv_cdf(0.75) / NormalDist().inv_cdf((1 + share) / 2)
        low, high = _interval(found.ratio, reach)
        if inner >= 0 and low > middle * tolerance:
            return "heavy"
        if inner <= 0 and ratio.side <= 0 and high < middle / tolerance:
            return "light"
    side = inner or (0 if ratio is None else -ratio.side)
    return {1: "wide", 0: "", -1: "narrow"}[side]


def _ratio_in_words(found: NoiseCalibration) -> str:
    if found.ratio.value is None:
        return f"Residuals are judged by coverage alone: p(x | z) has {found.ratio.reason}"
    words = f"Residuals are {found.ratio} times sigma ({found.residual} and {found.sigma})"
    if found.ratio.error is None:
        words += ", a ratio without an error: p(x | z) has no fourth moment"
    return words


def _remedy(found: NoiseCalibration, kind: str) -> str:
    """What to do about the noise: it depends on whether its scale is learned, fixed, or not there."""
    if found.floor and kind != "narrow":
        return found.floor
    if kind == "heavy":
        if found.likelihood == "StudentT":
            return "Use fewer degrees of freedom, or a scale for each coordinate."
        return "Use a likelihood with heavier tails (StudentT), or a sigma for each coordinate (Heteroscedastic)."
    if kind == "light":
        return "Use a likelihood with lighter tails, or give q more freedom, so that its draws fit the data."
    if found.learned is None:
        return "The likelihood has no scale to learn: use one that has."
    if not found.learned:
        factor = f", or state one {found.ratio.value:.3g} times as large" if found.ratio.value else ""
        return f"sigma is fixed: learn it (LearnedSigma, or another likelihood with a learned scale){factor}."
    if kind == "narrow":
        return (
            "sigma was learned, from training data that are fitted more closely than these: train longer if it still "
            "rises; else use more data or a smaller network, or stop earlier."
        )
    return "sigma was learned and has not come down: train longer; if it stays, change the tails of the likelihood."


def prior(found: Collapse, rows: int) -> Verdict:
    """Do the codes fill p(z)? KL(q(z) || p(z)), between what moments show of it and the estimate that is too large."""
    title, scale, reach = "Do codes lie where p(z) does?", SCALES["prior"], errors(rows)
    high = _interval(found.aggregate_kl, reach)[1]
    bias = math.exp(min(found.mutual_information.value or 0.0, found.log_rows)) / rows
    least = [0.0]
    if found.aggregate_kl_least.value is not None:
        least.append(_interval(found.aggregate_kl_least, reach)[0])
    if bias < 0.1:  # elsewhere the estimate is too large by an unknown amount
        least.append(_interval(found.aggregate_kl, reach)[0] - bias)
    low = max(least)
    says = f"q(z), the aggregate of the codes, is {found.aggregate_kl} nats from p(z), or less."
    if low <= scale.look and high > scale.bad and bias >= 0.1:
        reason = f"{rows} data are too few to show the aggregate of codes that tell so many data apart"
        return Verdict(title, "left out", "prior", found.aggregate_kl, f"{says} Left out: {reason}.")
    says += f" It is at least {max(low, 0.0):.2g} nats." if low > 0 else ""
    remedy = ""
    if low > scale.look:
        remedy = "Samples from p(z) come from where no codes are: sample from an ex-post mixture, or learn the prior."
    return Verdict(title, grade(low, high, scale), "prior", found.aggregate_kl, says, remedy)


def _interval(number: Number, reach: float) -> tuple[float, float]:
    """``reach`` standard errors on each side of a number."""
    value, error = number.value or 0.0, number.error or 0.0
    return value - reach * error, value + reach * error
