"""How does an estimator vary? Its value and gradient, drawn many times at fixed parameters."""

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
        value: The loss, in nats summed over the data set.
        gradient: The gradient of the loss, [parameters], in the order of ``parameters``.
        seconds: Time that the draw took.
    """

    value: float
    gradient: Tensor
    seconds: float


def frozen(variant: Variant) -> Variant:
    """Return a copy in eval mode, in which the model has no factors besides p(x, z). The pair itself is not changed."""
    model, guide, loss = copy.deepcopy(variant)
    return Variant(model.eval(), guide.eval(), loss)


def parameters(variant: Variant) -> dict[str, list[nn.Parameter]]:
    """The trained parameters in groups: encoder, decoder, sigma and prior. A group without parameters is left out."""
    parts = {
        "encoder": variant.guide,
        "decoder": variant.model.decoder,
        "sigma": variant.model.likelihood,
        "prior": variant.model.prior,
    }
    groups = {
        name: [parameter for parameter in part.parameters() if parameter.requires_grad] for name, part in parts.items()
    }
    return {name: group for name, group in groups.items() if group}


def spans(variant: Variant) -> dict[str, slice]:
    """The slice of a gradient [parameters] that belongs to each group of ``parameters``."""
    found, first = {}, 0
    for name, group in parameters(variant).items():
        count = sum(parameter.numel() for parameter in group)
        found[name] = slice(first, first + count)
        first += count
    return found


def loss_and_grads(variant: Variant, estimator: ELBO, args: Sequence[Any]) -> float:
    """Return one value of the loss, and add its gradient to the ``.grad`` of the parameters, as Pyro's ``SVI`` does."""
    with pyro.get_param_store().scope(), poutine.trace(param_only=True):  # Pyro takes no gradient without this trace
        return float(estimator.loss_and_grads(variant.model, variant.guide, *args))  # type: ignore[attr-defined]


def replicates(variant: Variant, estimator: ELBO, args: Sequence[Any], count: int, seed: int) -> Iterator[Replicate]:
    """Draw the value and the gradient of an estimator ``count`` times.

    The seed of replicate r depends on ``seed`` and r alone, so that several estimators get the same random numbers.

    Args:
        variant: A ``frozen`` pair. The gradients of its parameters are overwritten.
        estimator: Any ELBO, of Pyro or of this library.
        args: Arguments of the model and the guide: a batch in the model's units, and the size of the whole data set.
        count: Number of replicates.
        seed: Seed of the replicates. The caller's random streams are left as they were.
    """
    every = [parameter for group in parameters(variant).values() for parameter in group]
    for index in range(count):
        for parameter in every:
            parameter.grad = None
        with seeded(stream_seed(seed, index)):
            started = time.perf_counter()
            value = loss_and_grads(variant, estimator, args)
            seconds = time.perf_counter() - started
        yield Replicate(value, torch.cat([_gradient(parameter) for parameter in every]), seconds)


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().flatten().double()
