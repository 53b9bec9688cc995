"""From data to codes and back: encode, decode, reconstruct and sample."""

import warnings
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .assembly import with_prior
from .data.data_set import chunks_of
from .models.likelihoods import moment, of_coordinate
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
    """The mean of q(z | x): x [rows, *x_shape] in the data's units to [rows, z_dim].

    Here and in every function that judges data, x is an array, a tensor, a data frame, a list of rows or a Dataset.
    ``Data`` stands for its test part. A Dataset that is too large to hold is encoded as a whole, some rows at a time.

    Raises:
        ValueError: If x is empty, not numeric, holds NaN or infinities, or has another shape than the model's data.
    """
    return torch.cat([mean_codes(variant, variant.in_model_units(rows)) for rows in chunks_of(x)])


def mean_codes(variant: Variant, y: Tensor) -> Tensor:
    """The mean of q(z | x): y [rows, *x_shape] in the model's units to [rows, z_dim]."""
    with evaluating(variant):
        return torch.cat([variant.guide.posterior(rows).mean for rows in y.split(variant.at_once)])


def decode(variant: Variant, z: Tensor) -> Tensor:
    """The mean of p(x | z): z [rows, z_dim] to [rows, *x_shape] in the data's units.

    Where p(x | z) has no mean, the result is NaN, and a UserWarning says so.
    """
    return in_data_units(variant, mean_data(variant, z))


def mean_data(variant: Variant, z: Tensor) -> Tensor:
    """The mean of p(x | z): z [rows, z_dim] to y [rows, *x_shape] in the model's units.

    Where p(x | z) has no mean, the result is NaN, and a UserWarning says so.
    """
    with evaluating(variant):
        means = torch.cat([moment(variant.model.x_given_z(rows), "mean", rows) for rows in z.split(variant.at_once)])
    missing = missing_mean(variant, z) if bool(means.isnan().any()) else None
    if missing is not None:
        warnings.warn(missing, stacklevel=3)
    return means


def in_data_units(variant: Variant, y: Tensor) -> Tensor:
    """Convert y [rows, *x_shape] from the model's units back to the data's units."""
    return torch.cat([variant.model.scale.inverse(rows) for rows in y.split(variant.at_once)])


def missing_mean(variant: Variant, z: Tensor) -> str | None:
    """Say that p(x | z) has no mean, where that is so at every one of the codes z [rows, z_dim]; else None."""
    with evaluating(variant), pyro.validation_enabled(False):
        outputs = variant.model.outputs(z[: variant.at_once])
        law: Any = variant.model.law(*outputs)
        mean = moment(law, "mean", z)
        if bool(mean.isfinite().any()) or not all(bool(output.isfinite().all()) for output in outputs):
            return None
    name = type(of_coordinate(law)).__name__
    return (
        f"p(x | z), a {name}, has no mean: reconstruct, RMSE and distances need one "
        "(give the distribution a mean, a mode say)"
    )


def reconstruct(variant: Variant, x: Any) -> Tensor:
    """The mean of p(x | z) at the mean of q(z | x): [rows, *x_shape] to the same, in the data's units.

    x is as for ``encode``, except that a Dataset which is too large to hold is refused, as its reconstruction would be
    too large as well.
    """
    return decode(variant, mean_codes(variant, variant.admit(x)))


def sample(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """Draw data: ``z ~ prior``, then ``x ~ p(x | z)``.

    Args:
        variant: The pair to sample from.
        count: Number of data.
        prior: Another p(z), as ``ex_post.fit`` returns it; the model's own unless given.
        mean: Return the mean of p(x | z), a picture without observation noise, instead of a draw.
        seed: Seed of the draws; the caller's random stream is left as it was.

    Returns:
        [count, *x_shape], in the data's units. The dtype is float64 where these are far from 0, as unix seconds are,
        and that of the model otherwise.
    """
    return in_data_units(variant, draw_data(variant, count, prior=prior, mean=mean, seed=seed))


def draw_data(
    variant: Variant, count: int, *, prior: nn.Module | None = None, mean: bool = False, seed: int = 0
) -> Tensor:
    """``sample`` in the model's units, y [count, *x_shape]."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    variant = variant if prior is None else with_prior(variant, prior)
    with evaluating(variant), seeded(seed):
        z = variant.model.prior().sample((count,))
        if mean:
            return mean_data(variant, z)
        return torch.cat([variant.model.x_given_z(rows).sample() for rows in z.split(variant.at_once)])
