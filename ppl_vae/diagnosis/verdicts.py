"""Verdicts of a diagnosis: an answer a question, in plain words, and what to do if it is a bad one."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..evaluation import mean_over_data
from ..psis import k_threshold
from .collapse import Collapse
from .predictive import CENTRAL, Check, NoiseCalibration
from .sbc import FALSE_ALARMS

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

__all__ = ["Verdict", "verdicts"]


PROPOSED = "The guide is a point mass: this is of the Laplace proposal around its codes."


class Verdict(NamedTuple):
    """An answer to one question, and what to do if it is a bad one; ``good`` is None where it cannot be asked."""

    title: str
    good: bool | None
    text: str

    @property
    def answer(self) -> str:
        """In a word."""
        return "left out" if self.good is None else "yes" if self.good else "no"


def verdicts(found: "Diagnosis") -> list[Verdict]:
    """An answer a question, in the order of the page."""
    return [_weights(found), _codes(found.collapse), _guide(found), *_made(found.checks), _sigma(found.noise)]


def _share(above: Tensor) -> str:
    return f"{int(above.sum())} of {len(above)} data ({float(above.double().mean()):.1%})"


def _weights(found: "Diagnosis") -> Verdict:
    threshold, gain = k_threshold(found.num_particles), found.bounds.importance_weighted - found.bounds.elbo
    above = found.bounds.k_hat > threshold
    proposed = " " + PROPOSED if found.proposal else ""
    text = (
        f"k-hat is above {threshold:.2f} for {_share(above)}; the median effective sample size is "
        f"{float(found.bounds.ess.median()):.0f} of {found.num_particles}.{proposed} "
        f"The importance-weighted bound is {mean_over_data(gain)} nats above the ELBO: "
        "q is at least so far from the posterior, in KL."
    )
    if bool(above.any()):
        text += " For the data above, that bound and its error are not to be trusted: raise K" + (
            "."
            if found.proposal
            else ", and if k-hat stays, widen q (a full covariance, or training by an importance-weighted bound)."
        )
    return Verdict("Can the importance-weighted bound be trusted?", not bool(above.any()), text)


def _codes(found: Collapse) -> Verdict:
    count = len(found.variance)
    text = (
        f"{found.active} of {count} units are active; the codes carry {found.mutual_information} of at most "
        f"{found.log_rows:.2f} nats that tell so many data apart; q(z) is {found.aggregate_kl} nats from p(z), or less."
    )
    aggregate, error = found.aggregate_kl.value or 0.0, found.aggregate_kl.error or 0.0
    far = aggregate - 2 * error > 0.5 * max(1.0, found.mutual_information.value or 0.0)
    if found.active < count:
        text += (
            " Units that are not active carry nothing: a smaller z_dim, a smaller sigma, or a slower rise of the KL."
        )
    if far:
        text += " Samples from p(z) come from where no codes are: sample from an ex-post mixture, or learn the prior."
    return Verdict("Do the codes carry information?", found.active == count and not far, text)


def _guide(found: "Diagnosis") -> Verdict:
    ranks, simulations = found.ranks, len(found.ranks.ranks)
    if not ranks.off:
        return Verdict(
            "Is q the posterior, on the model's own data?", True, f"As far as {simulations} of them can tell."
        )
    shown = list(ranks.off.items())
    listed = "; ".join(f"{name}: {how}" for name, how in shown[:6]) + (
        f"; and {len(shown) - 6} more" if len(shown) > 6 else ""
    )
    text = f"Ranks of {len(shown)} of {len(ranks.names)} quantities are not uniform: {listed}."
    remedy = "" if found.proposal else " Train longer, or give q more freedom: full covariance, a larger encoder."
    return Verdict("Is q the posterior, on the model's own data?", False, text + remedy)


def _made(checks: dict[str, list[Check]]) -> list[Verdict]:
    verdicts = []
    for prior, rows in checks.items():
        off = [
            f"{row.statistic} {row.observed:.3g}, the model's {row.replicated:.3g} ± {row.spread:.2g}"
            for row in rows
            if row.p_value < FALSE_ALARMS / len(rows)
        ]
        text = f"They differ in: {'; '.join(off)}." if off else f"In {len(rows)} statistics they are alike."
        verdicts.append(Verdict(f"Are data from {prior} like held-out data?", not off, text))
    return verdicts


def _sigma(found: NoiseCalibration) -> Verdict:
    title = "Is the noise as wide as the residuals?"
    if found.reason:
        return Verdict(title, None, f"Left out: {found.reason}.")
    pairs = [(1.0, found.ratio), *zip(CENTRAL, found.coverage, strict=True)]
    off = any(
        abs((number.value or 0.0) - wanted) > max(0.05 * wanted, 3 * (number.error or 0.0)) for wanted, number in pairs
    )
    held = ", ".join(f"{mass:.0%} intervals hold {100 * (one.value or 0):.1f} %" for mass, one in pairs[1:])
    text = f"Residuals are {found.ratio} times sigma ({found.residual} and {found.sigma}); {held}."
    ratio = found.ratio.value or 0.0
    if off and abs(ratio - 1) > 0.05:
        text += f" sigma is too {'small' if ratio > 1 else 'large'}: learn it, or train longer where it is learned."
    elif off:
        text += " sigma is right on average and the shape is not: a heavier tail, or a sigma for each coordinate."
    return Verdict(title, not off, text)
