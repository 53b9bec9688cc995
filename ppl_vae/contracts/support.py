"""Checks that a likelihood gives the data a density."""

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from ..blocks import rows_at_once
from ..models.likelihoods import is_nominal
from ..variant import Variant

__all__ = ["check_density", "check_support"]


def check_support(variant: Variant, y: Tensor, x: Tensor | None = None) -> None:
    """Refuse data to which the likelihood gives no density.

    Args:
        variant: The pair whose likelihood is used.
        y: The data [rows, *x_shape], in the model's units.
        x: The same data in their own units, where these are known.

    Raises:
        ValueError: If a value lies outside the support. The message names a likelihood or a scale that fits the data.
    """
    law, at_once = variant.noise, rows_at_once(y.shape[1:])
    support = law.support
    inside = torch.cat([support.check(rows) for rows in y.split(at_once)])
    if bool(inside.all()):
        return
    value = float(y[~inside][0])
    is_scaled = x is not None and not variant.model.scale.is_identity
    if is_scaled and all(bool(support.check(rows).all()) for rows in x.split(at_once)):  # type: ignore[union-attr]
        fits = "x itself, in its own units, lies in the support: use scale='none'"
    elif hasattr(support, "remedy"):
        fits = support.remedy
    elif is_nominal(law):
        fits = _of_codes(int(support.upper_bound) + 1, y)
    elif bool(((y == 0) | (y == 1)).all()):
        fits = "x is binary: bernoulli_vae fits"
    elif bool(((y >= 0) & (y <= 1)).all()):
        fits = "x lies in [0, 1]: continuous_bernoulli_vae fits, or binarize='threshold'"
    else:
        fits = "x is real: sigma_vae or gaussian_vae fits, or scale='unit'"
    name = type(variant.model.likelihood).__name__
    raise ValueError(f"x holds {value:.6g} (in the model's units), outside the support of {name}, {support}; {fits}")


def _of_codes(levels: int, y: Tensor) -> str:
    """What to do where y are not the codes of a number of categories."""
    wanted = f"pass whole numbers 0 to {levels - 1} with scale='none', such as pandas' .cat.codes"
    if bool((y != y.round()).any()):
        return wanted
    if bool((y < 0).any()):
        return f"{wanted}, in which -1 stands for a missing value"
    return f"{wanted}, or set levels to {int(y.max()) + 1}"


def check_density(variant: Variant, y: Tensor) -> None:
    """Refuse data on the edge of the support where the density is 0 or infinite, for example 0 and 1 for a Beta.

    Args:
        variant: The pair whose likelihood is used, at the code 0.
        y: The data [rows, *x_shape], in the model's units, inside the support.

    Raises:
        ValueError: If the log density of a value is not finite.
    """
    law = variant.noise
    if law.support is constraints.real or law.support.is_discrete:
        return
    with torch.no_grad(), pyro.validation_enabled(False):
        for rows in y.split(rows_at_once(y.shape[1:])):
            log_density = law.log_prob(rows.unsqueeze(1)).movedim(1, -1)
            is_infinite = ~log_density.isfinite().all(-1)
            if not bool(is_infinite.any()):
                continue
            raise ValueError(
                f"x holds {float(rows[is_infinite][0]):.6g} (in the model's units), on the edge of the support of "
                f"{type(variant.model.likelihood).__name__}, where log p(x | z) is "
                f"{float(log_density[is_infinite][0, 0])}: move such data inside, by x.clamp(1e-3, 1 - 1e-3) for the "
                "unit interval"
            )
