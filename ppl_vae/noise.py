"""The scale of p(x | z) over data and its floor, and the spread of the data, with which both are compared."""

import math
from typing import Any

import pyro
import torch
from torch import Tensor

from .models.likelihoods import scale_of_law
from .streams import seeded
from .variant import Variant, evaluating

__all__ = ["STANDARD", "at_floor", "floor_of", "noise_scale", "spread"]

STANDARD = "scale='standardize'"  # the advice of a message where the spread of x is far from the scale of p(x | z)
WIDE = 0.1  # share of the spread of x above which a floor of sigma is too high for these data


def noise_scale(variant: Variant, y: Tensor) -> float | None:
    """The root mean square of the scale of p(x | z) over data and coordinates, which reports call sigma.

    z is the mean of q(z | x), or a draw where the distribution has no mean.

    Args:
        variant: The pair.
        y: Data [rows, *x_shape], in the model's units.

    Returns:
        The scale in the model's units, or None where p(x | z) has none.
    """
    total = 0.0
    with evaluating(variant), pyro.validation_enabled(False):
        for rows in y.split(variant.at_once):
            q = variant.guide.posterior(rows)
            try:
                z = q.mean
            except NotImplementedError:  # for example a flow, which has draws but no mean
                z = q.sample()
            scale = scale_of_law(variant.model.x_given_z(z))
            if scale is None:
                return None
            total += len(rows) * float(scale.double().square().mean())
    return math.sqrt(total / len(y))


def spread(y: Tensor) -> float:
    """The standard deviation of a coordinate of y [rows, *x_shape]: the root of the mean variance over coordinates."""
    return float(y.var(0, correction=0).mean().sqrt())


def floor_of(variant: Variant) -> float | None:
    """The floor of the scale of p(x | z), in the model's units, or None where the likelihood declares none.

    A likelihood declares its floor as an attribute ``lowest``. A user's own likelihood may do the same.
    """
    return getattr(variant.model.likelihood, "lowest", None)


def at_floor(variant: Variant, y: Tensor) -> str | None:
    """A message with a remedy if the scale of p(x | z) stands at its floor, and None otherwise.

    A scale below twice its floor counts as standing at it: more than half of a softly bounded scale is then due to the
    floor and was not learned. The result is also None where the likelihood has no floor.

    Args:
        variant: The pair.
        y: Data [rows, *x_shape], in the model's units.
    """
    floor = floor_of(variant)
    if floor is None or len(y) < 2:
        return None
    with evaluating(variant), pyro.validation_enabled(False), seeded(0):
        scale = scale_of_law(variant.model.x_given_z(variant.guide.posterior(y).sample()))  # not every q has a mean
    share = 0.0 if scale is None else float((scale < 2 * floor).double().mean())
    if share == 0.0:
        return None
    where = "" if share == 1.0 else f" for {100 * share:.2g} % of the coordinates"
    times = floor / max(spread(y), torch.finfo(y.dtype).tiny)
    remedy = STANDARD if times > WIDE else _lower(variant)
    return f"sigma stands at its floor {floor:.2g}{where}, {times:.3g} times the spread of x: use {remedy}"


def _lower(variant: Variant) -> str:
    """The remedy where the residual is small compared with the spread of x."""
    likelihood: Any = variant.model.likelihood
    if hasattr(likelihood, "floor"):
        return f"{type(likelihood).__name__}(floor={likelihood.floor - 3:g})"
    return "a smaller z_dim, because x is reproduced without a residual"
