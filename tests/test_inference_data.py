"""to_inferencedata: arviz gets the draws that bounds are computed from, and labels that claim no posterior."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from ppl_vae import VARIANTS, bounds, pair
from ppl_vae.diagnosis.inference_data import import_arviz, to_inferencedata, write_draws
from ppl_vae.evaluation.lower_bounds import draws
from ppl_vae.models import Bernoulli, Gaussian, Scale
from ppl_vae.variant import Variant, evaluating

ROWS, Z_DIM, DRAWS = 7, 2, 130
SHAPES = [(3,), (2, 4, 4)]


def variant_of(shape: tuple[int, ...]) -> Variant:
    variant = pair(shape, Z_DIM, likelihood=Gaussian(0.4))
    variant.model.scale = Scale(shape, 3.0, 10.0)
    return variant


def groups(found: Any) -> set[str]:
    """The names of the groups of an InferenceData or a DataTree."""
    return set(found.children) if hasattr(found, "children") else set(found.groups())


@pytest.fixture(params=SHAPES, ids=["table", "image"])
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


def test_groups_dimensions_and_coordinates_are_named(shape: tuple[int, ...]) -> None:
    found = to_inferencedata(variant_of(shape), torch.randn(ROWS, *shape), DRAWS)

    axes = tuple(f"x_dim_{i}" for i in range(len(shape)))
    assert groups(found) == {
        "posterior", "sample_stats", "prior", "posterior_predictive", "prior_predictive", "observed_data",
    }  # fmt: skip
    assert found.posterior.z.dims == ("chain", "draw", "datum", "code")
    assert found.posterior.z.shape == (1, DRAWS, ROWS, Z_DIM)
    assert found.posterior_predictive.x.dims == ("chain", "draw", "datum", *axes)
    assert found.posterior_predictive.x.shape == found.prior_predictive.x.shape == (1, 100, ROWS, *shape)
    assert found.prior.z.shape == (1, 100, ROWS, Z_DIM)
    assert found.observed_data.x.dims == ("datum", *axes)
    assert found.sample_stats.k_hat.dims == ("datum",)
    assert found.posterior.code.values.tolist() == list(range(Z_DIM))


def test_the_draws_are_those_of_the_bounds(shape: tuple[int, ...]) -> None:
    """With the same seed, log weights give the bounds, their parts add up, and k-hat is that of the bounds."""
    variant, x = variant_of(shape), torch.randn(ROWS, *shape)

    found = to_inferencedata(variant, x, DRAWS, seed=5)
    drawn = draws(variant, variant.in_model_units(x), DRAWS, seed=5)
    bound = bounds(variant, x, DRAWS, seed=5)

    stats = found.sample_stats
    assert np.array_equal(found.posterior.z[0], drawn.z)
    assert np.allclose(stats.log_weight[0].mean("draw"), bound.elbo, rtol=0, atol=1e-10)
    assert np.allclose(stats.log_x_given_z + stats.log_prior - stats.log_guide, stats.log_weight, rtol=0, atol=1e-10)
    assert np.array_equal(stats.k_hat, bound.k_hat)


def test_log_densities_are_in_the_data_s_units() -> None:
    """They equal densities whose mean and sigma are carried to the units of the data."""
    variant, x = variant_of((3,)), torch.randn(ROWS, 3)
    found = to_inferencedata(variant, x, 5)

    z = torch.as_tensor(found.posterior.z.values[0])
    with evaluating(variant):
        loc = variant.model.scale.inverse(variant.model.x_given_z(z).mean)
    exact = dist.Normal(loc, 10 * 0.4).log_prob(x).sum(-1)
    assert np.allclose(found.sample_stats.log_x_given_z[0], exact, rtol=0, atol=1e-9)
    assert np.allclose(found.sample_stats.log_prior[0], dist.Normal(0.0, 1.0).log_prob(z).sum(-1), rtol=0, atol=1e-10)
    assert np.array_equal(found.observed_data.x, x)


def test_predictions_are_draws_around_the_decoder_s_mean_in_the_data_s_units() -> None:
    """For each z, residuals have mean 0 and the given sigma times the width of the units."""
    variant, x = variant_of((3,)), torch.randn(50, 3)
    found = to_inferencedata(variant, x, 100)

    for codes, made in (("posterior", "posterior_predictive"), ("prior", "prior_predictive")):
        z, drawn = torch.as_tensor(found[codes].z.values[0]), torch.as_tensor(found[made].x.values[0])
        with evaluating(variant):
            noise = (drawn - variant.model.scale.inverse(variant.model.x_given_z(z).mean)) / (10 * 0.4)
        count = noise.numel()
        assert abs(noise.mean()) < 4 / count**0.5
        assert abs(noise.square().mean() - 1) < 4 * (2 / count) ** 0.5


def test_the_labels_claim_no_posterior() -> None:
    found = to_inferencedata(variant_of((3,)), torch.randn(ROWS, 3), 10)

    for group in ("posterior", "posterior_predictive"):
        assert "not of the posterior" in found[group].attrs["draws_are"]
        assert "R-hat" in found[group].attrs["draws_are"]
    assert {found[group].attrs["inference_library"] for group in groups(found)} == {"ppl_vae"}
    assert found.sample_stats.log_weight.attrs["units"] == "nats, in the data's units"
    assert all("units" in data.attrs for group in groups(found) for data in found[group].data_vars.values())


def test_the_container_is_that_of_the_installed_arviz() -> None:
    """The means that arviz computes are those of the draws."""
    found = to_inferencedata(variant_of((3,)), torch.randn(ROWS, 3), 50)

    assert type(found).__name__ == ("InferenceData" if import_arviz().__version__.startswith("0.") else "DataTree")
    summary = import_arviz().summary(found, var_names="z", kind="stats", round_to="none")
    assert np.allclose(summary["mean"], found.posterior.z.mean(("chain", "draw")).values.ravel(), rtol=1e-10)


def test_leave_one_out_is_refused() -> None:
    found = to_inferencedata(variant_of((3,)), torch.randn(ROWS, 3), 50)

    for method in {"loo", "waic"} & set(dir(import_arviz())):  # arviz 1 has loo alone
        with pytest.raises(TypeError, match="log likelihood not found"):
            getattr(import_arviz(), method)(found)
    assert "leave-one-out" in found.sample_stats.attrs["no_log_likelihood"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_netcdf_file_gives_back_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    variant = variant_of((2, 4, 4))
    variant.model.to(dtype)
    variant.guide.to(dtype)
    found = to_inferencedata(variant, torch.randn(ROWS, 2, 4, 4), 30)

    again = import_arviz().from_netcdf(str(write_draws(tmp_path / "draws.nc", found)))

    assert groups(again) == groups(found)
    for group in groups(found):
        assert again[group].attrs == found[group].attrs
        assert again[group].identical(found[group])
        assert {data.dtype for data in again[group].data_vars.values()} == {np.dtype(str(dtype).removeprefix("torch."))}
    assert [path.name for path in tmp_path.iterdir()] == ["draws.nc"]


def test_a_point_mass_has_no_draws() -> None:
    with pytest.raises(ValueError, match=r"point-mass guide has no density.*Laplace"):
        to_inferencedata(VARIANTS["rae"]((3,), Z_DIM), torch.randn(ROWS, 3))


def test_the_same_seed_gives_the_same_draws_and_leaves_the_caller_s_stream() -> None:
    variant, x = pair((3,), Z_DIM, likelihood=Bernoulli()), torch.randint(2, (ROWS, 3)).double()
    before = torch.get_rng_state()

    one, same, other = (to_inferencedata(variant, x, 10, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), before)
    for group in ("posterior", "prior", "posterior_predictive", "prior_predictive"):
        assert one[group].identical(same[group])
        assert not one[group].identical(other[group])


def test_large_data_get_fewer_predictive_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.diagnosis.inference_data.NUMBERS", 3 * ROWS * 4)

    found = to_inferencedata(variant_of((3,)), torch.randn(ROWS, 3), 50)

    assert found.posterior_predictive.sizes["draw"] == 4
    assert found.posterior.sizes["draw"] == 50


def test_a_file_that_could_not_be_written_whole_is_not_left_behind(tmp_path: Path) -> None:
    found = to_inferencedata(variant_of((3,)), torch.randn(ROWS, 3), 5)
    found.posterior.z.attrs["units"] = object()  # netCDF has no type for it

    with pytest.raises(TypeError):
        write_draws(tmp_path / "draws.nc", found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_arviz_is_imported_without_a_message(tmp_path: Path) -> None:
    """The cache is empty, because arviz 0.23 announces its successor only on the first import of a day."""
    code = "import ppl_vae.diagnosis.inference_data as d, sys; assert 'arviz' not in sys.modules; d.import_arviz()"

    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )

    assert (ran.returncode, ran.stderr) == (0, "")
