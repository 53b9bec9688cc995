"""Figures of a diagnosis: tail indices, distribution functions, ranks, and two bar charts.

They are drawn with matplotlib alone: the plots of arviz 0.23 and of arviz 1 have no call in common.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..drawing import COLOURS, GREY, LIGHT, embedded, panels, tidy
from ..evaluation.kl_terms import ACTIVE
from .calibration import Ranks

__all__ = ["band", "bars", "cumulative", "ecdf", "tail_indices"]

BAND = 0.95  # chance that a band holds the whole curve of a calibrated quantity
CURVES = 30  # predictive draws in a panel
NUMBERS = 30_000  # of x in a distribution function
PANELS = 15  # of ranks, those with the smallest p-values
PLACES = 50  # ranks at which a curve is compared with its band
TRIALS = 4000  # simulated curves that a band is fitted to


def tail_indices(k_hat: Tensor, threshold: float) -> str:
    """K-hat of each datum [rows], all finite, with lines at 0, at the threshold for so many draws, and at 1."""
    figure, [axes] = panels(1, 1, 11.2, 2.6)
    axes.plot(range(len(k_hat)), k_hat.tolist(), ls="", marker="+", ms=5, color=COLOURS[0])
    for level in (0.0, threshold, 1.0):
        axes.axhline(level, color=GREY, lw=1, ls=(0, (3, 1.5)))
    tidy(axes)
    axes.set_xlabel("datum", fontsize=8)
    axes.set_ylabel("k-hat", fontsize=8)
    return embedded(figure)


def cumulative(data: Any) -> str:
    """Distribution functions of all numbers of x: prior and guide predictive draws, against held-out data."""
    observed = data["observed_data"]["x"]
    rows = max(1, min(observed.sizes["datum"], NUMBERS * observed.sizes["datum"] // observed.size))
    figure, every = panels(2, 2, 5.6, 2.8)
    for axes, (group, title) in zip(every, {"prior": "z ~ p(z)", "posterior": "z ~ q(z | x)"}.items(), strict=True):
        drawn = data[f"{group}_predictive"]["x"].values[0, :CURVES, :rows]
        for index, x in enumerate(drawn):
            label = None if index else "one draw for each datum"
            axes.ecdf(x.ravel(), color=COLOURS[0], lw=0.7, alpha=0.35, label=label)
        axes.ecdf(observed.values[:rows].ravel(), color="black", lw=1.3, label="held-out data")
        tidy(axes, title)
        axes.set_xlabel("x, in the data's units", fontsize=8)
    every[0].legend(fontsize=7, frameon=False)
    return embedded(figure)


def band(simulations: int, num_particles: int, places: Any) -> tuple[Any, Any]:
    """The lowest and highest number of ranks up to each place, [places] each, in a band that holds 95 curves in 100.

    Of ``simulations`` ranks that are uniform on 0, ..., num_particles, the number at or below one place is binomial.
    The band has the same two binomial tails at every place. They are as large as they can be with simulated curves
    inside at all places at once.

    References:
        Säilynoja, Bürkner and Vehtari, Graphical Test for Discrete Uniformity and Its Applications in
        Goodness-of-Fit Evaluation and Multiple Sample Comparison, Statistics and Computing, 2022.
    """
    from scipy.stats import binom  # type: ignore[import-untyped,unused-ignore]

    share = (places + 1) / (num_particles + 1)
    counts = np.arange(simulations + 1)[:, None]
    tail = np.minimum(binom.cdf(counts, simulations, share), binom.sf(counts - 1, simulations, share))
    between = np.diff(share, prepend=0, append=1)  # chances of a rank between neighbouring places
    drawn = np.random.default_rng(0).multinomial(simulations, between, TRIALS).cumsum(-1)[:, :-1]
    smallest = tail[drawn, np.arange(len(places))].min(-1)
    inside = tail > np.quantile(smallest, 1 - BAND, method="lower") * (1 - 1e-9)  # equal tails are equal to rounding
    return inside.argmax(0), simulations - inside[::-1].argmax(0)


def ecdf(found: Ranks) -> str:
    """Share of ranks up to each rank, less what is expected, with a band that holds a whole curve."""
    simulations, last = len(found.ranks), found.num_particles
    places = np.unique(np.linspace(0, last - 1, min(last, PLACES)).round())
    share = (places + 1) / (last + 1)
    low, high = (counts / simulations - share for counts in band(simulations, last, places))
    order = found.p_values.argsort()[:PANELS].tolist()
    figure, every = panels(len(order), 5, 2.24, 1.6, sharey=True)
    for axes, index in zip(every, order, strict=True):
        ranks = np.sort(found.ranks[:, index].cpu().numpy())
        axes.fill_between(places, low, high, color=LIGHT, alpha=0.6, lw=0)
        axes.plot(places, np.searchsorted(ranks, places, side="right") / simulations - share, color=COLOURS[0], lw=1)
        tidy(axes, found.names[index], COLOURS[3] if found.names[index] in found.off else "black")
        axes.set_xlabel(f"rank, 0 to {last}", fontsize=7)
    return embedded(figure)


def bars(kl_per_dim: list[float], variance: list[float], pit: tuple[float, ...]) -> str:
    """KL or variance by unit of the code, filled where it is active; shares of numbers by twentieths of p(x | z)."""
    values = torch.tensor(kl_per_dim or variance)
    active = torch.tensor(variance) > ACTIVE
    order = values.argsort(descending=True)
    figure, every = panels(2 if pit else 1, 2, 5.6, 2.2)
    fill = [COLOURS[0] if used else "white" for used in active[order].tolist()]
    every[0].bar(range(1, len(values) + 1), values[order].tolist(), color=fill, edgecolor=COLOURS[0], lw=0.8)
    tidy(every[0], "KL by unit of the code, nats" if kl_per_dim else "variance of the posterior mean by unit")
    if pit:
        every[1].bar([(place + 0.5) / len(pit) for place in range(len(pit))], pit, 1 / len(pit), color=COLOURS[0])
        every[1].axhline(1 / len(pit), color=GREY, lw=1, ls=(0, (3, 1.5)))
        tidy(every[1], "shares of numbers by quantile of p(x | z)")
    return embedded(figure)
