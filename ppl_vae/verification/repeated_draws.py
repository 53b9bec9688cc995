"""Value and gradient of an estimator, drawn again and again at frozen parameters."""

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from ..streams import seeded, stream_seed
from ..variant import Variant

__all__ = ["Replicate", "frozen", "loss_and_grads", "parameters", "replicates", "spans"]


class Replicate(NamedTuple):
    """One draw of an estimator.

    Attributes:
        value: Of the loss, in nats summed over the data set.
        gradient: Of the loss, [parameters], in the order of ``parameters``.
        seconds: That it took.
    """

    value: float
    gradient: Tensor
    seconds: float


def frozen(variant: Variant) -> Variant:
    """A copy in eval mode, where the pair is p(x, z) and nothing else: gradients are taken there, nothing moves."""
    model, guide, loss = copy.deepcopy(variant)
    return Variant(model.eval(), guide.eval(), loss)


def parameters(variant: Variant) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by what they do: encoder, decoder, sigma, prior; a group without any is left out."""
    parts = {
        "encoder": variant.guide,
        "decoder": variant.model.decoder,
        "sigma": variant.model.likelihood,
        "prior": variant.model.prior,
    }
    groups = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
    return {name: group for name, group in groups.items() if group}


def spans(variant: Variant) -> dict[str, slice]:
    """Where the groups of ``parameters`` stand in a gradient."""
    found, first = {}, 0
    for name, group in parameters(variant).items():
        count = sum(parameter.numel() for parameter in group)
        found[name] = slice(first, first + count)
        first += count
    return found


def loss_and_grads(variant: Variant, estimator: ELBO, args: Sequence[Any]) -> float:
    """One value of the loss, its gradient added to the parameters' own, as ``SVI`` would have it."""
    with pyro.get_param_store().scope(), poutine.trace(param_only=True):  # without it Pyro takes no gradient
        return float(estimator.loss_and_grads(variant.model, variant.guide, *args))  # type: ignore[attr-defined]


def replicates(variant: Variant, estimator: ELBO, args: Sequence[Any], count: int, seed: int) -> Iterator[Replicate]:
    """Draw value and gradient ``count`` times, replicate r under a seed of ``seed`` and r alone: common random numbers.

    Args:
        variant: A ``frozen`` pair, whose parameters' gradients are overwritten.
        estimator: Any ELBO of Pyro's or ours.
        args: Of model and guide: a batch in the model's units, and the size of the whole set.
        count: Replicates.
        seed: Of the first; the caller's random streams are left as they were.
    """
    held = [parameter for group in parameters(variant).values() for parameter in group]
    for index in range(count):
        for parameter in held:
            parameter.grad = None
        with seeded(stream_seed(seed, index)):
            started = time.perf_counter()
            value = loss_and_grads(variant, estimator, args)
            seconds = time.perf_counter() - started
        yield Replicate(value, torch.cat([_gradient(parameter) for parameter in held]), seconds)


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().flatten().double()
