"""The verdict on the noise: whether p(x | z) is as wide as the residuals, what is wrong with it, and what to do."""

from statistics import NormalDist
from typing import NamedTuple

from ..estimate import Number
from .grades import THRESHOLDS, Verdict, grade, interval, interval_reach
from .residuals import CENTRAL, NoiseCalibration

__all__ = ["judge_noise"]

FAULTS = {
    "narrow": "The noise is too narrow.",
    "wide": "The noise is too wide.",
    "heavy": "Most residuals are smaller than the noise says, and a few are far larger: its tails are too light.",
    "light": "The residuals are more alike in size than the noise says: its tails are too heavy.",
}


class Distance(NamedTuple):
    """How far a number is from its expected value, relative to this value.

    Attributes:
        figure: The distance with its standard error.
        low, high: The interval of the distance.
        side: 1 if the number is shown to be too large, -1 if it is shown to be too small, else 0.
    """

    figure: Number
    low: float
    high: float
    side: int


def judge_noise(found: NoiseCalibration, rows: int) -> Verdict:
    """Is the noise as wide as the residuals?

    The figure is the largest relative distance of the ratio and of the coverages from their expected values.
    """
    title, scale = "Is the noise as wide as the residuals?", THRESHOLDS["noise"]
    if found.reason:
        figure = Number(None, reason=found.reason)
        return Verdict(title, "left out", "noise", figure, f"The question is left out: {found.reason}.")
    reach = interval_reach(rows)
    ratio = _distance(found.ratio, 1.0, reach) if found.ratio.error else None
    coverages = [_distance(share, mass, reach) for share, mass in zip(found.coverage, CENTRAL, strict=True)]
    distances = coverages if ratio is None else [ratio, *coverages]
    worst = max(distances, key=lambda distance: distance.low)
    high = max(distance.high for distance in distances)
    fault = _fault(found, ratio, coverages, reach)
    sentences = [_ratio_in_words(found), _coverage_in_words(found)]
    if fault:
        sentences.append(FAULTS[fault])
    elif high > scale.bad:
        sentences.append("There are too few data to say more.")
    return Verdict(
        title=title,
        grade=grade(worst.low, high, scale),
        scale="noise",
        figure=worst.figure,
        found=" ".join(sentences),
        remedy=_remedy(found, fault) if fault else "",
    )


def _distance(number: Number, expected: float, reach: float) -> Distance:
    difference = (number.value or 0.0) / expected - 1
    figure = Number(abs(difference), (number.error or 0.0) / expected)
    low, high = interval(figure, reach)
    shown = low > THRESHOLDS["noise"].look
    side = 1 if difference > 0 else -1
    return Distance(figure, low, high, side if shown else 0)


def _fault(found: NoiseCalibration, ratio: Distance | None, coverages: list[Distance], reach: float) -> str:
    """A key of ``FAULTS``, or an empty string if no fault is shown.

    Both central intervals hold too few numbers if the noise is too narrow, and too many if it is too wide. The tails
    are wrong if the outer interval disagrees with the inner one, or if the ratio disagrees with the inner one.
    """
    inner, outer = (coverage.side for coverage in coverages)
    if outer and outer != inner:
        return "light" if outer > 0 else "heavy"
    ratio_side = 0 if ratio is None else ratio.side
    if ratio is not None and (inner or ratio_side):
        tails = _tails(found, inner, ratio_side, reach)
        if tails:
            return tails
    side = inner or -ratio_side
    return {1: "wide", 0: "", -1: "narrow"}[side]


def _tails(found: NoiseCalibration, inner: int, ratio_side: int, reach: float) -> str:
    """``"heavy"`` or ``"light"`` if the mean square of the residuals does not fit the coverage of the central half.

    Otherwise the string is empty. If residuals are normal and a share c of them lies in the central half of a normal
    law, they are ``0.674 / Phi^-1((1 + c) / 2)`` times as wide as this law.
    """
    tolerance = 1 + THRESHOLDS["noise"].look
    share = min(max(found.coverage[0].value or 0.0, 1e-9), 1 - 1e-9)
    middle = NormalDist().inv_cdf(0.75) / NormalDist().inv_cdf((1 + share) / 2)
    low, high = interval(found.ratio, reach)
    if inner >= 0 and low > middle * tolerance:
        return "heavy"
    if inner <= 0 and ratio_side <= 0 and high < middle / tolerance:
        return "light"
    return ""


def _ratio_in_words(found: NoiseCalibration) -> str:
    if found.ratio.value is None:
        return f"The residuals are judged by coverage alone, because p(x | z) has {found.ratio.reason}."
    words = f"The residuals are {found.ratio} times sigma ({found.residual} and {found.sigma})"
    if found.ratio.error is None:
        words += "; this ratio has no error, because p(x | z) has no fourth moment"
    return f"{words}."


def _coverage_in_words(found: NoiseCalibration) -> str:
    shares = [
        f"{100 * (share.value or 0):.1f} % of the numbers lie in the central {100 * mass:.0f} %"
        for share, mass in zip(found.coverage, CENTRAL, strict=True)
    ]
    return f"{' and '.join(shares)} of p(x | z)."


def _remedy(found: NoiseCalibration, fault: str) -> str:
    """What to do about a fault. It depends on whether the scale is learned, is fixed, or does not exist."""
    if found.floor and fault != "narrow":
        return found.floor
    if fault == "heavy":
        if found.likelihood == "StudentT":
            return "Use fewer degrees of freedom, or a scale for each coordinate."
        return "Use a likelihood with heavier tails (StudentT), or a sigma for each coordinate (Heteroscedastic)."
    if fault == "light":
        return "Use a likelihood with lighter tails, or a more flexible q, so that its draws fit the data."
    if found.learned is None:
        return "The likelihood has no scale to learn: use one that has a scale."
    if not found.learned:
        factor = f", or set one that is {found.ratio.value:.3g} times as large" if found.ratio.value else ""
        return f"sigma is fixed: learn it (LearnedSigma, or another likelihood with a learned scale){factor}."
    if fault == "narrow":
        return (
            "sigma was learned from training data, and the model fits those more closely than held-out data. If the "
            "held-out bound still rises, train longer; otherwise use more data or a smaller network, or stop earlier."
        )
    return "sigma was learned and is still too large: train longer. If it stays, change the tails of the likelihood."
