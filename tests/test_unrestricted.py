"""Real-valued x: the identities behind the experiment, its data sets, its cells and its claims."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import VARIANTS, Variant, evaluate
from ppl_vae.data.data_set import Data
from ppl_vae.experiments import unrestricted as page
from ppl_vae.models import DiscretizedNormal, Gaussian, Scale
from ppl_vae.streams import seeded
from ppl_vae.studies import Claim, judged
from ppl_vae.studies.evidence import Evidence
from ppl_vae.studies.experiment import SCALES, _run, verdicts_of
from ppl_vae.studies.work import built
from ppl_vae.variant import evaluating

SMOKE = page.EXPERIMENT.scales["smoke"]
REDUCED = page.EXPERIMENT.scales["reduced"]
PLAIN = ["diabetes", "digits"]
MULTIPLIED = [f"diabetes * {factor}, {how}" for factor in (1, 10, 1000) for how in ("standardised", "as it is")]
IMAGES = ["digits, grid", "digits, dequantised"]


@pytest.fixture(scope="module")
def sets() -> dict[str, Data]:
    return {data.name: data for data in page.sets(SMOKE, None)}


# The experiment as a whole.


def test_the_experiment_runs_on_what_is_always_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the table times 1000 without a scale is refused, and the reason names the remedy."""
    scale = replace(SMOKE, seeds=1, rows=40, test_rows=20)
    _run(page.EXPERIMENT, scale, 1, None, tmp_path / "study", tmp_path, quiet=True)
    found = json.loads((tmp_path / "unrestricted.json").read_text())
    out = capsys.readouterr().out

    assert list(dict.fromkeys(row["data"] for row in found["rows"])) == [*PLAIN, *MULTIPLIED, *IMAGES]
    refused = {row["data"]: row["reason"] for row in found["rows"] if row.get("reason")}
    assert set(refused) <= {"diabetes * 1000, as it is"}
    assert all("scale='standardize'" in reason for reason in refused.values())
    assert (tmp_path / "unrestricted.png").read_bytes().startswith(b"\x89PNG")
    verdicts = [verdict.verdict for verdict in verdicts_of(tmp_path / "unrestricted.json")]
    assert verdicts == [verdict["verdict"] for verdict in found["verdicts"]] != []
    assert page.EXPERIMENT.question in out


# Identities.


def exact_pair(name: str, x_dim: int, scale: Scale, **options: Any) -> Variant:
    """An untrained pair in float64, with the same weights for the same arguments."""
    variant = VARIANTS[name]((x_dim,), 2, seed=3, **options)
    variant.model.double()
    variant.guide.double()
    variant.model.scale = scale
    return variant


@pytest.mark.parametrize("name", ["sigma_vae", "gaussian_vae", "heteroscedastic_vae"])
@pytest.mark.parametrize("factor", [10.0, 1000.0])
def test_a_factor_on_x_changes_the_bound_by_the_jacobian_alone(name: str, factor: float) -> None:
    """With the scale of s x, log p(s x) = log p(x) - D log s, and neither the KL nor the scaled RMSE moves."""
    x_dim = 5
    with seeded(0):
        x = torch.randn(30, x_dim).double() * torch.arange(1, 6) + 7
    shift, width = x.mean(0), x.std(0)
    once = evaluate(exact_pair(name, x_dim, Scale((x_dim,), shift, width)), x, 8)
    times = evaluate(exact_pair(name, x_dim, Scale((x_dim,), factor * shift, factor * width)), factor * x, 8)
    wrong = evaluate(exact_pair(name, x_dim, Scale((x_dim,), shift, width)), factor * x, 8)

    def of(evaluation: Any, column: str) -> float:
        value = evaluation[column].value
        assert value is not None
        return float(value)

    for column in ("bound", "importance_weighted"):
        assert math.isclose(of(times, column), of(once, column) - x_dim * math.log(factor), rel_tol=1e-10)
    for column in ("kl", "rmse"):
        assert math.isclose(of(times, column), of(once, column), rel_tol=1e-10)
        assert not math.isclose(of(wrong, column), of(once, column), rel_tol=0.1)


@pytest.mark.parametrize("weight", page.WEIGHTS)
def test_a_hand_set_weight_is_a_sigma(weight: float) -> None:
    """The loss is w times the negative bound, up to a constant. With sqrt(w D) it is not."""
    dimensions, kl = 6, torch.tensor([0.3, 2.0, 5.0, 11.0]).double()
    with seeded(0):
        x, loc = torch.randn(2, 4, dimensions).double()

    def left(sigma: float) -> Tensor:
        """The loss less w times the negative bound, for four data."""
        log_density = Gaussian(sigma)(loc).log_prob(x).sum(1)
        return (x - loc).square().mean(1) + weight * kl - weight * (kl - log_density)

    sigma = page.implied_sigma(weight, dimensions)
    spread, wrong = (float(left(one).std()) for one in (sigma, math.sqrt(2) * sigma))
    assert spread < 1e-10
    assert wrong > 0.01
    assert round(page.implied_sigma(1e-4, 784), 3) == 0.198


@pytest.mark.parametrize("sigma", [0.02, 0.07, 0.3])
def test_a_log_mass_is_above_the_mean_log_density_of_its_cell(sigma: float) -> None:
    """log P(x) >= E log p(x + d u) + log d, by quadrature, and close to it where sigma is wide beside the cell.

    Without the noise it is no bound: for a narrow sigma, log p(x) + log d at the grid point itself is above log P(x).
    """
    levels, loc = 11, torch.tensor(0.42).double()
    cell = 1 / (levels - 1)
    grid = torch.linspace(0, 1, levels).double()
    mass = DiscretizedNormal(levels, sigma).double()(loc).log_prob(grid).detach()
    own = dist.Normal(loc, sigma)
    u = (torch.arange(20_000).double() + 0.5) / 20_000 - 0.5
    dequantised = own.log_prob(grid + cell * u[:, None]).mean(0) + math.log(cell)
    bare = own.log_prob(grid) + math.log(cell)

    assert bool((mass > dequantised).all())
    if sigma == 0.3:
        inside = slice(1, -1)  # the outer cells have the tails too
        assert float((mass - dequantised)[inside].max()) < cell**2 / (24 * sigma**2) * 3
    if sigma == 0.02:
        assert bool((bare > mass).any())


def test_a_sigmoid_cannot_reach_data_outside_of_0_and_1(sets: dict[str, Data]) -> None:
    data = sets["diabetes"]
    y = data.scale(data.test)
    with seeded(0):
        variant = page.squashed(data.x_shape, 3)
    variant.model.scale = data.scale
    with evaluating(variant):
        loc = variant.model.x_given_z(10 * torch.randn(200, 3)).mean
    rmse = evaluate(variant, data.test, 4)["rmse"].value

    assert 0 <= float(loc.min()) < float(loc.max()) <= 1
    assert rmse is not None
    assert rmse >= float((y - y.clamp(0, 1)).square().mean().sqrt()) > 0.5


class Known(torch.nn.Module):
    """A guide with a given q(z | x)."""

    def __init__(self, law: Any) -> None:
        super().__init__()
        self.law = law

    def posterior(self, y: Tensor) -> Any:
        return self.law


def test_codes_that_floats_cannot_tell_apart_are_counted() -> None:
    """In float32, numbers near 100 are 7.6e-6 apart, and numbers near 1 are 1.2e-7 apart."""
    scale = torch.tensor([[1e-3, 1.0], [1.0, 1e-9], [1e-6, 1.0], [1.0, 1e-6]], dtype=torch.float32)
    loc = torch.tensor([100.0, 1.0], dtype=torch.float32).expand(4, 2)
    variant = VARIANTS["sigma_vae"]((3,), 2)._replace(guide=Known(dist.Normal(loc, scale).to_event(1)))  # type: ignore[arg-type]

    assert page.codes_rounded(variant, torch.zeros(4, 3)).value == 0.5


# The data sets.


def test_the_sets_are_what_their_names_say(sets: dict[str, Data]) -> None:
    assert list(sets) == [*PLAIN, *MULTIPLIED, *IMAGES]
    for name in PLAIN:
        y = sets[name].scale(sets[name].resident)
        assert math.isclose(float(y.mean()), 0.0, abs_tol=1e-10)
        assert math.isclose(float(y.std(correction=0)), 1.0, rel_tol=1e-10)
    first = sets[MULTIPLIED[0]]
    for name in MULTIPLIED:
        factor, data = float(name.split()[2].rstrip(",")), sets[name]
        assert torch.allclose(data.test, factor * first.test, rtol=1e-12, atol=0)
        wanted = 1.0 if name.endswith("as it is") else factor
        assert torch.allclose(data.scale.width, torch.tensor(wanted).double(), rtol=1e-6)


def test_dequantised_numbers_lie_in_their_cells(sets: dict[str, Data]) -> None:
    """A grey value is one unit, on the grid and off it, so that a log density is a log mass per cell."""
    grid, noisy = sets["digits, grid"], sets["digits, dequantised"]
    away = noisy.test - grid.test

    assert bool((grid.test == grid.test.round()).all())
    assert bool((noisy.test.round() == grid.test).all())
    assert float(away.abs().max()) <= 0.5
    assert abs(float(away.mean())) < 4 * math.sqrt(1 / 12 / away.numel())
    assert abs(float(away.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / away.numel())
    assert bool((grid.scale.width == 16).all())
    assert bool((noisy.scale.width == 16).all())
    assert torch.equal(noisy.test, sets["digits"].test)


def test_the_noise_of_a_table_is_as_wide_as_the_grid_of_each_column() -> None:
    x = torch.tensor([[0.0, 10.0], [0.5, 30.0], [2.0, 20.0]]).double()
    data = Data("d", x.repeat(200, 1), x, None, None, Scale((2,)))

    away = page.dequantised(data).resident - data.resident

    assert bool((away.abs().amax(0) <= torch.tensor([0.25, 5.0])).all())
    assert bool((away.abs().amax(0) > torch.tensor([0.24, 4.8])).all())


def test_a_column_with_an_atom_is_left_out() -> None:
    x = torch.arange(30).double().repeat(3, 1).T.clone()
    x[:6, 0] = 0.0  # a fifth of the rows is still no atom
    x[:7, 1] = 0.0
    data = Data("d", x[:20], x[20:], None, None, Scale((3,)), columns=("a", "b", "c"))

    kept = page.without_atoms(data)

    assert kept.columns == ("a", "c")
    assert torch.equal(kept.test, x[20:][:, [0, 2]])


# The cells.


def test_all_contestants_of_a_table_share_data_nets_and_steps(sets: dict[str, Data]) -> None:
    for data in sets.values():
        cells = page.cells(REDUCED, data)
        assert all(cell.training == {"epochs": 20, "batch_size": 32} for cell in cells)
        assert {cell.z_dim for cell in cells} == {10 if "digits" in data.name else 3}
        assert {cell.seed for cell in cells} == set(range(5))
        assert not any({"encoder", "decoder", "width", "lr"} & cell.contestant.options.keys() for cell in cells)
    assert SCALES["reduced"].epochs == 20


def test_the_hand_set_weights_and_the_grid_follow_from_the_data(sets: dict[str, Data]) -> None:
    dimensions = {"diabetes": sets["diabetes"].x_shape[0], "digits": 64}
    for name, size in dimensions.items():
        cells = {cell.name: cell for cell in page.cells(SMOKE, sets[name])}
        found = built(cells["MSE + 0.01 KL"]).model.likelihood
        assert isinstance(found, Gaussian)
        assert math.isclose(float(found.scale), math.sqrt(0.01 * size / 2), rel_tol=1e-6)
    masses = [built(cell).model.likelihood for cell in page.cells(SMOKE, sets["digits, grid"])]
    assert {likelihood.levels for likelihood in masses} == {17}
    starts = [built(cell).model.likelihood for name in IMAGES for cell in page.cells(SMOKE, sets[name])]
    assert all(math.isclose(float(one.scale.detach()), 0.1, rel_tol=1e-5) and one.floor == -8.0 for one in starts)


# The claims, from rows made by hand.

HAND = page.weighted(1e-4)


def rows(data: str, name: str, **columns: list[float]) -> list[dict[str, Any]]:
    """A row per seed, with a value of each column."""
    seeds = range(len(next(iter(columns.values()))))
    return [
        {"data": data, "variant": name, "seed": seed, **{column: values[seed] for column, values in columns.items()}}
        for seed in seeds
    ]


def found(table: list[dict[str, Any]], name: str, part: str = "") -> list[Claim]:
    return [claim for claim in page.claims(Evidence(table)) if claim.name == name and part in claim.text]


def test_likelihoods_are_compared_by_their_bounds() -> None:
    table = [
        *rows("protein", page.ONE_SIGMA, bound=[-5.0, -6.0], rmse=[0.3, 0.4]),
        *rows("protein", page.SIGMA_OF_Z, bound=[-4.0, -4.5]),
        *rows("protein", page.STUDENT, bound=[-4.5, -6.5]),
        *rows("protein", page.SIGMOID, bound=[-9.0, -9.0], rmse=[0.8, 0.9]),
        *rows("protein", HAND, bound=[-50.0, -60.0]),
        *rows("concrete", page.ONE_SIGMA, bound=[-5.0]),
        *rows("concrete", page.STUDENT, bound=[-4.0]),
    ]

    assert [claim.differences for claim in found(table, "UNR.1")] == [{0: 45.0, 1: 54.0}]
    assert [claim.differences for claim in found(table, "UNR.2")] == [{0: 1.0, 1: 1.5}]
    assert [claim.differences for claim in found(table, "UNR.3")] == [{0: 0.5, 1: -0.5}]  # concrete has light tails
    assert [claim.differences for claim in found(table, "UNR.6")] == [{0: 0.5, 1: 0.5}]


def test_a_factor_on_x_is_undone_by_a_scale_and_not_without_one() -> None:
    names = {(factor, how): page.multiplied_name("t", factor, is_scaled=how) for factor in (1, 10) for how in (0, 1)}
    size = [5.0] * 3
    table = [
        *rows("t", page.ONE_SIGMA, bound=[0.0] * 3),
        *rows(names[1, 1], HAND, kl=[2.0] * 3, rmse=[0.5] * 3, bound=[-7.0] * 3, dimensions=size),
        *rows(names[10, 1], HAND, kl=[2.0] * 3, rmse=[0.5] * 3, bound=[-7.0 - 5 * math.log(10)] * 3, dimensions=size),
        *rows(names[1, 0], HAND, kl=[2.0, 2.1, 2.0]),
        *rows(names[10, 0], HAND, kl=[9.0, 9.1, 9.2]),
        *rows(names[1, 0], page.ONE_SIGMA, kl=[1.0, 1.0, 1.0]),
        *rows(names[10, 0], page.ONE_SIGMA, kl=[0.0, 0.5, 0.0]),
    ]

    same = found(table, "UNR.4", "standardised")
    grown, less = found(table, "UNR.4", "as it is")

    assert [claim.margin for claim in same] == [page.SAME_NATS, page.SAME_RMSE, page.SAME_NATS]
    assert all(abs(value) < 1e-12 for claim in same for value in claim.differences.values())
    assert {verdict.verdict for verdict in judged(same)} == {"held"}
    assert [round(value, 12) for value in grown.differences.values()] == [7.0, 7.0, 7.2]
    assert [round(value, 12) for value in less.differences.values()] == [6.0, 6.5, 6.2]
    off = replace_bound(table, names[10, 1], -7.0)
    assert "reversed" in {verdict.verdict for verdict in judged(found(off, "UNR.4", "D log s"))}


def replace_bound(table: list[dict[str, Any]], data: str, bound: float) -> list[dict[str, Any]]:
    """The rows with another bound on one set, as without the Jacobian."""
    return [{**row, "bound": bound} if row["data"] == data else row for row in table]


def test_a_mass_is_compared_with_densities_of_dequantised_data() -> None:
    table = [
        *rows("faces", page.ONE_SIGMA, bound=[-80.0, -81.0]),
        *rows("faces, grid", page.NORMAL_MASS, bound=[-90.0, -91.0]),
        *rows("faces, dequantised", page.ONE_SIGMA, bound=[-92.0, -92.0]),
        *rows("faces, dequantised", page.STUDENT, bound=[-85.0, -85.0]),
    ]

    assert [claim.differences for claim in found(table, "UNR.5")] == [{0: 2.0, 1: 1.0}, {0: -5.0, 1: -6.0}]
    assert [claim.differences for claim in found(table, "UNR.7")] == [{0: 12.0, 1: 11.0}]
