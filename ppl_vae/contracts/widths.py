"""A contract on the scale of p(x | z): training can move it, and it suits the data."""

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from ..models.likelihoods import scale_of_law
from ..noise import STANDARD, floor_of, spread
from ..variant import Variant
from .registry import Contract, contract
from .training_pass import Pass

__all__ = ["WIDTHS"]

WIDTHS: list[Contract] = []
ALIVE = 0.01  # a floor holds a log scale that changes by less when each parameter moves by its own size
DIGITS = 8.0  # a scale spans at least this many spacings of floats, so that rounding does not hide errors of its size
LARGER = f"start from a larger scale, lower the floor, or use {STANDARD}"


@contract(WIDTHS, "sigma", remedy="the scale of p(x | z) is positive", let_through=True)
def sigma(run: Pass) -> str | None:
    """The scale of p(x | z) is not stuck at a floor, is above the rounding of the data, and is below the spread of x.

    Here the spread of x is the root of the sum of the variances of its coordinates.
    """
    scale = scale_of_law(run.law)
    if scale is None:
        return None
    smallest = float(scale.detach().min())
    if scale.requires_grad and _slope(run.variant, scale) < ALIVE:
        return f"the learned scale, {smallest:.4g}, stands at a floor where it has no gradient ({LARGER})"
    if run.law.support is not constraints.real:
        return None
    rounding = torch.finfo(scale.dtype).eps * run.y.abs()
    if bool((scale.detach() < DIGITS * rounding).any()):
        kind = str(scale.dtype).removeprefix("torch.")
        largest = float(run.y.flatten()[run.y.abs().argmax()])
        return f"the scale, {smallest:.4g}, is within the rounding of {kind} for data such as {largest:.4g} ({LARGER})"
    return _too_wide(run, scale)


def _slope(variant: Variant, scale: Tensor) -> float:
    """The largest change of the log scale when each parameter moves by its own size, or by 1 if that is larger."""
    parameters = [parameter for parameter in variant.model.parameters() if parameter.requires_grad]
    weights = torch.rand_like(scale) * (2 / scale.numel())  # in a plain mean, opposite changes would cancel
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
        scale.log(), parameters, weights, retain_graph=True, allow_unused=True
    )
    changes = [
        float((gradient * parameter.detach().abs().clamp_min(1.0)).abs().sum())
        for gradient, parameter in zip(gradients, parameters, strict=True)
        if gradient is not None
    ]
    return sum(changes) if changes else math.inf  # no parameter of the model moves the scale, but one of the guide may


def _too_wide(run: Pass, scale: Tensor) -> str | None:
    """A message if ``scale**2`` exceeds the sum of the variances of the coordinates of x, and None otherwise.

    Then no direction of x has a variance above ``scale**2``, so the best loading of a linear model is zero (Tipping and
    Bishop, Probabilistic Principal Component Analysis, 1999, eq. 7), and no code helps.
    """
    floor = floor_of(run.variant)
    if floor is None and scale.requires_grad:
        return None  # the scale is learned, and its lower bound is not known
    least = float(scale.detach().max()) if floor is None else floor
    total = spread(run.y) * math.sqrt(run.y[0].numel())
    if not 0.0 < total < least:
        return None
    name = "sigma" if floor is None else "the floor of sigma"
    times = f"{least / total:.3g} times the spread of x in all coordinates together"
    return f"{name}, {least:.2g}, is {times}, so that no code helps (use {STANDARD})"
