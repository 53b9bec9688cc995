"""Figures of a diagnosis: they draw what was found, and bands hold as many curves as they say."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ppl_vae import VARIANTS, to_inferencedata
from ppl_vae.diagnosis import plots
from ppl_vae.diagnosis.calibration import Ranks
from ppl_vae.diagnosis.plots import BAND, plot_bars, plot_distributions, plot_ranks, plot_tail_indices, rank_band


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions return the figure itself, not its picture."""
    monkeypatch.setattr(plots, "embedded", lambda figure: figure)


def lines(axes: Any) -> list[tuple[Any, Any]]:
    return [line.get_data() for line in axes.lines]


@pytest.mark.parametrize(("simulations", "num_particles"), [(500, 99), (50, 7)])
def test_a_band_holds_a_whole_curve_of_uniform_ranks_95_times_in_100(simulations: int, num_particles: int) -> None:
    """With fresh ranks: at least 95 times, less often if the band is one count narrower, and the same upside down."""
    places, count = np.arange(num_particles), 4000
    low, high = rank_band(simulations, num_particles, places)

    ranks = np.random.default_rng(1).integers(0, num_particles + 1, (count, simulations))
    ranks += (num_particles + 1) * np.arange(count)[:, None]  # each curve's own
    curves = np.bincount(ranks.ravel(), minlength=count * (num_particles + 1)).reshape(count, -1).cumsum(1)[:, :-1]
    inside, narrower = (((low + less <= curves) & (curves <= high - less)).all(1).mean() for less in (0, 1))

    error = math.sqrt(2 * BAND * (1 - BAND) / count)  # from these curves and from those that the band was fitted to
    assert inside > BAND - 4 * error
    assert narrower < BAND - 4 * error
    assert np.array_equal(low, simulations - high[::-1])


def test_curves_of_ranks_are_their_shares_less_what_is_expected() -> None:
    ranks = torch.tensor([0, 0, 1, 3] * 20)[:, None]
    found = Ranks(ranks, ("z[0]",), 3, torch.zeros(1), torch.zeros(1), torch.zeros(1), {})

    [axes] = [axes for axes in plot_ranks(found).axes if axes.lines]

    [(places, heights)] = lines(axes)
    assert places.tolist() == [0, 1, 2]
    assert np.allclose(heights, [0.5 - 0.25, 0.75 - 0.5, 0.75 - 0.75], rtol=0, atol=1e-12)
    edges = {tuple(edge) for edge in axes.collections[0].get_paths()[0].vertices}
    for counts in rank_band(80, 3, np.arange(3)):
        assert {(place, count / 80 - (place + 1) / 4) for place, count in enumerate(counts)} <= edges


def test_distribution_functions_are_those_of_the_numbers() -> None:
    """There is a step at each held-out number, ties included, and one curve for each of 30 predictive draws."""
    data = to_inferencedata(VARIANTS["bernoulli_vae"]((3,), 2), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]), 40)

    for axes, group in zip(plot_distributions(data).axes, ("prior_predictive", "posterior_predictive"), strict=True):
        *drawn, (x, heights) = lines(axes)
        assert len(drawn) == 30
        assert [heights[x == value].max() for value in (0, 1)] == pytest.approx([1 / 3, 1])
        first = data[group]["x"].values[0, 0]
        assert drawn[0][1][drawn[0][0] <= 0].max(initial=0) == pytest.approx((first == 0).mean())


def test_tail_indices_stand_at_their_data_with_three_lines() -> None:
    (x, heights), *levels = lines(plot_tail_indices(torch.tensor([0.1, -0.3, 1.2]), 0.6).axes[0])

    assert list(zip(x, heights, strict=True)) == [(0, 0.1), (1, -0.3), (2, 1.2)]
    assert [level[1][0] for level in levels] == [0, 0.6, 1]


def test_bars_are_sorted_and_those_of_active_units_are_filled() -> None:
    left, right = plot_bars([0.1, 0.5, 0.3], [0.0, 1.0, 0.02], (0.25, 0.75)).axes

    assert [bar.get_height() for bar in left.patches] == pytest.approx([0.5, 0.3, 0.1])
    assert [bar.get_facecolor() == (1, 1, 1, 1) for bar in left.patches] == [False, False, True]
    assert [(bar.get_x(), bar.get_height()) for bar in right.patches] == [(0, 0.25), (0.5, 0.75)]
    assert [line.get_ydata()[0] for line in right.lines] == [0.5]
