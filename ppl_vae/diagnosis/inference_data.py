"""Draws of the guide for arviz 0.23 and arviz 1, labelled as what they are."""

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

__all__ = ["arviz", "labelled", "to_inferencedata", "write"]

NUMBERS = 2_000_000  # that a group of predictive draws may hold, unless one draw of all data is more
PREDICTIVE = 100  # draws of x per datum, where so many fit
PRIOR_STREAM = 400_000  # the stream of draws from p(z), far from those of the draws from q(z | x)

GUIDE = (
    "draws of the guide q(z|x), not of the posterior p(z|x); independent, so that R-hat and ESS of chains say nothing: "
    "see k_hat in sample_stats"
)
WHY = (
    "no group log_likelihood: each z belongs to one datum, so that leaving it out leaves its code without a law, and "
    "the draws are not of a posterior; leave-one-out estimates would be wrong"
)
NATS, TAIL, CODES, X = (
    "nats, in the data's units",
    "none: tail index of the weights",
    "none: a code",
    "the data's units",
)


def arviz() -> Any:
    """Import arviz; arviz 0.23 announces its successor once a day, with a FutureWarning that is kept from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz


def _container(groups: Mapping[str, Any]) -> Any:
    """The container that the installed arviz reads, with these datasets as its groups.

    arviz 0.23, the last for Python 3.11, has a class of its own. arviz 1 reads an ``xarray.DataTree``. This function is
    the only place in the library where the two differ.
    """
    if version("arviz").startswith("0."):
        return arviz().InferenceData(**groups)
    from xarray import DataTree

    return DataTree.from_dict(dict(groups))


def to_inferencedata(variant: Variant, x: Any, draws: int = 1000, *, seed: int = 0) -> Any:
    """Draw from guide and model, as arviz wants it: one chain, named dimensions, units in the attributes.

    With arviz 0.23, which Python 3.11 gets, the result is an ``arviz.InferenceData``. With arviz 1 it is an
    ``xarray.DataTree`` of the same groups. Either reads the netCDF file of the other.

    Groups:
        posterior: ``z`` from the guide q(z | x), ``[chain, draw, datum, code]``; no posterior, as they say.
        sample_stats: ``log_weight`` and its parts log p(x | z), log p(z), log q(z | x), nats in the data's units; and
            ``k_hat`` per datum, which tells how far the weights mend the difference.
        posterior_predictive: ``x`` from p(x | z) of the first draws of z, 100 at the most, in the data's units.
        prior, prior_predictive: ``z`` from p(z) and ``x`` from p(x | z), as many.
        observed_data: ``x``.

    There is no ``log_likelihood``, so that ``arviz.loo`` and ``arviz.waic`` refuse: each z belongs to one datum, and
    leaving it out leaves its code without a law.

    Args:
        variant: A pair whose guide has a density.
        x: [rows, *x_shape], in the data's units.
        draws: Of z per datum.
        seed: Of every draw; the caller's random streams are left as they were.

    Raises:
        ValueError: If the guide is a point mass.
    """
    x = tensor_of(x)
    return labelled(variant, x, draw(variant, variant.in_model_units(x), draws, seed=seed), seed=seed)


def labelled(variant: Variant, x: Tensor, drawn: Draws, *, seed: int = 0) -> Any:
    """``to_inferencedata`` of draws that ``bounds.draws`` made of these data."""
    count = max(1, min(PREDICTIVE, len(drawn.z), NUMBERS // x.numel()))
    with evaluating(variant), seeded(stream_seed(seed, PRIOR_STREAM)):
        prior = variant.model.prior().sample((count, len(x)))
        predicted, made = _predicted(variant, drawn.z[:count]), _predicted(variant, prior)
    per_draw, cells = ("chain", "draw", "datum"), tuple(f"x_dim_{axis}" for axis in range(x.ndim - 1))
    stats = {
        "log_weight": drawn.log_weight,
        "log_x_given_z": drawn.likelihood,
        "log_prior": drawn.prior,
        "log_guide": drawn.guide,
    }
    nats = {name: (per_draw, value[None], NATS) for name, value in stats.items()}
    return _container(
        {
            "posterior": _dataset({"z": ((*per_draw, "code"), drawn.z[None], CODES)}, draws_are=GUIDE),
            "sample_stats": _dataset(
                {**nats, "k_hat": (("datum",), bounds_of(drawn).k_hat, TAIL)}, no_log_likelihood=WHY
            ),
            "prior": _dataset({"z": ((*per_draw, "code"), prior[None], CODES)}, draws_are="draws of p(z)"),
            "posterior_predictive": _dataset({"x": ((*per_draw, *cells), predicted[None], X)}, draws_are=GUIDE),
            "prior_predictive": _dataset({"x": ((*per_draw, *cells), made[None], X)}, draws_are="draws of p(z) p(x|z)"),
            "observed_data": _dataset({"x": (("datum", *cells), x.to(made), X)}),
        }
    )


def _predicted(variant: Variant, z: Tensor) -> Tensor:
    """A draw of x for each z [draws, rows, z_dim], in the data's units."""
    parts = [variant.model.x_given_z(some).sample() for some in z.split(max(1, variant.at_once // z.shape[1]))]
    return variant.model.scale.inverse(torch.cat(parts))


def _dataset(variables: Mapping[str, tuple[tuple[str, ...], Tensor, str]], **attributes: str) -> Any:
    """An ``xarray.Dataset`` of named dimensions, counted from 0, with the unit of each variable."""
    from xarray import Dataset

    entries = {name: (axes, value.cpu().numpy(), {"units": unit}) for name, (axes, value, unit) in variables.items()}
    sizes = {axis: size for axes, value, _ in entries.values() for axis, size in zip(axes, value.shape, strict=True)}
    coordinates = {axis: range(size) for axis, size in sizes.items()}
    return Dataset(entries, coordinates, {"inference_library": "ppl_vae", **attributes})


def write(path: Path, data: Any) -> Path:
    """Write a netCDF file whole or not at all."""
    with whole_file(path) as part:
        data.to_netcdf(str(part), engine="h5netcdf")
    return path
