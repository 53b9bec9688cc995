"""Figures of a diagnosis: arviz's own plots of tail indices, predictions and ranks, and two bar charts."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation import ACTIVE
from ..figures import COLOURS, GREY, embedded, panels, tidy
from .inference_data import arviz
from .sbc import Ranks

__all__ = ["bars", "cumulative", "ecdf", "tail_indices"]

BAND = 0.95  # of the ranks of one panel, as a curve
NUMBERS = 30_000  # of x in a distribution function
PANELS = 15  # of ranks, those with the smallest p-values


@contextmanager
def _plots() -> Iterator[Any]:
    """arviz, whose release for Python 3.11 draws with what matplotlib 3.11 has deprecated: not a caller's affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield arviz()


def tail_indices(k_hat: Tensor, threshold: float) -> str:
    """``arviz.plot_khat``: k-hat of each datum [rows], all finite, with the threshold for so many draws."""
    from arviz.stats.stats_utils import ELPDData
    from xarray import DataArray

    figure, [axes] = panels(1, 1, 11.2, 2.6)
    found = ELPDData([DataArray(k_hat.cpu().numpy(), dims="datum"), threshold], ["pareto_k", "good_k"])
    with _plots() as az:
        az.plot_khat(
            found, ax=axes, show=False, show_hlines=True, textsize=8, markersize=4, hlines_kwargs={"colors": GREY}
        )
    tidy(axes)
    axes.set_xlabel("datum", fontsize=8)
    axes.set_ylabel("k-hat", fontsize=8)
    return embedded(figure)


def cumulative(data: Any) -> str:
    """``arviz.plot_ppc``: distribution functions of all numbers, prior and guide predictive, against held-out data."""
    observed = data["observed_data"]["x"]
    rows = max(1, min(observed.sizes["datum"], NUMBERS * observed.sizes["datum"] // observed.size))
    figure, every = panels(2, 2, 5.6, 2.8)
    for axes, (group, title) in zip(every, {"prior": "z ~ p(z)", "posterior": "z ~ q(z | x)"}.items(), strict=True):
        with _plots() as az:
            az.plot_ppc(
                data,
                kind="cumulative",
                group=group,
                observed=True,
                num_pp_samples=min(30, data[f"{group}_predictive"].sizes["draw"]),
                coords={"datum": list(range(rows))},
                random_seed=0,
                ax=axes,
                show=False,
                textsize=8,
                legend=group == "prior",
            )
        tidy(axes, title)
        axes.set_xlabel("x, in the data's units", fontsize=8)
    return embedded(figure)


def ecdf(found: Ranks) -> str:
    """``arviz.plot_ecdf``: share of ranks below each rank less what is expected, with simultaneous bands."""
    from scipy.stats import randint  # type: ignore[import-untyped,unused-ignore]

    count = found.num_particles + 1
    order = found.p_values.argsort()[:PANELS].tolist()
    figure, every = panels(len(order), 5, 2.24, 1.6, sharey=True)
    for axes, index in zip(every, order, strict=True):
        with _plots() as az:
            az.plot_ecdf(
                found.ranks[:, index].cpu().numpy(),
                eval_points=np.linspace(0, count - 2, min(count - 1, 50)).round(),
                cdf=randint(0, count).cdf,
                rvs=randint(0, count).rvs,
                difference=True,
                confidence_bands="simulated",
                ci_prob=BAND,
                random_state=0,
                ax=axes,
                show=False,
            )
        tidy(axes, found.names[index], COLOURS[3] if found.names[index] in found.off else "black")
        axes.set_xlabel(f"rank, 0 to {count - 1}", fontsize=7)
        axes.set_ylabel("")
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
