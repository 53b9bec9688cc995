"""Figures of a diagnosis: tail indices, distribution functions, ranks, and two bar charts.

They are drawn with matplotlib alone, because arviz 0.23 and arviz 1 do not share a function for plots.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..drawing import COLOURS, GREY, LIGHT, embedded, panels, tidy
from ..evaluation.kl_terms import ACTIVE
from .calibration import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_bars", "plot_distributions", "plot_ranks", "plot_tail_indices", "rank_band"]

BAND = 0.95  # chance that a band holds the whole curve of a calibrated quantity
CURVES = 30  # predictive draws in a panel
NUMBERS = 30_000  # numbers of x in a distribution function
PANELS = 15  # panels of ranks; the quantities with the smallest p-values are shown
PLACES = 50  # ranks at which a curve is compared with its band
TRIALS = 4000  # simulated curves that a band is fitted to
DASHED = (0, (3, 1.5))


def plot_tail_indices(k_hat: Tensor, threshold: float) -> str:
    """Plot the k-hat of each datum [rows], all finite, with lines at 0, at 1 and at the threshold."""
    figure, [axes] = panels(1, 1, 11.2, 2.6)
    axes.plot(range(len(k_hat)), k_hat.tolist(), ls="", marker="+", ms=5, color=COLOURS[0])
    for level in (0.0, threshold, 1.0):
        axes.axhline(level, color=GREY, lw=1, ls=DASHED)
    tidy(axes)
    axes.set_xlabel("datum", fontsize=8)
    axes.set_ylabel("k-hat", fontsize=8)
    return embedded(figure)


def plot_distributions(data: Any) -> str:
    """Plot distribution functions of all numbers of x: predictive draws under prior and guide, and held-out data."""
    figure, (left, right) = panels(2, 2, 5.6, 2.8)
    _plot_distributions_under(data, "prior", "z ~ p(z)", left)
    _plot_distributions_under(data, "posterior", "z ~ q(z | x)", right)
    left.legend(fontsize=7, frameon=False)
    return embedded(figure)


def _plot_distributions_under(data: Any, codes: str, title: str, axes: "Axes") -> None:
    """The panel of the predictive draws whose codes are those of the group ``codes``."""
    observed = data["observed_data"]["x"]
    rows = max(1, min(observed.sizes["datum"], NUMBERS * observed.sizes["datum"] // observed.size))
    drawn = data[f"{codes}_predictive"]["x"].values[0, :CURVES, :rows]
    for index, x in enumerate(drawn):
        label = None if index else "one draw for each datum"
        axes.ecdf(x.ravel(), color=COLOURS[0], lw=0.7, alpha=0.35, label=label)
    axes.ecdf(observed.values[:rows].ravel(), color="black", lw=1.3, label="held-out data")
    tidy(axes, title)
    axes.set_xlabel("x, in the data's units", fontsize=8)


def rank_band(simulations: int, num_particles: int, places: Any) -> tuple[Any, Any]:
    """The band that holds the whole curve of uniform ranks 95 times in 100.

    If ``simulations`` ranks are uniform on 0, ..., num_particles, the number of ranks at or below one place is
    binomial. The band has the same two binomial tails at every place. They are as large as possible while 95 % of
    simulated curves are inside at all places at once.

    Returns:
        The lowest and the highest number of ranks up to each place, [places] each.

    References:
        Säilynoja, Bürkner and Vehtari, Graphical Test for Discrete Uniformity and Its Applications in
        Goodness-of-Fit Evaluation and Multiple Sample Comparison, Statistics and Computing, 2022.
    """
    from scipy.stats import binom  # type: ignore[import-untyped,unused-ignore]

    share = (places + 1) / (num_particles + 1)
    counts = np.arange(simulations + 1)[:, None]
    tail = np.minimum(binom.cdf(counts, simulations, share), binom.sf(counts - 1, simulations, share))
    between = np.diff(share, prepend=0, append=1)  # chances of a rank between neighbouring places
    curves = np.random.default_rng(0).multinomial(simulations, between, TRIALS).cumsum(-1)[:, :-1]
    smallest = tail[curves, np.arange(len(places))].min(-1)  # of each curve
    least = np.quantile(smallest, 1 - BAND, method="lower") * (1 - 1e-9)  # tails may be equal up to rounding
    inside = tail > least
    return inside.argmax(0), simulations - inside[::-1].argmax(0)


def plot_ranks(found: Ranks) -> str:
    """Plot the share of ranks up to each rank minus its expectation, with a band that holds a whole curve."""
    simulations, last = len(found.ranks), found.num_particles
    places = np.unique(np.linspace(0, last - 1, min(last, PLACES)).round())
    expected = (places + 1) / (last + 1)
    low, high = (counts / simulations - expected for counts in rank_band(simulations, last, places))
    shown = found.p_values.argsort()[:PANELS].tolist()
    figure, every = panels(len(shown), 5, 2.24, 1.6, sharey=True)
    for axes, index in zip(every, shown, strict=True):
        name = found.names[index]
        ranks = np.sort(found.ranks[:, index].cpu().numpy())
        share = np.searchsorted(ranks, places, side="right") / simulations
        axes.fill_between(places, low, high, color=LIGHT, alpha=0.6, lw=0)
        axes.plot(places, share - expected, color=COLOURS[0], lw=1)
        tidy(axes, name, COLOURS[3] if name in found.off else "black")
        axes.set_xlabel(f"rank, 0 to {last}", fontsize=7)
    return embedded(figure)


def plot_bars(kl_per_dim: list[float], variance: list[float], pit: tuple[float, ...]) -> str:
    """Plot the KL (or else the variance) of each unit of the code, and the shares of numbers in twentieths of p(x | z).

    The bar of an active unit is filled. The second chart is left out if there are no shares.
    """
    figure, (left, *right) = panels(2 if pit else 1, 2, 5.6, 2.2)
    heights = torch.tensor(kl_per_dim or variance)
    order = heights.argsort(descending=True)
    active = (torch.tensor(variance) > ACTIVE)[order].tolist()
    fill = [COLOURS[0] if used else "white" for used in active]
    left.bar(range(1, len(order) + 1), heights[order].tolist(), color=fill, edgecolor=COLOURS[0], lw=0.8)
    tidy(left, "KL by unit of the code, nats" if kl_per_dim else "variance of the posterior mean by unit")
    for axes in right:
        width = 1 / len(pit)
        middles = [(bin_ + 0.5) * width for bin_ in range(len(pit))]
        axes.bar(middles, pit, width, color=COLOURS[0])
        axes.axhline(width, color=GREY, lw=1, ls=DASHED)
        tidy(axes, "shares of numbers by quantile of p(x | z)")
    return embedded(figure)
