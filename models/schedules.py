"""Schedules: numbers that change during training. They are buffers, so checkpoints and captured steps include them."""

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
    """A curve with the same value at every step."""
    return partial(_constant, value)


def linear(ramp: float = 0.5, end: float = 1.0) -> Curve:
    """A curve from 0 to ``end`` over the first ``ramp`` share of training, then constant (Bowman et al., 2016).

    Raises:
        ValueError: If ``ramp`` is not in (0, 1].
    """
    _share(ramp)
    return partial(_linear, ramp, end)


def cyclical(cycles: int = 4, ramp: float = 0.5, end: float = 1.0) -> Curve:
    """A curve of equal cycles. Each rises from 0 to ``end`` over its first ``ramp`` share (Fu et al., 2019, eq. 7).

    Raises:
        ValueError: If ``ramp`` is not in (0, 1], or ``cycles`` is below 1.
    """
    _share(ramp)
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles!r}")
    return partial(_cyclical, cycles, ramp, end)


def switch(at: float) -> Curve:
    """A curve that is 0 before the share ``at`` of training, and 1 from then on."""
    return partial(_switch, at)


def name_of_curve(curve: Any) -> str | None:
    """The name in ``CURVES`` of the function that built a curve, or None for a curve of your own."""
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


# The curves are module functions with their options bound by ``partial``, because a lambda could not be pickled.


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
        curve: A function ``curve(step, total)`` that gives the number after ``step`` of ``total`` steps, as a float.

    Attributes:
        value: The current number, a buffer of shape []. Before the first call of ``advance`` it is that of step 0.
    """

    value: Tensor

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve
        self.register_buffer("value", torch.zeros(()))
        self.advance(0, 1)

    def advance(self, step: int, total: int) -> None:
        """Set ``value`` to the number after ``step`` of ``total`` steps."""
        self.value.fill_(float(self.curve(step, total)))


class KLWeight(Schedule):
    """The weight beta of ``KL(q(z | x) || p(z))`` in training (Higgins et al., 2017, eq. 4).

    It scales the site ``z`` in the model and in the guide. With a weight other than 1 the training objective is not the
    bound. With a Gaussian likelihood, a weight beta and a scale sigma have the same optimum as the weight 1 and the
    scale ``sqrt(beta) * sigma``.

    Args:
        curve: A function ``curve(step, total)`` that gives the weight, as a float. A weight below 1e-6 is replaced by
            1e-6, because Pyro's scales are positive.

    Raises:
        ValueError: If the curve gives a negative or non-finite number.
    """

    @property
    def formula(self) -> str:
        """The weights at the start and at the end of training, as text. It is one number where they are equal."""
        ends = [f"{self.curve(step, 1):.4g}" for step in (0, 1)]
        return " to ".join(dict.fromkeys(ends))

    def advance(self, step: int, total: int) -> None:
        """Set ``value`` to the weight after ``step`` of ``total`` steps."""
        weight = float(self.curve(step, total))
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"a KL weight must be finite and not negative, got {weight!r} at step {step} of {total}")
        self.value.fill_(max(weight, 1e-6))

    def forward(self) -> Any:
        """The context that scales the site ``z``."""
        return poutine.scale(scale=self.value)

    def extra_repr(self) -> str:
        return f"{float(self.value):.4g}"


class Masked(nn.Module):
    """A weight of 0: the density of ``z`` is not in the training objective, as in a plain autoencoder or WAE."""

    formula = "0"

    def forward(self) -> Any:
        """The context that masks the site ``z``."""
        return poutine.mask(mask=False)
