"""How wide p(x | z) is: its scale over data, and whether it stands at its floor."""

import math
from typing import Any

import pyro
import torch
from torch import Tensor

from .models.likelihoods import scale_of_law
from .streams import seeded
from .variant import Variant, evaluating

__all__ = ["STANDARD", "at_floor", "noise_scale", "spread"]


def noise_scale(variant: Variant, y: Tensor) -> float | None:
    """The root mean square of the scale of p(x | z), z the mean of q(z | x): what is called sigma everywhere.

    Args:
        variant: A pair.
        y: [rows, *x_shape], in the model's units; the mean is over its rows and coordinates.

    Returns:
        In the model's units; None where p(x | z) has no scale.
    """
    total = 0.0
    with evaluating(variant), pyro.validation_enabled(False):
        for rows in y.split(variant.at_once):
            q = variant.guide.posterior(rows)
            try:
                z = q.mean
            except NotImplementedError:  # a flow, say, which has draws and no mean
                z = q.sample()
            scale = scale_of_law(variant.model.x_given_z(z))
            if scale is None:
                return None
            total += len(rows) * float(scale.double().square().mean())
    return math.sqrt(total / len(y))


WIDE = 0.1  # share of the spread of x from which a floor of sigma is too high, where x is in units of its own


def spread(y: Tensor) -> float:
    """Standard deviation of a coordinate of x about its mean: the root of the mean variance over coordinates."""
    return float(y.var(0, correction=0).mean().sqrt())


def at_floor(variant: Variant, y: Tensor) -> str | None:
    """Say that the scale of p(x | z) stands at its floor, with the remedy; None where it does not, or has no floor.

    A scale below twice its floor counts as one that stands there, since more than half of a softly bounded scale is
    then the floor and not what was learned. A likelihood of one's own takes part by an attribute ``lowest``, the floor.

    Args:
        variant: The pair.
        y: Data [rows, *x_shape] in the model's units.
    """
    likelihood: Any = variant.model.likelihood
    lowest = getattr(likelihood, "lowest", None)
    if lowest is None or len(y) < 2:
        return None
    with evaluating(variant), pyro.validation_enabled(False), seeded(0):
        scale = scale_of_law(variant.model.x_given_z(variant.guide.posterior(y).sample()))  # not every q has a mean
    share = 0.0 if scale is None else float((scale < 2 * lowest).double().mean())
    if share == 0.0:
        return None
    where = "" if share == 1.0 else f" for {100 * share:.2g} % of the coordinates"
    times = lowest / max(spread(y), torch.finfo(y.dtype).tiny)
    remedy = "a smaller z_dim, for x is reproduced without a residual"
    if hasattr(likelihood, "floor"):
        remedy = f"{type(likelihood).__name__}(floor={likelihood.floor - 3:g})"
    return f"sigma stands at its floor {lowest:.2g}{where}, {times:.3g} times the spread of x: " + (
        STANDARD if times > WIDE else remedy
    )


STANDARD = "scale='standardize'"
