"""Contracts on the range of a decoder: its last layer may bound p(x | z) so that it can never reach the data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.likelihoods import moment
from ..variant import evaluating
from .registry import Contract, contract
from .training_pass import Pass

__all__ = ["REACH"]

REACH: list[Contract] = []
DECODES = "the decoder takes codes from all over the prior"
EDGE = 0.05  # share of the range of x by which a bounded decoder may miss the data, because x has noise
FEW = 0.01  # share of the numbers of x that may lie beyond that range, because they may be outliers
LARGE = 30.0  # size of the outputs beyond which a sigmoid is 0 or 1
DRAWS, CODES = 2, 16  # sets of random weights, and codes from the prior for each set


class Interval(NamedTuple):
    """The numbers from ``low`` to ``high``."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{round(self.low, 3):g}, {round(self.high, 3):g}]"


UNBOUNDED = Interval(-math.inf, math.inf)


@contract(REACH, "logits", remedy=DECODES)
def logits(run: Pass) -> str | None:
    """Where p(x | z) takes logits, no layer at the end of the decoder squashes them."""
    law = run.law
    if not _takes_logits(law):
        return None
    reached = _reach_of_law(run, lambda law: law.probs if hasattr(law, "probs") else law.mean)
    if reached.low < EDGE and reached.high > 1 - EDGE:
        return None
    outputs = _reach_of_outputs(run)
    if outputs == UNBOUNDED:
        return None  # the likelihood bounds the probabilities, and not the decoder
    what = "probabilities stay" if hasattr(law, "probs") else "mean stays"
    return (
        f"the decoder's outputs lie in {outputs}, but {type(law).__name__} takes logits, which may be any real number: "
        f"its {what} in {reached} ({_unbound(run)})"
    )


@contract(REACH, "range", remedy=DECODES, let_through=True)
def mean_range(run: Pass) -> str | None:
    """The mean of p(x | z) can reach the data."""
    if _takes_logits(run.law):
        return None  # the contract "logits" reports this
    reached = _reach_of_law(run, lambda law: moment(law, "mean", run.y))
    lowest, highest = float(run.y.min()), float(run.y.max())
    margin = EDGE * (highest - lowest)
    is_beyond = (run.y < reached.low - margin) | (run.y > reached.high + margin)
    share = float(is_beyond.double().mean())
    if share <= FEW:
        return None
    remedy = _unbound(run)
    if _reach_of_outputs(run) == UNBOUNDED:
        remedy = f"{type(run.variant.model.likelihood).__name__} bounds it: take the bound away"
    return (
        f"the mean of p(x | z) stays in {reached} whatever the decoder's weights are, and {share:.0%} of x, which goes "
        f"from {lowest:.3g} to {highest:.3g}, lies beyond ({remedy}, or scale x into that range)"
    )


def _takes_logits(law: Any) -> bool:
    return "logits" in getattr(law, "arg_constraints", {})


def _reach_of_outputs(run: Pass) -> Interval:
    """The interval of the decoder's outputs over all weights of the decoder."""
    return _reach(run, torch.stack)


def _reach_of_law(run: Pass, number: Callable[[Any], Tensor]) -> Interval:
    """The interval of a number of p(x | z), such as its mean, over all weights of the decoder."""
    return _reach(run, lambda outputs: number(run.variant.model.likelihood(*outputs)))


Read = Callable[[tuple[Tensor, ...]], Tensor]


def _reach(run: Pass, read: Read) -> Interval:
    """The interval of the numbers that ``read`` computes from the decoder's outputs, over all weights of the decoder.

    The decoder gets random weights of one total gain, and then of ten times that gain. If a layer squashes its input,
    the interval ends at the same place both times. An end that moves or is infinite is not a bound.
    """
    with torch.no_grad(), evaluating(run.variant), pyro.validation_enabled(False):
        try:
            first = _ends(run.variant.model, read, LARGE)
            second = _ends(run.variant.model, read, 10 * LARGE)
        except (NotImplementedError, RuntimeError, ValueError):  # not every network runs with any weights
            return UNBOUNDED
    if not second.low < second.high:
        return UNBOUNDED  # the numbers do not depend on the decoder
    width = second.high - second.low
    close = 0.01 * width if math.isfinite(width) else 0.0
    has_low = abs(second.low - first.low) <= close
    has_high = abs(second.high - first.high) <= close
    return Interval(second.low if has_low else -math.inf, second.high if has_high else math.inf)


def _ends(model: Any, read: Read, size: float) -> Interval:
    """The least and the largest value that ``read`` finds, where random weights multiply their input by ``size``."""
    decoder = model.decoder
    if not any(value.is_floating_point() for value in decoder.parameters()):
        return UNBOUNDED
    found = []
    for _ in range(DRAWS):
        z = model.prior().sample((CODES,))
        weights = _random_weights(decoder, size)
        for sign in (1, -1):  # the last bias is the same for all codes, so both of its signs are tried
            signed = {name: sign * value for name, value in weights.items()}
            outputs = model.outputs(z, lambda rows, signed=signed: functional_call(decoder, signed, (rows,)))
            found.append(read(outputs).aminmax())
    return Interval(min(float(low) for low, _ in found), max(float(high) for _, high in found))


def _random_weights(decoder: nn.Module, size: float) -> dict[str, Tensor]:
    """Normal weights and biases with which all layers together multiply their input by about ``size``."""
    parameters = {name: value for name, value in decoder.named_parameters() if value.is_floating_point()}
    matrices = sum(value.ndim > 1 for value in parameters.values())
    gain = math.sqrt(2) * size ** (1 / max(1, matrices))  # per layer; ReLU halves the mean square
    weights = {}
    for name, value in parameters.items():
        scale = gain / math.sqrt(value[0].numel()) if value.ndim > 1 else size
        weights[name] = scale * torch.randn_like(value)
    return weights


def _unbound(run: Pass) -> str:
    """The remedy, which names the decoder's last layer if that is an activation of torch."""
    keeps_values = nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout
    layers = [layer for layer in run.variant.model.decoder.modules() if not isinstance(layer, keeps_values)]
    last = type(layers[-1]) if layers else nn.Module
    is_activation = last.__module__ == nn.ReLU.__module__
    return f"drop the {last.__name__} at its end" if is_activation else "let it end in a linear layer"
