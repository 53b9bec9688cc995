"""From data to codes and back: encode, decode, reconstruct and sample."""

import warnings
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .assembly import with_prior
from .data.data_set import chunks_of
from .models.likelihoods import mean_or_mode, of_coordinate
from .streams import seeded
from .variant import Variant, evaluating

__all__ = [
    "decode",
    "draw_data",
    "encode",
    "in_data_units",
    "mean_codes",
    "mean_data",
    "missing_mean",
    "reconstruct",
    "sample",
]


def encode(variant: Variant, x: Any) -> Tensor:
    """Encode data: the mean of q(z | x), [rows, z_dim], for x [rows, *x_shape] in the data's units.

    As in every function that evaluates data, x is an array, a tensor, a data frame, a list of rows or a Dataset.
    ``Data`` stands for its test part. A Dataset that is too large for memory is encoded some rows at a time.

    Raises:
        ValueError: If x is empty, not numeric, holds NaN or infinities, or has another shape than the model's data.
    """
    return torch.cat([mean_codes(variant, variant.in_model_units(rows)) for rows in chunks_of(x)])


def mean_codes(variant: Variant, y: Tensor) -> Tensor:
    """The mean of q(z | x), [rows, z_dim], for y [rows, *x_shape] in the model's units."""
    with evaluating(variant):
        return torch.cat([variant.guide.posterior(rows).mean for rows in y.split(variant.at_once)])


def decode(variant: Variant, z: Tensor) -> Tensor:
    """Decode codes: the mean of p(x | z), [rows, *x_shape] in the data's units, for z [rows, z_dim].

    For categories it is the mode of p(x | z), the most probable category of each coordinate. Where p(x | z) has neither
    a mean nor categories, the result is NaN, with a UserWarning.
    """
    return in_data_units(variant, mean_data(variant, z))


def mean_data(variant: Variant, z: Tensor) -> Tensor:
    """The mean of p(x | z), or its mode for categories, y [rows, *x_shape] in the model's units, for z [rows, z_dim].

    Where p(x | z) has no mean, the result is NaN, with a UserWarning.
    """
    with evaluating(variant):
        means = torch.cat([mean_or_mode(variant.model.x_given_z(rows), rows) for rows in z.split(variant.at_once)])
    missing = missing_mean(variant, z) if bool(means.isnan().any()) else None
    if missing is not None:
        warnings.warn(missing, stacklevel=3)
    return means


def in_data_units(variant: Variant, y: Tensor) -> Tensor:
    """Convert y [rows, *x_shape] from the model's units back to the data's units."""
    return torch.cat([variant.model.scale.inverse(rows) for rows in y.split(variant.at_once)])


def missing_mean(variant: Variant, z: Tensor) -> str | None:
    """A message if p(x | z) has neither a mean nor categories at the codes z [rows, z_dim], and None otherwise."""
    with evaluating(variant), pyro.validation_enabled(False):
        outputs = variant.model.outputs(z[: variant.at_once])
        law: Any = variant.model.law(*outputs)
        mean = mean_or_mode(law, z)
        has_mean = bool(mean.isfinite().any())
        outputs_are_finite = all(bool(output.isfinite().all()) for output in outputs)
    if has_mean or not outputs_are_finite:
        return None
    name = type(of_coordinate(law)).__name__
    return (
        f"p(x | z), a {name}, has no mean: reconstruct, RMSE and distances need one "
        "(give the distribution a mean, for example its mode)"
    )


def reconstruct(variant: Variant, x: Any) -> Tensor:
    """Reconstruct data: the mean of p(x | z) at the mean of q(z | x), [rows, *x_shape] in the data's units.

    For categories it is the mode of p(x | z), the most probable category of each coordinate.

    x is of the same types as for ``encode``. A Dataset that is too large for memory is refused, because its
    reconstruction would be too large as well.
    """
    return decode(variant, mean_codes(variant, variant.admit(x)))


def sample(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """Draw data: ``z ~ prior``, then ``x ~ p(x | z)``.

    Args:
        variant: The pair to sample from.
        count: Number of data.
        prior: Another prior p(z), as ``ex_post.fit`` returns it. By default it is the prior of the model.
        mean: Whether to return the mean of p(x | z), which has no observation noise, in place of a draw. For categories
            it is the mode, the most probable category of each coordinate.
        seed: Seed of the draws. The caller's random stream is not changed.

    Returns:
        The data [count, *x_shape], in their own units. The dtype is float64 where the data are far from 0, for example
        unix seconds. Otherwise it is the dtype of the model.

    Raises:
        ValueError: If ``count`` is below 1.
    """
    return in_data_units(variant, draw_data(variant, count, prior=prior, mean=mean, seed=seed))


def draw_data(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """Draw data y [count, *x_shape] in the model's units. The arguments are those of ``sample``."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    variant = variant if prior is None else with_prior(variant, prior)
    with evaluating(variant), seeded(seed):
        z = variant.model.prior().sample((count,))
        if mean:
            return mean_data(variant, z)
        return torch.cat([variant.model.x_given_z(rows).sample().to(z) for rows in z.split(variant.at_once)])
