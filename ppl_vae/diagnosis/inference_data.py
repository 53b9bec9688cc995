"""Draws of the guide for arviz 0.23 and arviz 1, with labels that say what they are."""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.data_set import tensor_of
from ..elbo.reading import Draws
from ..evaluation.lower_bounds import bounds_of, draws as draw
from ..files import whole_file
from ..streams import seeded, stream_seed
from ..variant import Variant, evaluating

__all__ = ["import_arviz", "labelled", "to_inferencedata", "write_draws"]

Variable = tuple[tuple[str, ...], Tensor, str]  # names of the axes, values, unit

NUMBERS = 2_000_000  # numbers that a group of predictive draws may hold, unless one draw of all data is more
PREDICTIVE = 100  # draws of x per datum, if there is room for them
PRIOR_STREAM = 400_000  # the stream of draws from p(z), far from those of the draws from q(z | x)

GUIDE = (
    "draws of the guide q(z|x), not of the posterior p(z|x); they are independent, so R-hat and ESS of chains say "
    "nothing about them: see k_hat in sample_stats"
)
NO_LOG_LIKELIHOOD = (
    "there is no group log_likelihood, because leave-one-out estimates would be wrong: each z belongs to one datum, so "
    "nothing is known about this z if the datum is left out, and the draws are not from a posterior"
)
NATS = "nats, in the data's units"
TAIL = "none: tail index of the weights"
CODES = "none: a code"
X = "the data's units"


def import_arviz() -> Any:
    """Import arviz without its message: arviz 0.23 announces its successor once a day, with a FutureWarning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _container(groups: Mapping[str, Any]) -> Any:
    """Put datasets into the container that the installed arviz reads, as its groups.

    arviz 0.23, the last version for Python 3.11, has a class of its own. arviz 1 reads an ``xarray.DataTree``. This
    function is the only place in the library where the two versions differ.
    """
    if version("arviz").startswith("0."):
        return import_arviz().InferenceData(**groups)
    from xarray import DataTree

    return DataTree.from_dict(dict(groups))


def to_inferencedata(variant: Variant, x: Any, draws: int = 1000, *, seed: int = 0) -> Any:
    """Draw from guide and model, in the form that arviz reads: one chain, named dimensions, units as attributes.

    With arviz 0.23, which Python 3.11 gets, the result is an ``arviz.InferenceData``. With arviz 1 it is an
    ``xarray.DataTree`` of the same groups. Each version reads the netCDF file of the other.

    Groups:
        posterior: ``z`` from the guide q(z | x), ``[chain, draw, datum, code]``. An attribute says that these are not
            draws from the posterior.
        sample_stats: ``log_weight`` and its parts log p(x | z), log p(z), log q(z | x), nats in the data's units; and
            ``k_hat`` per datum, which says whether the weights can correct the difference from the posterior.
        posterior_predictive: ``x`` from p(x | z) for the first draws of z, at most 100, in the data's units.
        prior, prior_predictive: ``z`` from p(z) and ``x`` from p(x | z), as many as in ``posterior_predictive``.
        observed_data: ``x``.

    There is no ``log_likelihood``, so ``arviz.loo`` and ``arviz.waic`` raise an error. Their estimates would be wrong,
    because each z belongs to one datum, and nothing is known about this z if the datum is left out.

    Args:
        variant: A pair whose guide has a density.
        x: Data [rows, *x_shape], in the data's units.
        draws: Number of draws of z per datum.
        seed: Seed of all draws. The caller's random streams are left as they were.

    Raises:
        ValueError: If the guide is a point mass.
    """
    x = tensor_of(x)
    return labelled(variant, x, draw(variant, variant.in_model_units(x), draws, seed=seed), seed=seed)


def labelled(variant: Variant, x: Tensor, drawn: Draws, *, seed: int = 0) -> Any:
    """``to_inferencedata`` for given draws of z, and checked data x [rows, *x_shape] in the data's units."""
    count = max(1, min(PREDICTIVE, len(drawn.z), NUMBERS // x.numel()))
    with evaluating(variant), seeded(stream_seed(seed, PRIOR_STREAM)):
        prior = variant.model.prior().sample((count, len(x)))
        x_given_guide = _predicted(variant, drawn.z[:count])
        x_given_prior = _predicted(variant, prior)
    per_draw = ("chain", "draw", "datum")
    cells = tuple(f"x_dim_{axis}" for axis in range(x.ndim - 1))
    log_densities = {
        "log_weight": drawn.log_weight,
        "log_x_given_z": drawn.likelihood,
        "log_prior": drawn.prior,
        "log_guide": drawn.guide,
    }
    stats: dict[str, Variable] = {name: (per_draw, value[None], NATS) for name, value in log_densities.items()}
    stats["k_hat"] = (("datum",), bounds_of(drawn).k_hat, TAIL)

    def codes(z: Tensor, says: str) -> Any:
        return _dataset({"z": ((*per_draw, "code"), z[None], CODES)}, draws_are=says)

    def data(made: Tensor, says: str) -> Any:
        return _dataset({"x": ((*per_draw, *cells), made[None], X)}, draws_are=says)

    return _container(
        {
            "posterior": codes(drawn.z, GUIDE),
            "sample_stats": _dataset(stats, no_log_likelihood=NO_LOG_LIKELIHOOD),
            "prior": codes(prior, "draws of p(z)"),
            "posterior_predictive": data(x_given_guide, GUIDE),
            "prior_predictive": data(x_given_prior, "draws of p(z) p(x|z)"),
            "observed_data": _dataset({"x": (("datum", *cells), x.to(x_given_prior), X)}),
        }
    )


def _predicted(variant: Variant, z: Tensor) -> Tensor:
    """A draw of x for each z [draws, rows, z_dim], in the data's units."""
    together = max(1, variant.at_once // z.shape[1])
    made = [variant.model.x_given_z(some).sample() for some in z.split(together)]
    return variant.model.scale.inverse(torch.cat(made))


def _dataset(variables: Mapping[str, Variable], **attributes: str) -> Any:
    """An ``xarray.Dataset`` with named dimensions, counted from 0, and the unit of each variable."""
    from xarray import Dataset

    entries: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, (axes, value, unit) in variables.items():
        entries[name] = (axes, value.cpu().numpy(), {"units": unit})
        sizes |= dict(zip(axes, value.shape, strict=True))
    coordinates = {axis: range(size) for axis, size in sizes.items()}
    return Dataset(entries, coordinates, {"inference_library": "ppl_vae", **attributes})


def write_draws(path: Path, data: Any) -> Path:
    """Write draws to a netCDF file, whole or not at all, and return its path."""
    with whole_file(path) as part:
        data.to_netcdf(str(part), engine="h5netcdf")
    return path
