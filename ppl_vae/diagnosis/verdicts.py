"""Verdicts on weights, codes, guide, data and prior: each answers a question, grades a figure and names a remedy.

``proposed`` says that the guide is a point mass and was replaced by a Laplace proposal. The verdict on the noise is in
``noise_verdict``.
"""

import math

from ..estimate import Number, mean_over_data
from ..evaluation.kl_terms import ACTIVE
from ..evaluation.lower_bounds import Bounds
from ..evaluation.pareto import k_threshold
from .calibration import FALSE_ALARMS, Departure, Ranks
from .code_usage import Collapse
from .grades import THRESHOLDS, Verdict, grade, grade_of_difference, interval, interval_reach, wilson
from .predictive import EXTREMES, Check
from .residuals import NoiseCalibration

__all__ = ["judge_codes", "judge_data", "judge_guide", "judge_prior", "judge_weights"]

SHOWN = 6  # quantities that are listed by name
SMALL_BIAS = 0.1  # nats by which the estimate of KL(q(z) || p(z)) may be too large and is still corrected


def judge_weights(bounds: Bounds, num_particles: int, *, proposed: bool = False) -> Verdict:
    """Can the importance-weighted bound be trusted?

    The figure is the share of data with a high k-hat. Its interval is Wilson's.

    Args:
        bounds: The bounds of each datum.
        num_particles: Number of draws K per datum of these bounds.
        proposed: Whether the draws come from a Laplace proposal.
    """
    rows = len(bounds.k_hat)
    threshold = k_threshold(num_particles)
    above = int((bounds.k_hat > threshold).sum())
    low, high = wilson(above, rows)
    sentences = [
        f"k-hat is above {threshold:.2f} for {above} of {rows} data ({100 * above / rows:.1f} %, with a 95 % interval "
        f"from {100 * low:.1f} % to {100 * high:.1f} %).",
        f"The median effective sample size is {float(bounds.ess.median()):.0f} of {num_particles} draws.",
    ]
    if proposed:
        sentences.append("The guide is a point mass, so this is the answer for the Laplace proposal around its codes.")
    return Verdict(
        title="Can the importance-weighted bound be trusted?",
        grade=grade(low, high, THRESHOLDS["weights"]),
        scale="weights",
        figure=Number(above / rows, (high - low) / 4),
        found=" ".join([*sentences, *_gain_in_words(bounds)]),
        remedy=_remedy_of_weights(proposed=proposed) if above else "",
    )


def _gain_in_words(bounds: Bounds) -> list[str]:
    """Say how far the importance-weighted bound is above the ELBO, in sentences."""
    gain = bounds.importance_weighted - bounds.elbo
    finite = gain[gain.isfinite()]
    missing = len(gain) - len(finite)
    sentences = []
    if len(finite) > 1:
        sentences.append(
            f"The importance-weighted bound is {mean_over_data(finite)} nats above the ELBO. The KL of q from the "
            "posterior is at least as large."
        )
    if missing:
        sentences.append(f"{missing} data have no finite bound and are left out of this mean.")
    return sentences


def _remedy_of_weights(*, proposed: bool) -> str:
    remedy = "The weighted bounds of these data and their errors cannot be trusted: raise K."
    if proposed:
        return remedy
    return f"{remedy} If k-hat stays high, widen q: use a full covariance, or train with an importance-weighted bound."


def judge_codes(found: Collapse, noise: NoiseCalibration, rows: int, *, proposed: bool = False) -> Verdict:
    """Do the codes carry information?

    The figure is the share of units that are not active. Its interval starts at the share of units whose variance is
    certainly below the threshold. It ends at the share of those whose variance may be below it.
    """
    units = len(found.variance)
    reach = interval_reach(rows)
    variances = list(zip(found.variance, found.variance_error, strict=True))
    surely = sum(variance + reach * error <= ACTIVE for variance, error in variances)
    perhaps = sum(variance - reach * error <= ACTIVE for variance, error in variances)
    unsure = perhaps - surely
    sentences = [
        f"{found.active} of {units} units are active.",
        f"The codes carry {found.mutual_information} nats of information about x, of at most {found.log_rows:.2f} nats "
        f"that {rows} data can show.",
    ]
    if unsure:
        sentences.append(f"For {unsure} of the units there are too few data to decide.")
    return Verdict(
        title="Do the codes carry information?",
        grade=grade(surely / units, perhaps / units, THRESHOLDS["codes"]),
        scale="codes",
        figure=Number(1 - found.active / units, unsure / (2 * reach * units)),
        found=" ".join(sentences),
        remedy=_remedy_of_codes(noise, proposed=proposed) if found.active < units else "",
    )


def _remedy_of_codes(noise: NoiseCalibration, *, proposed: bool) -> str:
    if noise.floor:
        return f"The noise may hide what the codes could carry. {noise.floor}"
    ways = ["a smaller z_dim"]
    if noise.learned is False:
        ways.append("a smaller sigma")
    if not proposed:
        ways.append("a slower rise of the KL weight")
    return f"Units that are not active carry no information. Try {', or '.join(ways)}."


def judge_guide(found: Ranks, *, proposed: bool = False) -> Verdict:
    """Is q the posterior?

    The figure is the largest distance of ranks from uniform ones. It is graded only if the test finds a difference.
    """
    title = "Is q the posterior, on the model's own data?"
    distance, error = found.distance
    worst = int(distance.argmax())
    figure = Number(float(distance[worst]), float(error[worst]))
    if not found.departures:
        simulations = len(found.ranks)
        visible = math.sqrt(math.log(2 * len(found.names) / FALSE_ALARMS) / (2 * simulations))
        graded = grade(0.0, visible, THRESHOLDS["guide"])
        says = f"{simulations} simulations show no difference. They would show a distance of {visible:.2f} or more."
        remedy = "" if graded == "good" else "Raise simulations to see smaller differences."
        return Verdict(title, graded, "guide", figure, says, remedy)
    off = [found.names.index(name) for name in found.departures]
    low = max(float(distance[index] - 2 * error[index]) for index in off)
    remedy = "Train longer, or use a more flexible q: a full covariance or a larger encoder."
    if proposed:
        remedy = "The Laplace approximation is not the posterior here. Train the guide that convert(variant) returns."
    graded = grade_of_difference(low, THRESHOLDS["guide"])
    return Verdict(title, graded, "guide", figure, _departures_in_words(found), remedy)


def _departures_in_words(found: Ranks) -> str:
    listed = [f"{name} ({_departure_in_words(name, each)})" for name, each in found.departures.items()]
    hidden = len(listed) - SHOWN
    more = f"; and {hidden} more" if hidden > 0 else ""
    return (
        f"The ranks of {len(listed)} of {len(found.names)} quantities are not uniform: "
        f"{'; '.join(listed[:SHOWN])}{more}."
    )


def _departure_in_words(name: str, found: Departure) -> str:
    """Say what is wrong with a quantity.

    For a code, also say how far off a normal guide of a normal posterior would have to be to show it.
    """
    if not name.startswith("z["):
        return found.how
    sizes = []
    if "lie" in found.how and math.isfinite(found.shift):
        sizes.append(f"a shift of about {abs(found.shift):.2g} sd")
    if found.width != 1:
        sizes.append(f"about {found.width:.2g} times the width of the posterior")
    return f"{found.how}, with {' and '.join(sizes)}" if sizes else found.how


def judge_data(checks: list[Check], prior: str, rows: int) -> Verdict:
    """Are data from the model like held-out data?

    The figure is the largest difference in a statistic that the replicates do not explain.

    Args:
        checks: The prior-predictive checks under one prior.
        prior: The name of this prior.
        rows: Number of held-out data.
    """
    title, scale = f"Are data from {prior} like held-out data?", THRESHOLDS["made"]
    sizes = _sizes(checks)
    off = [check for check in checks if check.p_value < FALSE_ALARMS / len(checks)]
    if off:
        figure = max(sizes[check.statistic] for check in off)
        low = max(interval(sizes[check.statistic], 2.0)[0] for check in off)
        graded = grade_of_difference(low, scale)
        return Verdict(title, graded, "made", figure, _differences_in_words(off), _remedy_of_data(off))
    figure = max([sizes[name] for name in ("mean", "standard deviation") if name in sizes] or sizes.values())
    graded = grade(0.0, interval(figure, interval_reach(rows))[1], scale)
    says = f"They agree in all {len(checks)} statistics."
    if graded != "good":
        says += " This says little, because data sets of the model differ much from each other."
    return Verdict(title, graded, "made", figure, says)


def _sizes(checks: list[Check]) -> dict[str, Number]:
    """The difference in each statistic, in standard deviations of the data, or in mean energies for an energy.

    Categories have no standard deviation. The difference in a statistic of theirs is a share of the statistic.
    """
    observed = {check.statistic: check.observed for check in checks}
    sd = observed.get("standard deviation")
    energy = 0.0 if sd is None else sd**2 + observed["mean"] ** 2
    sizes = {}
    for check in checks:
        unit = energy if "energy" in check.statistic else check.observed if sd is None else sd
        difference = abs(check.observed - check.replicated)
        if unit > 0:
            sizes[check.statistic] = Number(difference / unit, check.spread / unit)
        else:  # data without a spread have no unit
            sizes[check.statistic] = Number(math.inf if difference > 0 else 0.0, 0.0)
    return sizes


def _differences_in_words(off: list[Check]) -> str:
    listed = [
        f"{check.statistic} {check.observed:.3g} (model: {check.replicated:.3g} ± {check.spread:.2g})" for check in off
    ]
    return f"They differ in: {'; '.join(listed)}."


def _remedy_of_data(off: list[Check]) -> str:
    if {check.statistic for check in off} <= EXTREMES:
        return "Only extreme values differ: try a likelihood with other tails."
    return "Try another p(z) (an ex-post mixture or a learned prior), or a larger decoder."


def judge_prior(found: Collapse, rows: int) -> Verdict:
    """Do the codes fill p(z)?

    The figure is KL(q(z) || p(z)). Moments of the codes bound it from below, and an estimate that is too large on
    average bounds it from above.
    """
    title, scale = "Do codes lie where p(z) does?", THRESHOLDS["prior"]
    figure = found.aggregate_kl
    bias = math.exp(min(found.mutual_information.value or 0.0, found.log_rows)) / rows
    low = _least_kl(found, bias, interval_reach(rows))
    high = interval(figure, interval_reach(rows))[1]
    says = f"KL(q(z) || p(z)) is estimated at {figure} nats, which is too large on average."
    if low <= scale.look and high > scale.bad and bias >= SMALL_BIAS:
        reason = f"{rows} data are too few to estimate the aggregate of codes that carry so much information"
        return Verdict(title, "left out", "prior", figure, f"{says} The question is left out: {reason}.")
    if low > 0:
        says += f" It is at least {max(low, 0.0):.2g} nats."
    remedy = ""
    if low > scale.look:
        remedy = "Samples from p(z) lie where there are no codes: use an ex-post mixture, or learn the prior."
    return Verdict(title, grade(low, high, scale), "prior", figure, says, remedy)


def _least_kl(found: Collapse, bias: float, reach: float) -> float:
    """A lower bound of KL(q(z) || p(z)), nats.

    The estimate minus its bias is such a bound only if the bias is small. A large bias is not known well enough.
    """
    least = [0.0]
    if found.aggregate_kl_least.value is not None:
        least.append(interval(found.aggregate_kl_least, reach)[0])
    if bias < SMALL_BIAS:
        least.append(interval(found.aggregate_kl, reach)[0] - bias)
    return max(least)
