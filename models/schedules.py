"""Numbers that training moves. They live in buffers, so that checkpoints keep them and a captured step can see them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

__all__ = ["CURVES", "KLWeight", "Masked", "Schedule", "constant", "cyclical", "linear", "name_of_curve", "switch"]

Curve = Callable[[int, int], float]


def constant(value: float) -> Curve:
    """The same value at every step."""
    return partial(_constant, value)


def linear(ramp: float = 0.5, end: float = 1.0) -> Curve:
    """From 0 to ``end`` over the first ``ramp`` share of training, then ``end`` (Bowman et al., 2016)."""
    _share(ramp)
    return partial(_linear, ramp, end)


def cyclical(cycles: int = 4, ramp: float = 0.5, end: float = 1.0) -> Curve:
    """``cycles`` times: from 0 to ``end`` over the first ``ramp`` share, then ``end`` (Fu et al., 2019, eq. 7)."""
    _share(ramp)
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles!r}")
    return partial(_cyclical, cycles, ramp, end)


def switch(at: float) -> Curve:
    """0 before the share ``at`` of training, 1 from there on."""
    return partial(_switch, at)


def name_of_curve(curve: Any) -> str | None:
    """The name in ``CURVES`` under which a curve is built again from its bound options; None for other functions."""
    inner = {_constant: "constant", _cyclical: "cyclical", _linear: "linear", _switch: "switch"}
    return inner.get(curve.func) if isinstance(curve, partial) and not curve.keywords else None


CURVES: dict[str, Callable[..., Curve]] = {
    "constant": constant,
    "cyclical": cyclical,
    "linear": linear,
    "switch": switch,
}


def _share(ramp: float) -> None:
    if not 0.0 < ramp <= 1.0:
        raise ValueError(f"ramp is a share of training in (0, 1], got {ramp!r}")


# The curves are functions of a module with their options bound by ``partial``, for a lambda could not be pickled.


def _constant(value: float, step: int, total: int) -> float:
    return value


def _linear(ramp: float, end: float, step: int, total: int) -> float:
    return end * min(1.0, step / (ramp * total))


def _cyclical(cycles: int, ramp: float, end: float, step: int, total: int) -> float:
    return end * min(1.0, (step * cycles / total) % 1.0 / ramp) if step < total else end


def _switch(at: float, step: int, total: int) -> float:
    return float(step >= at * total)


class Schedule(nn.Module):
    """A number that is a function of the training step.

    Args:
        curve: ``curve(step, total)``, a float; ``step`` of ``total`` steps have been taken.

    Attributes:
        value: The number now, a buffer of shape []; at ``step = 0`` until ``advance`` is called.
    """

    value: Tensor

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve
        self.register_buffer("value", torch.zeros(()))
        self.advance(0, 1)

    def advance(self, step: int, total: int) -> None:
        """Set ``value`` to where training stands."""
        self.value.fill_(float(self.curve(step, total)))


class KLWeight(Schedule):
    """beta, the weight of ``KL(q(z | x) || p(z))`` in training (Higgins et al., 2017, eq. 4).

    It scales the site ``z`` of the model and of the guide alike: on one side only it would be another model. A weight
    other than 1 makes the training objective something else than the bound; with a Gaussian likelihood, beta and sigma
    act as one with sigma alone, ``sqrt(beta) * sigma``.

    Args:
        curve: ``curve(step, total)``, a float; values below 1e-6 count as 1e-6, for Pyro's scales are positive.

    Raises:
        ValueError: If the curve gives a negative or non-finite number.
    """

    @property
    def formula(self) -> str:
        """The weight at the start and at the end of training, or the one number where they are equal."""
        ends = [f"{self.curve(step, 1):.4g}" for step in (0, 1)]
        return " to ".join(dict.fromkeys(ends))

    def advance(self, step: int, total: int) -> None:
        """Set the weight to where training stands."""
        weight = float(self.curve(step, total))
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"a KL weight must be finite and not negative, got {weight!r} at step {step} of {total}")
        self.value.fill_(max(weight, 1e-6))

    def forward(self) -> Any:
        """The context around the site ``z``."""
        return poutine.scale(scale=self.value)

    def extra_repr(self) -> str:
        return f"{float(self.value):.4g}"


class Masked(nn.Module):
    """The density of ``z`` is no part of the training objective: an autoencoder without a code penalty, or WAE."""

    formula = "0"

    def forward(self) -> Any:
        """The context around the site ``z``."""
        return poutine.mask(mask=False)
